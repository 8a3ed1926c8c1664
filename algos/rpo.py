"""RPO: Robust Policy Optimization in deep RL, Rahman and Xue 2022 (https://arxiv.org/abs/2212.07536), eq. 4:

    a ~ N(mu, sigma) to act;   log pi(a|s) = log N(a; mu + z, sigma),  z ~ U(-alpha, alpha), to learn

The policy that is updated is the Gaussian whose mean a uniform number has moved, which keeps it exploring to the end.
"""

from __future__ import annotations

import dataclasses

import torch

from algos.agent import Agent
from algos.losses import gaussian_neglogp
from algos.options import AgentOptions
from core.registry import register_algo
from core.schema import NonNegative


@dataclasses.dataclass(kw_only=True)
class RPOOptions(AgentOptions):
    rpo_alpha: NonNegative = 0.5
    """Half-width of the uniform perturbation, in units of the policy's actions ([-1, 1]); 0 is PPO."""


@register_algo("rpo", config=RPOOptions, actions=("continuous",))
class RPO(Agent):
    def evaluate_actions(self, mb):
        out = super().evaluate_actions(mb)
        z = torch.empty_like(out.mus).uniform_(-self.options.rpo_alpha, self.options.rpo_alpha)  # (B, A)
        out.neglogp = gaussian_neglogp(mb.actions, out.mus + z, out.sigmas)  # (B,)
        return out
