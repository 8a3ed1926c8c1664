"""The default losses with their derivatives written out: one node of the autograd graph instead of thirty.

The formulas are those of algos/losses.py and of rl_games' models (tests hold them together). A hook that is overridden takes the place
of its part, and autograd differentiates it as usual.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from core.fused import differentiated_once

HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)


class Tape:
    """Stands in for autograd's context, so that a function's two halves can be called without a graph between them."""

    saved_tensors: tuple[Any, ...] = ()
    d_entropy: Any = None

    def save_for_backward(self, *tensors: Any) -> None:
        self.saved_tensors = tensors

    def mark_non_differentiable(self, *tensors: Any) -> None:
        """Nothing is differentiated that is not asked for."""

    def set_materialize_grads(self, value: bool) -> None:
        """Missing gradients stay None."""


class Gaussian(torch.autograd.Function):
    """(mus (B, A), logstd (A,) or (B, A), actions (B, A)) -> neglogp (B,), entropy (B,) of the diagonal Gaussian."""

    @staticmethod
    def forward(ctx: Any, mus: Tensor, logstd: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        sigma = logstd.exp()
        z = (actions - mus).div_(sigma)
        log_volume = logstd.sum(dim=-1)
        neglogp = (z * z).sum(dim=-1).mul_(0.5).add_(HALF_LOG_2PI * mus.shape[-1]).add_(log_volume)
        entropy = (log_volume + (0.5 + HALF_LOG_2PI) * mus.shape[-1]).expand(mus.shape[0])
        ctx.save_for_backward(z, sigma)
        return neglogp, entropy

    @staticmethod
    @differentiated_once
    def backward(ctx: Any, d_neglogp: Tensor, d_entropy: Tensor) -> tuple[Tensor | None, ...]:
        z, sigma = ctx.saved_tensors
        weighted = z * d_neglogp.unsqueeze(1)
        d_logstd = d_neglogp.unsqueeze(1) - weighted * z + _per_row(d_entropy)
        if sigma.dim() == 1:
            d_logstd = d_logstd.sum(dim=0)
        return weighted.div_(sigma).neg_(), d_logstd, None


class Categorical(torch.autograd.Function):
    """(logits (B, choices), actions (B,)) -> neglogp (B,), entropy (B,), log-probabilities (B, choices)."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        logp = torch.log_softmax(logits, dim=-1)
        p = logp.exp()
        index = actions.unsqueeze(1)
        entropy = (p * logp).sum(dim=-1).neg_()
        ctx.save_for_backward(logp, p, entropy, index)
        return logp.gather(1, index).squeeze(1).neg_(), entropy, logp

    @staticmethod
    @differentiated_once
    def backward(ctx: Any, d_neglogp: Tensor | None, d_entropy: Tensor | None, d_logp: Tensor | None) -> tuple[Tensor | None, ...]:
        logp, p, entropy, index = ctx.saved_tensors
        total = torch.zeros_like(logp) if d_logp is None else d_logp - p * d_logp.sum(dim=-1, keepdim=True)
        if d_entropy is not None:
            total.sub_((logp + entropy.unsqueeze(1)).mul_(p).mul_(_per_row(d_entropy)))
        if d_neglogp is not None:
            weight = d_neglogp.unsqueeze(1)
            total.add_(p * weight).scatter_add_(1, index, -weight)
        return total, None


class StandardLoss(torch.autograd.Function):
    """What `Agent.total_loss` gives for default hooks: clipped surrogate, (clipped) value error, entropy, bounds.

    Args:
        neglogp, entropy: (B,); values: (B, V), or None without a value loss; mus: (B, A), or None without the bounds loss.
        rows: old_neglogp (B,), advantages (B,), old_values (B, V), returns (B, V), mask (B,) or None.
        weights: e_clip, clip_value, the weight of each loss (value, entropy, bounds), and whether means are taken over the mask.

    Returns the scalar loss, then the means of the four parts, which have no gradient.
    """

    @staticmethod
    def forward(
        ctx: Any,
        neglogp: Tensor,
        entropy: Tensor,
        values: Tensor | None,
        mus: Tensor | None,
        rows: tuple[Any, ...],
        weights: tuple[Any, ...],
    ) -> tuple[Tensor, ...]:
        old_neglogp, advantages, old_values, returns, mask = rows
        e_clip, clip_value, value_weight, entropy_weight, bounds_weight = weights
        count = neglogp.shape[0]
        share = None if mask is None else mask / mask.sum().clamp_min(1.0)  # what each row adds to a mean

        def mean(x: Tensor) -> Tensor:
            return x.mean() if share is None else (x * share).sum()

        ratio = (old_neglogp - neglogp).exp_()
        surrogate = ratio * advantages
        clipped = ratio.clamp_(1.0 - e_clip, 1.0 + e_clip).mul_(advantages)
        policy = mean(torch.minimum(surrogate, clipped)).neg_()
        d_neglogp = _weigh(surrogate.mul_(surrogate <= clipped), 1.0, share, count)
        loss = policy

        value, d_values = policy.new_zeros(()), None
        if values is not None:
            error = values - returns
            square = error * error
            if clip_value:
                change = values - old_values
                moved = change.clamp(-e_clip, e_clip).add_(old_values).sub_(returns)
                moved.mul_(moved)
                error.mul_((square >= moved).logical_or_(change.abs_() <= e_clip))  # within the range both are the same error
                square = torch.maximum(square, moved)
            width = values.shape[1]
            value = mean(square.mean(dim=1) if width > 1 else square.squeeze(1))
            d_values = _weigh(error, 2.0 * value_weight / width, share, count)
            loss = loss + value * value_weight

        entropy_mean = mean(entropy)
        loss = loss - entropy_mean * entropy_weight

        bounds, d_mus = policy.new_zeros(()), None
        if mus is not None:
            excess = (mus - 1.1).clamp_min_(0.0).add_((mus + 1.1).clamp_max_(0.0))
            bounds = mean((excess * excess).sum(dim=-1))
            d_mus = _weigh(excess, 2.0 * bounds_weight, share, count)
            loss = loss + bounds * bounds_weight

        ctx.d_entropy = -entropy_weight / count if share is None else share * -entropy_weight
        ctx.save_for_backward(d_neglogp, d_values, d_mus)
        parts = (policy, value, entropy_mean, bounds)
        loss = loss.clone() if loss is policy else loss
        ctx.mark_non_differentiable(*parts)
        return loss, *parts

    @staticmethod
    @differentiated_once
    def backward(ctx: Any, scale: Tensor, *unused: Any) -> tuple[Tensor | None, ...]:
        d_neglogp, d_values, d_mus = ctx.saved_tensors
        d_entropy = (scale * ctx.d_entropy).expand_as(d_neglogp) if ctx.needs_input_grad[1] else None
        scaled = [None if d is None else d * scale for d in (d_values, d_mus)]
        return d_neglogp * scale, d_entropy, *scaled, None, None


def _per_row(weight: Any) -> Any:
    """One weight for all rows (a float, or a tensor on the device) as it is; (B,) as a column."""
    return weight.unsqueeze(1) if isinstance(weight, Tensor) and weight.dim() else weight


def _weigh(grad: Tensor, weight: float, share: Tensor | None, count: int) -> Tensor:
    """Times weight and each row's share in the mean, in place."""
    if share is None:
        return grad.mul_(weight / count)
    return grad.mul_((share * weight).reshape(-1, *[1] * (grad.dim() - 1)))
