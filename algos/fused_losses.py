"""The default losses with their derivatives written out: one node of the autograd graph instead of thirty.

The formulas are those of algos/losses.py and of rl_games' models (tests hold them together). A hook that is overridden takes the place
of its part, and autograd differentiates it as usual.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from core.fused import differentiated_once

HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)


class Tape:
    """Stands in for autograd's context, so that a function's two halves can be called without a graph between them."""

    saved_tensors: tuple[Any, ...] = ()

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
        volume = log_volume + HALF_LOG_2PI * mus.shape[-1]
        half = z.new_full((mus.shape[-1],), 0.5)
        squares = z * z  # on a GPU, autocast would compute the product with them in bfloat16
        neglogp = volume + (half * squares).sum(dim=-1) if z.is_cuda else torch.addmv(volume, squares, half)
        entropy = (log_volume + (0.5 + HALF_LOG_2PI) * mus.shape[-1]).expand(mus.shape[0])
        ctx.save_for_backward(z, sigma)
        return neglogp, entropy

    @staticmethod
    @differentiated_once
    def backward(ctx: Any, d_neglogp: Tensor, d_entropy: Tensor | float) -> tuple[Tensor | None, ...]:
        """d_entropy: (B,), or one weight for all rows."""
        z, sigma = ctx.saved_tensors
        rows = d_neglogp + d_entropy
        weighted = z * d_neglogp.unsqueeze(1)
        squares = weighted * z
        d_logstd = rows.sum() - squares.sum(dim=0) if sigma.dim() == 1 else rows.unsqueeze(1) - squares
        return weighted.mul_(-sigma.reciprocal()), d_logstd, None


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
    def backward(ctx: Any, d_neglogp: Tensor | None, d_entropy: Tensor | float | None, d_logp: Tensor | None) -> tuple[Tensor | None, ...]:
        """d_entropy: (B,), or one weight for all rows."""
        logp, p, entropy, index = ctx.saved_tensors
        by_p: Tensor | float = 0.0 if d_neglogp is None else d_neglogp.unsqueeze(1)  # (B, choices): what is multiplied by p
        if d_entropy is not None:
            surprise = logp + entropy.unsqueeze(1)
            by_p = by_p - surprise.mul_(_per_row(d_entropy))
        if d_logp is not None:
            by_p = by_p - d_logp.sum(dim=-1, keepdim=True)
        total = p * by_p
        if d_logp is not None:
            total += d_logp
        if d_neglogp is not None:
            total.scatter_add_(1, index, -d_neglogp.unsqueeze(1))
        return total, None


class Rows(NamedTuple):
    """The default losses row by row, in the order of `LOSSES`, and how each row's part in their weighted sum changes with its inputs.

    None: not in the loss. Means are over the batch, or over the mask.
    """

    losses: tuple[Tensor | None, ...]  # (B,), the value loss (B, V)
    d_neglogp: Tensor  # (B,)
    d_values: Tensor | None  # (B, V)
    d_mus: Tensor | None  # (B, A)
    d_entropy: Tensor | float  # (B,), or one number for all rows
    share: Tensor | None  # (B,) what each row adds to a mean; None: all the same

    def mean(self, x: Tensor) -> Tensor:
        """x: (B,) or (B, V)."""
        return x.mean() if self.share is None else ((x.mean(dim=1) if x.dim() > 1 else x) * self.share).sum()


LOSSES = ("a_loss", "c_loss", "entropy", "bounds_loss")


def loss_rows(
    neglogp: Tensor, entropy: Tensor, values: Tensor | None, mus: Tensor | None, rows: tuple[Any, ...], weights: tuple[Any, ...]
) -> Rows:
    """Clipped surrogate, (clipped) value error, entropy, bounds: the arithmetic of `StandardLoss`, which explains the arguments."""
    old_neglogp, advantages, old_values, returns, mask = rows
    e_clip, clip_value, value_weight, entropy_weight, bounds_weight = weights
    count = neglogp.shape[0]
    share = None if mask is None else mask / mask.sum().clamp_min(1.0)

    ratio = (old_neglogp - neglogp).exp_()
    surrogate = ratio * advantages
    clipped = ratio.clamp_(1.0 - e_clip, 1.0 + e_clip).mul_(advantages)
    policy = torch.minimum(surrogate, clipped).neg_()
    d_neglogp = _weigh(surrogate.mul_(surrogate <= clipped), 1.0, share, count)

    value = d_values = None
    if values is not None:
        error = values - returns
        value = error * error
        if clip_value:
            # what clipping takes off the change is exactly 0 within the range, where both errors must be the same to the last bit
            moved = error - F.softshrink(values - old_values, e_clip)
            moved.mul_(moved)
            error.mul_(value >= moved)
            value = torch.maximum(value, moved)
        d_values = _weigh(error, 2.0 * value_weight / values.shape[1], share, count)

    bounds = d_mus = None
    if mus is not None:
        excess = F.softshrink(mus, 1.1)
        bounds = (excess * excess).sum(dim=-1)
        d_mus = _weigh(excess, 2.0 * bounds_weight, share, count) if bounds_weight else None

    d_entropy = -entropy_weight / count if share is None else share * -entropy_weight
    return Rows((policy, value, entropy, bounds), d_neglogp, d_values, d_mus, d_entropy, share)


class StandardLoss(torch.autograd.Function):
    """What `Agent.total_loss` gives for default hooks: clipped surrogate, (clipped) value error, entropy, bounds.

    Args:
        neglogp, entropy: (B,); values: (B, V), or None without a value loss; mus: (B, A), or None without the bounds loss.
        rows: old_neglogp (B,), advantages (B,), old_values (B, V), returns (B, V), mask (B,) or None.
        weights: e_clip, clip_value, the weight of each loss (value, entropy, bounds).

    Returns the scalar loss, then the means of the four parts (`LOSSES`), which have no gradient; None for a part that is not there.
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
    ) -> tuple[Tensor | None, ...]:
        found = loss_rows(neglogp, entropy, values, mus, rows, weights)
        _, _, value_weight, entropy_weight, bounds_weight = weights
        parts = [None if x is None else found.mean(x) for x in found.losses]
        factors = (1.0, value_weight, -entropy_weight, bounds_weight)
        loss = torch.stack([part * factor for part, factor in zip(parts, factors, strict=True) if part is not None]).sum()
        ctx.d_entropy = found.d_entropy
        ctx.save_for_backward(found.d_neglogp, found.d_values, found.d_mus)
        ctx.mark_non_differentiable(*[part for part in parts if part is not None])
        return loss, *parts

    @staticmethod
    @differentiated_once
    def backward(ctx: Any, scale: Tensor, *unused: Any) -> tuple[Tensor | None, ...]:
        d_neglogp, d_values, d_mus = ctx.saved_tensors
        d_entropy = (scale * ctx.d_entropy).expand_as(d_neglogp) if ctx.needs_input_grad[1] else None
        scaled = [None if d is None else d * scale for d in (d_values, d_mus)]
        return d_neglogp * scale, d_entropy, *scaled, None, None


