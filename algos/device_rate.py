"""The learning rate on the device: an update whose adaptive schedule asks the host nothing between its first and last minibatch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from rl_games.common.schedulers import AdaptiveScheduler, IdentityScheduler, LinearScheduler
from torch import Tensor

if TYPE_CHECKING:
    from algos.agent import Agent

KNOWN = (AdaptiveScheduler, IdentityScheduler, LinearScheduler)


class DeviceRate:
    """What rl_games' schedulers do, as arithmetic on tensors that stay where they are.

    From `load` to `store` the optimizer's `lr` and the agent's `entropy_coef` are these tensors. `exact` () float64 is the number that the
    host would hold, `lr` () its float32 rounding, which torch's fused Adam reads. What does not depend on the KL divergence (a linear
    schedule) is computed by the host at `load`, and taken over at the first `advance`, as there.
    """

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        device = agent.policy.device
        self.exact, self.coming, self.entropy, self.coming_entropy = torch.zeros((4,), dtype=torch.float64, device=device).unbind()
        self.lr = torch.zeros((), dtype=torch.float32, device=device)

    @staticmethod
    def of(agent: Agent) -> DeviceRate | None:
        """None where the host must schedule: on its own device, under several ranks, and where somebody's own code might read the rate
        in the middle of an update."""
        if not agent.on_gpu or agent.fast.by_hand is None or agent.ranks.world > 1 or type(agent.scheduler) not in KNOWN:
            return None
        return DeviceRate(agent)

    def load(self) -> None:
        """Begins an update."""
        agent = self.agent
        coming = (agent.last_lr, agent.entropy_coef)
        if not agent.is_adaptive_lr:
            coming = agent.scheduler.update(*coming, agent.epoch_num, agent.schedule_frames(), 0.0)
        values = ((self.exact, agent.last_lr), (self.lr, agent.last_lr), (self.coming, coming[0]))
        for tensor, value in (*values, (self.entropy, agent.entropy_coef), (self.coming_entropy, coming[1])):
            tensor.fill_(value)
        self._hand_out(self.lr, self.entropy)

    def advance(self, kl: Tensor) -> None:
        """What the scheduler's `update` does; kl: ()."""
        self.exact.copy_(adapted(self.exact, kl, self.agent.scheduler) if self.agent.is_adaptive_lr else self.coming)
        self.lr.copy_(self.exact)
        self.entropy.copy_(self.coming_entropy)

    def store(self) -> None:
        """Ends an update: the host's numbers again."""
        self.agent.last_lr, entropy = torch.stack([self.exact, self.entropy]).tolist()
        self._hand_out(self.agent.last_lr, entropy)

    def _hand_out(self, lr: Any, entropy: Any) -> None:
        self.agent.entropy_coef = entropy
        for group in self.agent.optimizer.param_groups:
            group["lr"] = lr


def adapted(lr: Tensor, kl: Tensor, scheduler: AdaptiveScheduler) -> Tensor:
    """rl_games' AdaptiveScheduler: lr () float64 by a factor of 1.5 down where the KL is above twice its threshold, up where it is below
    half of it."""
    slower = (lr / 1.5).clamp_min(scheduler.min_lr)
    faster = (lr * 1.5).clamp_max(scheduler.max_lr)
    kl = kl.double()  # as the host compares
    return torch.where(kl < 0.5 * scheduler.kl_threshold, faster, torch.where(kl > 2.0 * scheduler.kl_threshold, slower, lr))
