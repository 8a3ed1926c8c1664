"""What differs between continuous and discrete actions, as one object each, so that the update is written once."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from algos import losses
from algos.batch import Batch

if TYPE_CHECKING:
    from algos.agent import Agent


@dataclasses.dataclass
class Output:
    """What the network says about a minibatch; `evaluate_actions` returns it, the losses read it."""

    neglogp: Tensor  # (B,) -log pi(a|s) under the present policy
    values: Tensor  # (B, V) normalized where `normalize_value`
    entropy: Tensor  # (B,)
    mus: Any = None  # (B, A) continuous
    sigmas: Any = None  # (B, A) continuous
    logits: Any = None  # (B, choices) discrete, a list of them for multi-discrete
    raw: dict[str, Any] = dataclasses.field(default_factory=dict)  # the model's own dict, for networks that return more


class ContinuousHead:
    """Gaussian actions: exact KL from means and sigmas, a loss on means beyond the bounds."""

    rollout_keys = ("mus", "sigmas")

    def __init__(self, agent: Agent) -> None:
        self.coef = agent.config.get("bounds_loss_coef")
        self.kind = agent.config.get("bound_loss_type", "bound")
        self.bounds_coef = self.coef if self.kind == "bound" else None
        self.standard_losses = self.coef is None or self.kind != "regularisation"
        # rl_games' 'legacy' (its default) adapts the learning rate after every minibatch, 'standard' after every mini-epoch
        self.schedule_each_minibatch = agent.schedule_type == "legacy"

    def kl(self, mb: Batch, out: Output) -> Tensor:
        """(B,) KL to the policy of the last time that these rows were visited."""
        return losses.gaussian_kl(out.mus.detach(), out.sigmas.detach(), mb.old_mus, mb.old_sigmas)

    def losses(self, out: Output) -> dict[str, tuple[Tensor, float]]:
        """{"bounds_loss": (per-sample loss (B,), coefficient)}, or nothing where `bounds_loss_coef` is null."""
        if self.coef is None:
            return {}
        if self.kind == "regularisation":
            return {"bounds_loss": ((out.mus * out.mus).sum(dim=-1), self.coef)}
        if self.kind == "bound":
            return {"bounds_loss": (losses.bound_loss(out.mus), self.coef)}
        return {}

    def after_minibatch(self, batch: Batch, mb: Batch, out: Output) -> None:
        batch.write(mb, old_mus=out.mus.detach(), old_sigmas=out.sigmas.detach())


class DiscreteHead:
    """Categorical actions, one head or several: sampled KL, no further loss."""

    rollout_keys = ()
    schedule_each_minibatch = False
    bounds_coef = None
    standard_losses = True

    def __init__(self, agent: Agent) -> None:
        pass

    def kl(self, mb: Batch, out: Output) -> Tensor:
        """(B,) sampled KL to the policy that acted."""
        return losses.neglogp_kl(mb.old_neglogp, out.neglogp.detach())

    def losses(self, out: Output) -> dict[str, tuple[Tensor, float]]:
        return {}

    def after_minibatch(self, batch: Batch, mb: Batch, out: Output) -> None:
        pass


def read_output(result: dict[str, Any]) -> Output:
    """From the model's training dict to an Output; what autocast made bfloat16 becomes float32, so that losses are exact."""
    entropy = torch.atleast_1d(result["entropy"]).float()
    return Output(
        neglogp=result["prev_neglogp"].reshape(entropy.shape).float(),
        values=result["values"].float(),
        entropy=entropy,
        mus=result["mus"].float() if "mus" in result else None,
        sigmas=result["sigmas"].float() if "sigmas" in result else None,
        logits=result.get("logits"),
        raw=result,
    )
