"""PPO: Proximal Policy Optimization, Schulman et al. 2017 (https://arxiv.org/abs/1707.06347), eq. 7:

    L(theta) = E[ min(r A, clip(r, 1 - eps, 1 + eps) A) ],   r = pi(a|s) / pi_old(a|s)

The hooks' defaults are PPO, so there is nothing to override. `a2c_continuous` and `a2c_discrete` are rl_games' own names for it:
their YAML files run here unchanged.
"""

from __future__ import annotations

from algos.agent import Agent
from core.registry import register_algo


@register_algo("ppo")
@register_algo("a2c_continuous", actions=("continuous",))
@register_algo("a2c_discrete", actions=("discrete", "multi_discrete"))
class PPO(Agent):
    """PPO as rl_games implements it, its defects repaired (algos/options.py)."""
