"""V-trace actor-critic: IMPALA, Espeholt et al. 2018 (https://arxiv.org/abs/1802.01561), eq. 1 and section 4.2:

    v_s = V(x_s) + sum_{t >= s} gamma^{t-s} (c_s ... c_{t-1}) rho_t (r_t + gamma V(x_{t+1}) - V(x_t))
    policy gradient  rho_s grad log pi(a_s|x_s) (r_s + gamma v_{s+1} - V(x_s)),   value loss  (v_s - V(x_s))^2

with rho_t = min(rho_bar, pi/mu), c_t = lambda min(c_bar, pi/mu): pi is the present policy, mu the one that acted. A minibatch holds whole
rollouts of some environments, and its targets are computed under the present policy and critic, in every pass anew.
"""

from __future__ import annotations

import collections
import copy
import dataclasses

import torch
from torch import Tensor

from algos.agent import Agent
from algos.batch import Batch, flat
from algos.losses import a2c_loss
from algos.options import AgentOptions
from core.errors import UserError
from core.ranks import world_size
from core.registry import register_algo


@dataclasses.dataclass(kw_only=True)
class VTraceOptions(AgentOptions):
    rho_bar: float = 1.0
    """Truncates the weights of temporal differences and of the policy gradient: which policy's value is learned (section 4.1)."""

    c_bar: float = 1.0
    """Truncates the weights of the trace: how far a correction reaches back. At most rho_bar."""

    replay: int = 0
    """Past rollouts that are kept. With one or more, every minibatch is joined by as many environments' rollouts from among them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.c_bar <= 0:
            raise ValueError(f"c_bar is {self.c_bar}: it must be positive")
        if self.rho_bar < self.c_bar:
            raise ValueError(f"rho_bar is {self.rho_bar}: it must be at least c_bar, {self.c_bar}")
        if self.replay < 0:
            raise ValueError(f"replay is {self.replay}: it must be 0 (none) or a number of rollouts")


class Replay:
    """The last `size` batches, as they were collected."""

    def __init__(self, size: int, steps: int) -> None:
        self.steps = steps
        self.batches: collections.deque[Batch] = collections.deque(maxlen=size)

    def add(self, batch: Batch) -> None:
        fields = {name: value for name, value in batch.fields.items() if name != "normalized_obs"}  # as they would be normalized then
        self.batches.append(Batch(copy.deepcopy(fields), self.steps))

    def draw(self, count: int) -> Batch:
        """The rollouts of `count` environments, all from one batch."""
        batch = self.batches[int(torch.randint(len(self.batches), ()))]
        return batch.take(batch.draw_order()[:count])

    def state_dict(self) -> dict[str, list]:
        return {"batches": [batch.fields for batch in self.batches]}

    def load_state_dict(self, state: dict[str, list]) -> None:
        self.batches.clear()
        self.batches.extend(Batch(fields, self.steps) for fields in state["batches"])


@register_algo("vtrace", config=VTraceOptions)
class VTrace(Agent):
    @classmethod
    def check_run(cls, options, policy, env):
        super().check_run(options, policy, env)
        config = policy.config
        horizon = config["horizon_length"]
        minibatch = config["minibatch_size"] if "minibatch_size" in config else config["minibatch_size_per_env"] * policy.num_envs
        if config.get("central_value_config"):
            raise UserError("vtrace corrects the values of the policy's own critic: take train.params.config.central_value_config away")
        if minibatch % horizon:
            raise UserError(
                f"train.params.config.minibatch_size is {minibatch} rows: vtrace needs a multiple of horizon_length, {horizon}, "
                "because a minibatch holds whole rollouts"
            )
        seq_length = config.get("seq_length", 4)
        if policy.is_rnn and seq_length != horizon:
            raise UserError(f"train.params.config.seq_length is {seq_length}: vtrace with memory needs that of horizon_length, {horizon}")
        if options.replay and world_size() > 1:
            raise UserError(f"train.params.config.replay is {options.replay}: with {world_size()} ranks vtrace keeps no rollouts; set 0")

    def setup(self):
        super().setup()
        self.replay = self.register("replay", Replay(self.options.replay, self.horizon_length))

    def rollout_fields(self):
        return {"all_rewards": ((self.value_size,), torch.float32)}  # combined, with the bootstrap of time-outs

    def steps_together(self):
        return self.horizon_length

    def advantages(self, rollout, rewards, last_values):
        rollout.all_rewards.copy_(rewards)
        return super().advantages(rollout, rewards, last_values)  # V-trace with pi = mu; the value normalizer learns from it

    def policy_loss(self, mb, out):
        return a2c_loss(out.neglogp, mb.advantages)  # (B,)

    def total_loss(self, mb, out):
        loss, parts = self.corrected_loss(mb, out)
        if self.replay.batches:
            old = self.replay.draw(len(mb) // self.horizon_length)
            old_loss, old_parts = self.corrected_loss(old, self.evaluate_actions(old))
            loss = (loss + old_loss) / 2
            parts.update({f"replay_{name}": value for name, value in old_parts.items()})
        return loss, parts

    def corrected_loss(self, mb, out):
        mb = self.corrected(mb, out)
        loss, parts = super().total_loss(mb, out)
        return loss, {**parts, "rho": self.mean(mb.rho, mb.mask)}

    def extra_update(self, batch):
        if self.options.replay:
            self.replay.add(batch)
        return super().extra_update(batch)

    @torch.no_grad()
    def corrected(self, mb, out):
        """The minibatch with V-trace's returns (B, V), normalized as out.values are, weighted advantages and their weights rho (B,), and a
        mask (B,) without the last steps."""
        ratios = torch.exp(mb.old_neglogp - out.neglogp)  # (B,) pi / mu
        rho = ratios.clamp(max=self.options.rho_bar)
        values = self.value_mean_std(out.values, denorm=True) if self.normalize_value else out.values
        rewards, values, dones, ratios = (self.in_time(x) for x in (mb.all_rewards, values, mb.dones_after, ratios))
        cuts = (self.options.rho_bar, self.options.c_bar)
        targets, advantages, has_next = vtrace(rewards, values, dones, ratios, self.gamma, self.tau, *cuts)
        targets, advantages, mask = (flat(x) for x in (targets, advantages, has_next))
        if mb.mask is not None:
            mask = mask * mb.mask
        advantages = advantages.sum(dim=1)
        if self.normalize_advantage:
            advantages = self.normalize_advantages(advantages, mask)
        returns = self.value_mean_std(targets) if self.normalize_value else targets
        return mb.replace(returns=returns, advantages=rho * advantages, rho=rho, mask=mask)

    def in_time(self, rows):
        """(n * T, ...) rows of n environments -> (T, n, ...)."""
        return rows.unflatten(0, (-1, self.horizon_length)).transpose(0, 1)


def vtrace(
    rewards: Tensor, values: Tensor, dones_after: Tensor, ratios: Tensor, gamma: float, lam: float, rho_bar: float, c_bar: float
) -> tuple[Tensor, Tensor, Tensor]:
    """V-trace's targets v (T, N, V), the advantages r + gamma v_next - V (T, N, V), and (T, N) which steps have both.

    rewards, values (T, N, V): V(x_t); dones_after, ratios (T, N): pi/mu. The last step's value is all that follows the step before it, and
    that step itself has targets only if the episode ended with it.
    """
    alive = (1.0 - dones_after).unsqueeze(2)
    has_next = torch.ones_like(dones_after)
    has_next[-1] = dones_after[-1]
    next_values = torch.cat([values[1:], values[-1:]])
    rho, c = ratios.clamp(max=rho_bar).unsqueeze(2), lam * ratios.clamp(max=c_bar).unsqueeze(2)
    corrections = has_next.unsqueeze(2) * rho * (rewards + gamma * alive * next_values - values)  # v - V, summed up from the end
    for t in range(len(rewards) - 2, -1, -1):
        corrections[t] += gamma * alive[t] * c[t] * corrections[t + 1]
    targets = values + corrections
    next_targets = torch.cat([targets[1:], targets[-1:]])
    return targets, rewards + gamma * alive * next_targets - values, has_next
