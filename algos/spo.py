"""SPO: Simple Policy Optimization, Xie et al. 2024 (https://arxiv.org/abs/2401.16025), the objective of section 4:

    maximise  r A - |A| / (2 eps) (r - 1)^2,   r = pi(a|s) / pi_old(a|s)

Where PPO's clip lets go of a ratio that has left [1 - eps, 1 + eps], this pulls it back: the parabola's top is at 1 + sign(A) eps.
"""

from __future__ import annotations

import torch

from algos.agent import Agent
from core.registry import register_algo


@register_algo("spo")
class SPO(Agent):
    def policy_loss(self, mb, out):
        ratio = torch.exp(mb.old_neglogp - out.neglogp)  # (B,)
        return mb.advantages.abs() / (2 * self.e_clip) * (ratio - 1) ** 2 - mb.advantages * ratio