def gaussian_mean_kl(mus: Tensor, sigma: Tensor, old_mus: Tensor, old_sigmas: Tensor) -> Tensor:
    """The mean over all rows of `losses.gaussian_kl`, for a sigma (A,) that all of them share; the rest (B, A). -> ()"""
    old_square = torch.mul(old_sigmas, old_sigmas).add_(1e-5)
    kl = old_mus - mus
    kl.mul_(kl).add_(sigma * sigma).div_(old_square).mul_(0.5)
    kl.add_((old_sigmas / sigma).add_(1e-5).log_())
    return kl.sum() / kl.shape[0] - 0.5 * kl.shape[1]


def categorical_mean_kl(old_neglogp: Tensor, neglogp: Tensor) -> Tensor:
    """The mean over all rows (B,) of `losses.neglogp_kl`. -> ()"""
    change = old_neglogp - neglogp
    return torch.dot(change, change) * (0.5 / len(change))


def _per_row(weight: Any) -> Any:
    """One weight for all rows (a float, or a tensor on the device) as it is; (B,) as a column."""
    return weight.unsqueeze(1) if isinstance(weight, Tensor) and weight.dim() else weight


def _weigh(grad: Tensor, weight: float, share: Tensor | None, count: int) -> Tensor:
    """Times weight and each row's share in the mean, in place."""
    if share is None:
        return grad.mul_(weight / count)
    return grad.mul_((share * weight).reshape(-1, *[1] * (grad.dim() - 1)))
