"""A minibatch without autograd: forward, losses and gradients called one after the other.

Taken where nothing of the default update is overridden and the network is written out. For small networks autograd's own work is a third of
a minibatch; the numbers are the same, because these are the functions that the graph would call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from algos.batch import Batch
from algos.flat_adam import FlatAdam
from algos.fused_losses import Categorical, Gaussian, Tape, loss_rows
from algos.heads import Output
from algos.hooks import Hooks
from core.fused_twins import TwinNet

if TYPE_CHECKING:
    from algos.fast import Fast

HOOKS = ("evaluate_actions", "extra_losses", "optimizer_step")
DRIVER = ("minibatch_step", "total_loss", "default_optimizer_step")


class ByHand:
    """`ByHand.of(fast)` for an agent whose minibatches can be stepped by hand; None for every other."""

    def __init__(self, fast: Fast) -> None:
        agent = fast.agent
        self.fast = fast
        # inference mode takes a tenth off each call; a recorded graph, whose calls cost nothing, cannot write into what was made in it
        self.without_autograd = torch.no_grad if agent.options.cuda_graphs else torch.inference_mode
        assert fast.fused is not None
        self.optimizer: Any = agent.optimizer
        self.sigma: nn.Parameter | None = fast.net.sigma if fast.continuous else None
        self.bounds = agent.head.bounds_coef
        sigma = [] if self.sigma is None else [self.sigma]
        twins = TwinNet.of(fast.fused, agent.minibatch_size)
        self.net: Any = twins or fast.fused
        if twins is not None:
            self.optimizer.lay_out([*twins.order, *sigma])
            twins.tie()
        self.into = self.optimizer.gradients(self.net.parameters)
        if twins is not None:
            self.into = twins.stack(self.into)
        self.into_sigma = self.optimizer.gradients(sigma)

    @staticmethod
    def of(fast: Fast) -> ByHand | None:
        agent = fast.agent
        if fast.fused is None or not fast.losses or not agent.has_value_loss or agent.scaler.is_enabled():
            return None
        if any(getattr(type(agent), name) is not getattr(Hooks, name) for name in HOOKS):
            return None
        if any(getattr(type(agent), name) is not getattr(agent.default_class, name) for name in DRIVER):
            return None
        if type(agent.optimizer) is not FlatAdam or agent.model.get_aux_loss():
            return None
        if fast.continuous and not isinstance(fast.net.sigma_act, nn.Identity):
            return None
        count = len(fast.fused.parameters) + int(fast.continuous)
        return ByHand(fast) if count == len(agent.optimizer.parameters) else None

    def step(self, mb: Batch) -> tuple[Output, dict[str, Tensor]]:
        """One optimizer step. Returns the network's output before it, and of each loss the rows, or with a mask its mean over them."""
        # what is read from the batch is kept there, and hooks may differentiate by it: it is not to be made in inference mode
        obs = mb.normalized_obs if "normalized_obs" in mb else mb.obs
        read = (obs, mb.actions, self.fast.sequences(mb), self.fast.loss_inputs(mb, self.bounds))
        with self.without_autograd():
            return self._step(*read, is_normalized="normalized_obs" in mb)

    def _step(
        self, obs: Tensor, actions: Tensor, sequences: Any, inputs: tuple[Any, Any], is_normalized: bool
    ) -> tuple[Output, dict[str, Tensor]]:
        agent = self.fast.agent
        if not is_normalized:
            obs = self.fast.normalize(obs)
        work = self.net.take_work(obs, sequences)
        head, values = self.net.forward_by_hand(obs, work)
        dist = Tape()
        if self.sigma is not None:
            neglogp, entropy = Gaussian.forward(dist, head, self.sigma, actions)
            out = Output(neglogp, values, entropy, mus=head, sigmas=self.sigma.exp().expand_as(head))
        else:
            neglogp, entropy, logp = Categorical.forward(dist, head, actions)
            out = Output(neglogp, values, entropy, logits=logp)
        rows = loss_rows(neglogp, entropy, values, None if self.bounds is None else head, *inputs)
        if self.sigma is not None:
            d_head, d_sigma, _ = Gaussian.backward(dist, rows.d_neglogp, rows.d_entropy)
        else:
            d_head, _ = Categorical.backward(dist, rows.d_neglogp, rows.d_entropy, None)
        if rows.d_mus is not None:
            d_head += rows.d_mus
        self.net.backward_into(obs, work, d_head, rows.d_values, self.into)
        self.net.give_back(work)
        if self.sigma is not None:
            self.into_sigma[0].copy_(d_sigma)
        self.optimizer.step_in_place(agent.grad_norm if agent.truncate_grads else None, agent.ranks)
        parts = self.fast.named(rows.losses)
        return out, parts if rows.share is None else {name: rows.mean(value) for name, value in parts.items()}
