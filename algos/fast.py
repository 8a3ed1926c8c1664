"""The fast path: which parts of an agent run on it, and its forward passes.

It serves rl_games' two standard models (continuous actions with a log standard deviation, discrete actions) over any network. What does
not fit takes the plain path, hook by hook: an overridden per-step hook plays the plain step and still learns fast, an overridden loss
is differentiated by autograd and still steps fast. `fused: false` takes the plain path everywhere; both agree to float tolerance.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from rl_games.algos_torch.models import ModelA2C, ModelA2CContinuousLogStd
from torch import Tensor

from algos import fused_losses
from algos.batch import Batch
from algos.by_hand import ByHand
from algos.collect import Collector
from algos.heads import Output
from algos.hooks import Hooks, overrides
from core.fused import Sequences
from core.fused_memory import fused_net
from core.normalizers import Frozen
from core.policy import Policy

if TYPE_CHECKING:
    from algos.agent import Agent

STEP_HOOKS = ("act", "on_step", "on_episode_end", "episode_mask")
LOSS_HOOKS = ("policy_loss", "value_loss", "entropy_weight")


def own_policy_act(policy: Policy) -> bool:
    """Whether a policy acts in its own way: by its class, or by a function that `setup` gave it."""
    return getattr(policy.act, "__func__", None) is not Policy.act


class Fast:
    """What of the fast path an agent can take. Built once, when the agent's model is there."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.model = agent.model
        self.net: Any = getattr(agent.model, "a2c_network", None)
        self.continuous = type(agent.model) is ModelA2CContinuousLogStd.Network
        standard = self.continuous or type(agent.model) is ModelA2C.Network
        compiled = bool(agent.config.get("torch_compile", False))
        self.reason = self._why_not(standard, compiled)
        self.plain_floats = type(agent.policy).preprocess is Policy.preprocess  # which leaves float32 as it is
        self.stats = Frozen(self.model.running_mean_std) if agent.normalize_input and self.reason is None else None
        own_values = agent.normalize_value and not agent.has_central_value and self.reason is None
        self.value_stats = Frozen(self.model.value_mean_std) if own_values else None
        self.fused = None if self.reason or agent.mixed_precision else fused_net(agent.model)
        self.losses = self.reason is None and self._default_losses()
        self.by_hand = ByHand.of(self)
        self.default_kl = (
            self.fused is not None and not overrides(agent, "policy_kl", Hooks) and type(agent).mean is agent.default_class.mean
        )
        self.step_reason = self.reason or self._why_plain_steps()
        own_act = overrides(agent, "act", Hooks) or own_policy_act(agent.policy)
        self.acts = self.fused is not None and not (own_act or agent.is_rnn or agent.has_central_value)

    def _why_not(self, standard: bool, compiled: bool) -> str | None:
        agent = self.agent
        if not agent.options.fused:
            return "fused is false"
        if not standard:
            return f"the model is {type(agent.model).__module__}.{type(agent.model).__qualname__}"
        if type(agent).model_inputs is not agent.default_class.model_inputs:
            return "'model_inputs' is overridden"
        if agent.normalize_input and not agent.options.update_normalizer_once:
            return "the normalizer learns in every minibatch (update_normalizer_once is false)"
        if agent.use_action_masks:
            return "the task has action masks"
        if not isinstance(agent.policy.obs_shape, tuple):
            return "the observations are a dict"
        return "torch_compile runs the model as a whole" if compiled else None

    def _default_losses(self) -> bool:
        agent = self.agent
        own = any(overrides(agent, name, Hooks) for name in LOSS_HOOKS) or type(agent).mean is not agent.default_class.mean
        return bool(agent.ppo and not agent.use_smooth_clamp and agent.options.mean_over_mask and agent.head.standard_losses and not own)

    def _why_plain_steps(self) -> str | None:
        agent = self.agent
        for name in STEP_HOOKS:
            if overrides(agent, name, Hooks):
                return f"'{name}' is overridden"
        for name in ("_act", "env_step", "values_of", "bootstrap", "collect"):
            if overrides(agent, name, Collector):
                return f"'{name}' is overridden"
        if own_policy_act(agent.policy):
            return "the policy's 'act' is overridden"
        if agent.has_central_value:
            return "there is a central value"
        return None

    def refresh(self) -> None:
        """Takes over what normalizers and network have learned."""
        for part in (self.stats, self.value_stats, self.fused):
            if part is not None:
                part.refresh()

    # ---- forward passes ----------------------------------------------------------------------------------------------

    def act(self, obs: Tensor) -> dict[str, Any]:
        """What `Policy.act` returns for N rows, where the rollout is the plain one but acting is the default: the network is written
        out and has no memory (`acts`). The noise is drawn here."""
        assert self.fused is not None
        obs = self.normalize(obs)
        head = obs.new_empty(len(obs), self.agent.actions_num)
        values = obs.new_empty(len(obs), self.agent.value_size)
        self.fused.act(obs, head, values)
        result: dict[str, Any] = {"values": self.denormalize(values), "rnn_states": None}
        if not self.continuous:
            noise = torch.empty_like(head).exponential_().log_().neg_()
            actions = torch.argmax(head + noise, dim=1)  # Gumbel-max: a sample of the categorical distribution
            neglogp, _, logits = fused_losses.Categorical.forward(fused_losses.Tape(), head, actions)
            return {**result, "actions": actions, "neglogpacs": neglogp, "logits": logits}
        logstd = self.net.sigma_act(self.net.sigma)
        sigmas = logstd.exp().expand_as(head)
        actions = torch.addcmul(head, sigmas, torch.randn_like(head))
        neglogp, _ = fused_losses.Gaussian.forward(fused_losses.Tape(), head, logstd, actions)
        return {**result, "actions": actions, "neglogpacs": neglogp, "mus": head, "sigmas": sigmas}

    def normalize(self, obs: Tensor) -> Tensor:
        """Raw observations (L, ...) -> what the network sees, by the present statistics, which learn nothing here."""
        obs = self.agent.policy.preprocess(obs)
        return self.stats(obs) if self.stats is not None else obs

    def normalize_step(self, obs: Tensor, out: Tensor) -> Tensor:
        """`normalize` for a step of the rollout, into `out` where that needs nothing else."""
        if self.stats is None or not self.plain_floats or obs.dtype != torch.float32:
            return self.normalize(obs)
        return self.stats(obs, out=out)

    def denormalize(self, values: Tensor) -> Tensor:
        """The network's values (L, V) in reward units."""
        return self.value_stats.denormalize(values) if self.value_stats is not None else values

    def network(self, obs: Tensor, actions: Tensor | None = None, **inputs: Any) -> tuple[Tensor, Tensor | None, Tensor, Any]:
        """normalized observations -> head (B, A): means or logits; log standard deviations or None; values (B, V); memory.

        For a network that is not written out. `actions` are those of a minibatch; None in the rollout. It may read both.
        """
        result = self.net({"obs": obs, "is_train": actions is not None, "prev_actions": actions, **inputs})
        if self.continuous:
            mus, logstd, values, states = result
            return mus.float(), logstd.float(), values.float(), states
        logits, values, states = result
        return logits.float(), None, values.float(), states

    def sequences(self, mb: Batch) -> Sequences | None:
        """What a network with memory reads beside a minibatch's observations."""
        if not self.agent.is_rnn:
            return None
        return Sequences(mb.rnn_states, self.agent.seq_length, mb.rnn_dones if self.agent.zero_rnn_on_done else None)

    def evaluate(self, mb: Batch) -> Output:
        """What `self.model` says in training mode about a minibatch, without its detours."""
        obs = mb.normalized_obs if "normalized_obs" in mb else self.normalize(mb.obs)
        sequences = self.sequences(mb)
        if self.fused is not None:
            (head, values), states = self.fused(obs, sequences), None
            logstd = self.net.sigma_act(self.net.sigma) if self.continuous else None
        else:
            inputs = {} if sequences is None else {name: x for name, x in sequences._asdict().items() if x is not None}
            head, logstd, values, states = self.network(obs, mb.actions, **inputs)
        raw = {"values": values, "rnn_states": states}
        if logstd is None:
            neglogp, entropy, logp = fused_losses.Categorical.apply(head, mb.actions)
            return Output(neglogp, values, entropy, logits=logp, raw=raw)
        neglogp, entropy = fused_losses.Gaussian.apply(head, logstd, mb.actions)
        return Output(neglogp, values, entropy, mus=head, sigmas=logstd.exp().expand_as(head), raw=raw)

    def total_loss(self, mb: Batch, out: Output) -> tuple[Tensor, dict[str, Tensor]]:
        """The default losses of `Agent.total_loss`: the scalar and the mean of each part, by rl_games' names."""
        bounds = self.agent.head.bounds_coef
        values = out.values if self.agent.has_value_loss else None
        inputs = self.loss_inputs(mb, bounds)
        loss, *means = fused_losses.StandardLoss.apply(out.neglogp, out.entropy, values, None if bounds is None else out.mus, *inputs)
        return loss, self.named(means)

    def mean_kl(self, mb: Batch, out: Output) -> Tensor | None:
        """What `policy_kl` is on average; None where that is not the default, or rows are left out."""
        if not self.default_kl or mb.mask is not None:
            return None
        if self.continuous:
            if out.sigmas.stride(0) != 0:  # an own `evaluate_actions` gave each row its own
                return None
            return fused_losses.gaussian_mean_kl(out.mus.detach(), out.sigmas.detach()[0], mb.old_mus, mb.old_sigmas)
        return fused_losses.categorical_mean_kl(mb.old_neglogp, out.neglogp.detach())

    def loss_inputs(self, mb: Batch, bounds: float | None) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """`rows` and `weights` of StandardLoss."""
        agent = self.agent
        rows = (mb.old_neglogp, mb.advantages, mb.old_values, mb.returns, mb.mask)
        return rows, (agent.e_clip, agent.clip_value, 0.5 * agent.critic_coef, agent.entropy_coef, bounds)

    def named(self, means: Sequence[Tensor | None]) -> dict[str, Tensor]:
        """The parts that are in the loss, by rl_games' names."""
        return {name: value for name, value in zip(fused_losses.LOSSES, means, strict=True) if value is not None}
