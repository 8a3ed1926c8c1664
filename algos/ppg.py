"""PPG: Phasic Policy Gradient, Cobbe et al. 2020 (https://arxiv.org/abs/2009.04416), sec. 2 and algorithm 1:

    policy phase, N_pi rollouts:   PPO, the value's gradient kept away from the policy's layers
    auxiliary phase, E_aux passes over all of them, pi_old the policy at its start:
        L_joint = 1/2 E[(V_aux(s) - V_targ)^2] + beta_clone E[KL(pi_old(.|s) || pi(.|s))],   and 1/2 E[(V(s) - V_targ)^2]

`network.separate: true` is the paper's pair of networks, V_aux an own head on the policy's features. Otherwise it is its single network
(sec. 3.6): the value head reads the policy's features, its gradient is stopped there in the policy phase, and it is V_aux itself.
"""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Normal, kl_divergence

from algos.agent import Agent
from algos.batch import Batch
from algos.heads import Output, read_output
from algos.options import AgentOptions
from core.errors import UserError
from core.registry import register_algo
from core.vecenv import tree_map

KEPT = ("obs", "actions", "returns", "action_masks", "rnn_dones", "mask")  # of a batch, where it has them; and memory


@dataclasses.dataclass(kw_only=True)
class PPGOptions(AgentOptions):
    n_pi: int = 32
    """N_pi: epochs (rollouts) of a policy phase."""

    aux_epochs: int = 6
    """E_aux: passes of an auxiliary phase over the rollouts of its policy phase; 0: no auxiliary phase."""

    aux_minibatches: int = 16
    """Minibatches of such a pass, per rollout."""

    beta_clone: float = 1.0
    """Weight of KL(pi_old || pi) in the auxiliary phase."""

    aux_learning_rate: float | None = None
    """Of the auxiliary phase's own Adam; null: the policy's, as the schedule leaves it."""

    phase_in_checkpoint_mb: int = 512
    """A policy phase's rollouts are in every checkpoint if they take no more than this; a resume then is exact. Beyond, it begins a new
    phase."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("n_pi", 1), ("aux_epochs", 0), ("aux_minibatches", 1), ("phase_in_checkpoint_mb", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least {least}")
        if self.beta_clone < 0:
            raise ValueError(f"beta_clone is {self.beta_clone}: it must not be negative")
        if self.aux_learning_rate is not None and self.aux_learning_rate <= 0:
            raise ValueError(f"aux_learning_rate is {self.aux_learning_rate}: it must be positive, or null")


@register_algo("ppg", config=PPGOptions)
class PPG(Agent):
    @classmethod
    def check_run(cls, options, policy, env):
        super().check_run(options, policy, env)
        config = policy.config
        if config.get("central_value_config"):
            raise UserError("'ppg' trains the policy network's own value: remove train.params.config.central_value_config")
        net = getattr(policy.model, "a2c_network", None)
        if policy_head(net) is None or getattr(net, "get_value_layer", lambda: None)() is None:
            raise UserError(
                "'ppg' needs a network with a value layer (get_value_layer) and 'mu' (or 'logits'), as rl_games' and those of "
                "networks.base.ActorCritic have them: choose another at train.params.network.name"
            )
        seq_length = config.get("seq_length", 4) if policy.is_rnn else 1
        sequences = config["horizon_length"] * policy.num_envs * env.num_agents // seq_length
        if sequences < options.aux_minibatches:
            raise UserError(
                f"train.params.config.aux_minibatches is {options.aux_minibatches}: a rollout here has {sequences} "
                f"{'sequences' if policy.is_rnn else 'rows'} to make them of"
            )

    def setup(self):
        super().setup()
        net: Any = self.model.a2c_network
        self.dual = net.is_separate_critic()
        self.value_reaches_policy = True  # false while a minibatch of the policy phase is evaluated
        self.features: Any = None  # dual: (B, F) what the policy's head last read
        head = policy_head(net)
        first: Any = head[0] if isinstance(head, nn.ModuleList) else head
        if self.dual:
            first.register_forward_pre_hook(self._keep_features)
        else:
            net.get_value_layer().register_forward_pre_hook(self._stop_gradient)
        aux: nn.Module = nn.Linear(first.in_features, self.value_size) if self.dual else nn.Identity()
        aux = aux.to(self.policy.device)
        optimizer = torch.optim.Adam([*self.model.parameters(), *aux.parameters()], float(self.config["learning_rate"]), fused=True)
        self.aux = self.register("aux", aux, optimizer=optimizer, grad_norm=self.grad_norm if self.truncate_grads else None)
        limit = self.options.phase_in_checkpoint_mb * 2**20
        self.phase = self.register("phase", Phase(self.options.n_pi, self.seq_length if self.is_rnn else 1, limit, self.policy.device))

    def _keep_features(self, head, inputs):
        self.features = inputs[0]

    def _stop_gradient(self, value, inputs):
        return inputs if self.value_reaches_policy else (inputs[0].detach(), *inputs[1:])

    def evaluate_actions(self, mb):
        if self.dual:
            return super().evaluate_actions(mb)
        self.value_reaches_policy = False
        try:
            return read_output(self.model(self.model_inputs(mb)))
        finally:
            self.value_reaches_policy = True

    def update(self, batch):
        metrics = super().update(batch)
        if self.options.aux_epochs:
            # in reward units: what normalizes them moves before they are used
            returns = self.value_mean_std(batch.returns, denorm=True) if self.normalize_value else batch.returns
            self.phase.add(batch.replace(returns=returns), self.horizon_length * self.rows)
            if self.phase.is_full:
                metrics.update(self.auxiliary_phase())
                self.phase.clear()
        return metrics

    def auxiliary_phase(self) -> dict[str, float]:
        """E_aux passes over the rollouts of the phase. Returns the means of its losses."""
        if self.normalize_input:
            self.model.running_mean_std.eval()
        for group in self.extras.groups["aux"].optimizer.param_groups:
            group["lr"] = self.options.aux_learning_rate or self.last_lr
        rows, count = self.phase.batch(), self.options.aux_minibatches * self.options.n_pi
        if self.normalize_value:
            rows = rows.replace(returns=self.value_mean_std(rows.returns))
        with torch.no_grad(), self.autocast(self.mixed_precision):
            old = [distribution(self.auxiliary_output(mb)) for mb in rows.minibatches(count, shuffle=False)]
        rows = rows.replace(old_policy=tree_map(lambda *parts: torch.cat(parts), *old))
        steps = []
        for _ in range(self.options.aux_epochs):
            for mb in rows.minibatches(count, shuffle=True):
                with self.autocast(self.mixed_precision):
                    losses = self.auxiliary_losses(mb, self.auxiliary_output(mb))
                    loss = losses["aux_value"] + self.options.beta_clone * losses["clone_kl"] + losses.get("value", 0.0)
                self.optimizer_step(loss, group="aux")
                steps.append(torch.stack(list(losses.values())).detach())
        return dict(zip((f"ppg/{name}" for name in losses), torch.stack(steps).mean(0).tolist(), strict=True))

    def auxiliary_output(self, mb: Batch) -> Output:
        """The model's forward pass, whose values reach the policy's layers where they share them."""
        return read_output(self.model(self.model_inputs(mb)))

    def auxiliary_losses(self, mb: Batch, out: Output) -> dict[str, Tensor]:
        """The means of the terms of L_joint, and of the value's own loss where that has a network of its own."""
        aux_values = self.aux(self.features).float() if self.dual else out.values
        parts = {"aux_value": 0.5 * (aux_values - mb.returns) ** 2, "clone_kl": clone_kl(mb.old_policy, distribution(out))}
        if self.dual:
            parts["value"] = 0.5 * (out.values - mb.returns) ** 2
        return {name: self.mean(rows, mb.mask) for name, rows in parts.items()}


