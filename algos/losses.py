"""Losses and returns as pure functions: tensors in, per-sample tensors out. No reduction, no coefficient, no agent.

Shapes: B minibatch, T horizon, N rows, A action size, V value size. `neglogp` is -log pi(a|s), as rl_games stores it.
Each function does rl_games 1.6.5's arithmetic in rl_games' order, so that results agree to the last bit.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def ppo_loss(old_neglogp: Tensor, neglogp: Tensor, advantages: Tensor, e_clip: float) -> Tensor:
    """Clipped surrogate, Schulman et al. 2017 (1707.06347) eq. 7: max(-A r, -A clip(r, 1 - e, 1 + e)), r = exp(old - new).

    All arguments and the result: (B,).
    """
    ratio = torch.exp(old_neglogp - neglogp)
    clipped = torch.clamp(ratio, 1.0 - e_clip, 1.0 + e_clip)
    return torch.max(-(advantages * ratio), -(advantages * clipped))


def smooth_ppo_loss(old_neglogp: Tensor, neglogp: Tensor, advantages: Tensor, e_clip: float) -> Tensor:
    """rl_games' `use_smooth_clamp`: the hard clip of `ppo_loss` replaced by a sigmoid between the same bounds. (B,)"""
    ratio = torch.exp(old_neglogp - neglogp)
    low, high = 1.0 - e_clip, 1.0 + e_clip
    clipped = 1 / (1 + torch.exp((-(ratio - low) / (high - low) + 0.5) * 4)) * (high - low) + low
    return torch.max(-(advantages * ratio), -(advantages * clipped))


def a2c_loss(neglogp: Tensor, advantages: Tensor) -> Tensor:
    """Policy gradient without ratio (rl_games' `ppo: False`): -log pi(a|s) * A. (B,)"""
    return neglogp * advantages


def value_loss(old_values: Tensor, values: Tensor, returns: Tensor, e_clip: float, clip_value: bool) -> Tensor:
    """Squared error, clipped around the old prediction where `clip_value`. All (B, V)."""
    if not clip_value:
        return (returns - values) ** 2
    clipped = old_values + (values - old_values).clamp(-e_clip, e_clip)
    return torch.max((values - returns) ** 2, (clipped - returns) ** 2)


def bound_loss(mus: Tensor, soft_bound: float = 1.1) -> Tensor:
    """Pushes action means back into [-1.1, 1.1]: squared excess, summed over actions. mus (B, A) -> (B,)."""
    high = torch.clamp_min(mus - soft_bound, 0.0) ** 2
    low = torch.clamp_max(mus + soft_bound, 0.0) ** 2
    return (low + high).sum(dim=-1)


def gaussian_neglogp(actions: Tensor, mus: Tensor, sigmas: Tensor) -> Tensor:
    """-log N(actions; mus, sigmas), diagonal. All (B, A) -> (B,)."""
    return (
        0.5 * (((actions - mus) / sigmas) ** 2).sum(dim=-1)
        + 0.5 * math.log(2.0 * math.pi) * actions.size(-1)
        + torch.log(sigmas).sum(dim=-1)
    )


def gaussian_kl(mus: Tensor, sigmas: Tensor, old_mus: Tensor, old_sigmas: Tensor) -> Tensor:
    """KL(new || old) of diagonal Gaussians with rl_games' stabilisers. All (B, A) -> (B,)."""
    log_ratio = torch.log(old_sigmas / sigmas + 1e-5)
    quadratic = (sigmas**2 + (old_mus - mus) ** 2) / (2.0 * (old_sigmas**2 + 1e-5))
    return (log_ratio + quadratic - 0.5).sum(dim=-1)


def neglogp_kl(old_neglogp: Tensor, neglogp: Tensor) -> Tensor:
    """Schulman's second-order estimate of the KL from samples: 0.5 (log p_old - log p_new)^2. (B,) -> (B,)."""
    return 0.5 * (old_neglogp - neglogp) ** 2


def gae(rewards: Tensor, values: Tensor, last_values: Tensor, dones_after: Tensor, gamma: float, tau: float) -> Tensor:
    """Generalised advantage estimation, Schulman et al. 2015 (1506.02438) eq. 16.

    rewards, values (T, N, V); last_values (N, V), the value of the observation after the last step; dones_after (T, N),
    1 where the episode ended with that step. A time-out's bootstrap is already in the rewards. Returns advantages (T, N, V).
    """
    alive = (1.0 - dones_after).unsqueeze(2)
    next_values = torch.cat([values[1:], last_values.unsqueeze(0)])
    advantages = rewards + gamma * next_values * alive - values  # the temporal differences, summed up in place from the end
    decay = gamma * tau * alive
    steps, decays = advantages.unbind(0), decay.unbind(0)
    for t in range(len(steps) - 2, -1, -1):
        steps[t].add_(decays[t] * steps[t + 1])
    return advantages


def masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over the rows where mask (B,) is 1; over all rows where it is None. values (B,) or (B, V)."""
    if mask is None:
        return values.mean()
    mask = mask.reshape(-1, *[1] * (values.dim() - 1)).to(values.dtype)
    return (values * mask).sum() / (mask.sum() * values[0].numel()).clamp_min(1.0)


def normalized(values: Tensor, mask: Tensor | None = None, eps: float = 1e-8) -> Tensor:
    """(values - mean) / (std + eps) with the unbiased std over the rows where mask is 1. (L,) -> (L,)."""
    kept = values if mask is None else values[mask.bool()]
    return (values - kept.mean()) / (kept.std() + eps)