def policy_head(net: Any) -> Any:
    """The layer, or layers, that give a network's means or logits; None where it has none of these names."""
    return getattr(net, "mu", None) or getattr(net, "logits", None)


def distribution(out: Output) -> dict[str, Tensor]:
    """What a policy's actions are drawn from: mus and sigmas (B, A), or each head's logits (B, choices)."""
    if out.mus is not None:
        return {"mus": out.mus, "sigmas": out.sigmas}
    heads = out.logits if isinstance(out.logits, list | tuple) else [out.logits]
    return {str(i): logits.float() for i, logits in enumerate(heads)}


def clone_kl(old: dict[str, Tensor], new: dict[str, Tensor]) -> Tensor:
    """(B,) KL(old || new), summed over action dimensions or heads."""
    if "mus" in old:
        pair = [Normal(policy["mus"], policy["sigmas"], validate_args=False) for policy in (old, new)]
        return kl_divergence(*pair).sum(-1)
    heads = [[Categorical(logits=policy[i], validate_args=False) for policy in (old, new)] for i in old]
    return torch.stack([kl_divergence(*pair) for pair in heads]).sum(0)


class Phase:
    """Rows of the rollouts since the last auxiliary phase, in memory that is used again every phase.

    Every field is kept by sequences: rows as (sequences, seq_length, ...), memory as (sequences, layers, units); without memory a
    sequence is one row.
    """

    def __init__(self, size: int, seq_length: int, limit: int, device: torch.device) -> None:
        self.size, self.seq_length, self.limit, self.device = size, seq_length, limit, device  # rollouts, rows, bytes of a checkpoint
        self.fields: dict[str, Any] = {}
        self.rollouts = self.sequences = 0

    @property
    def is_full(self) -> bool:
        return self.rollouts >= self.size

    def clear(self) -> None:
        self.rollouts = self.sequences = 0

    def add(self, batch: Batch, rows: int) -> None:
        """Adds a rollout's batch. rows: of a whole rollout, of which a batch may lack some."""
        given = {name: getattr(batch, name) for name in KEPT if name in batch}
        if "rnn_states" in batch and "mask" not in given:
            given["mask"] = torch.ones_like(batch.old_neglogp)  # another rollout may have rows that do not count
        given = {name: tree_map(lambda x: x.unflatten(0, (-1, self.seq_length)), value) for name, value in given.items()}
        if "rnn_states" in batch:
            given["rnn_states"] = {str(i): state.transpose(0, 1) for i, state in enumerate(batch.rnn_states)}
        self._write(given, self.size * rows // self.seq_length)
        self.rollouts += 1

    def batch(self) -> Batch:
        """All rows as one batch."""
        rows = tree_map(lambda x: x[: self.sequences], self.fields)
        states = rows.pop("rnn_states", None)
        fields = {"mask": None, **tree_map(lambda x: x.flatten(0, 1), rows)}
        fields["rnn_states"] = None if states is None else [state.transpose(0, 1) for state in states.values()]
        return Batch(fields, self.seq_length)

    def _write(self, given: dict[str, Any], capacity: int) -> None:
        end = self.sequences + len(given["actions"])

        def room(x: Tensor) -> Tensor:
            return torch.empty((max(capacity, end), *x.shape[1:]), dtype=x.dtype, device=self.device)

        def put(kept: Tensor, value: Tensor) -> None:
            kept[self.sequences : end] = value

        if not self.fields or len(self.fields["actions"]) < end:
            old, self.fields = self.fields, tree_map(room, given)
            if old:  # an own transform_batch made the batch longer than a rollout
                tree_map(lambda kept, x: kept[: self.sequences].copy_(x[: self.sequences]), self.fields, old)
        tree_map(put, self.fields, given)
        self.sequences = end

    def state_dict(self) -> dict[str, Any]:
        used = tree_map(lambda x: x[: self.sequences], self.fields)
        sizes: list[int] = []
        tree_map(lambda x: sizes.append(x.nbytes), used)
        kept = tree_map(torch.clone, used) if sum(sizes) <= self.limit else {}
        return {"rollouts": self.rollouts, "sequences": self.sequences, "fields": kept}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.clear()
        if not state["fields"]:
            if state["rollouts"]:
                warnings.warn(
                    f"the checkpoint is without the {state['rollouts']} rollouts of its unfinished phase (more than "
                    "phase_in_checkpoint_mb): a new policy phase of n_pi epochs begins",
                    stacklevel=2,
                )
            return
        self._write(state["fields"], state["sequences"] // max(state["rollouts"], 1) * self.size)
        self.rollouts = state["rollouts"]
