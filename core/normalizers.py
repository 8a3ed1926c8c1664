"""Normalizers: those that rl_games 1.6.5 lacks, and its `RunningMeanStd` fed and read in one go instead of at every step."""

from __future__ import annotations

from typing import Any

import torch
from rl_games.algos_torch.running_mean_std import RunningMeanStd
from torch import nn

from core.ranks import ALONE, Ranks


class DictRunningMeanStd(nn.Module):
    """One running mean and variance per key. Same buffer names as rl_games' `RunningMeanStdObs`, so its checkpoints load.

    forward: {key: (B, *shape_key)} -> the same shapes, each clipped to [-5, 5].
    """

    def __init__(self, shapes: dict[str, tuple[int, ...]]) -> None:
        super().__init__()
        self.running_mean_std = nn.ModuleDict({key: RunningMeanStd(shape) for key, shape in shapes.items()})

    def forward(self, obs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {key: self.running_mean_std[key](value) for key, value in obs.items()}


class MovingMeanStd(nn.Module):
    """Exponentially moving mean and standard deviation of a scalar stream, bias-corrected as in Adam.

    What rl_games' `normalize_rms_advantage` means to be (its own class raises at construction and at the first update).
    forward: (L,) -> (L,) normalized by the statistics after this batch, clipped to [-5, 5]. mask (L,): the rows that they see; None: all.
    """

    step: torch.Tensor
    mean: torch.Tensor
    square: torch.Tensor

    def __init__(self, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", torch.zeros((), dtype=torch.float64))
        self.register_buffer("square", torch.zeros((), dtype=torch.float64))

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        if self.training:
            seen = x if mask is None else x[mask.bool()]
            self.update(seen.mean(), (seen * seen).mean())
        seen = 1.0 - self.decay ** self.step.clamp_min(1).double()
        mean, square = self.mean / seen, self.square / seen
        std = torch.sqrt((square - mean * mean).clamp_min(1e-10))
        return ((x - mean.float()) / std.float()).clamp(-5.0, 5.0)

    def update(self, mean: torch.Tensor, square: torch.Tensor) -> None:
        """Counts one batch by its mean and its mean square, both ()."""
        self.step += 1
        self.mean.mul_(self.decay).add_((1 - self.decay) * mean)
        self.square.mul_(self.decay).add_((1 - self.decay) * square)


def learn(stats: Any, rows: torch.Tensor | dict[str, torch.Tensor], ranks: Ranks = ALONE) -> None:
    """Lets a RunningMeanStd (or the one for Dict observations) see rows (L, ...), as its own forward pass in training does. Of several
    ranks all must call it, and each sees the rows of all."""
    if isinstance(rows, dict):
        for key, value in rows.items():
            learn(stats.running_mean_std[key], value, ranks)
        return
    batch_mean, batch_var, count = ranks.moments(rows, stats.axis)
    total = stats.count + count
    delta = batch_mean - stats.running_mean
    squares = stats.running_var * stats.count + batch_var * count + delta**2 * stats.count * count / total
    stats.running_mean.copy_(stats.running_mean + delta * count / total)
    stats.running_var.copy_(squares / total)
    stats.count.copy_(total)


class Frozen:
    """A RunningMeanStd as it stands at the last `refresh`: the same numbers as its forward pass in eval mode, in three calls.

    `mean` and `std` stay where they are in memory, whatever the statistics' own tensors do, so that a CUDA graph may read them.
    """

    def __init__(self, stats: Any) -> None:
        self.stats = stats
        self.mean = torch.zeros_like(stats.running_mean, dtype=torch.float32)
        self.std = torch.zeros_like(self.mean)
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Reads the statistics anew; call it when they may have changed."""
        self.mean.copy_(self.stats.running_mean)
        self.std.copy_(torch.sqrt(self.stats.running_var.float() + self.stats.epsilon))

    def __call__(self, x: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """(L, ...) -> (x - mean) / std, clipped to [-5, 5]; into `out` where given."""
        return torch.sub(x, self.mean, out=out).div_(self.std).clamp_(-5.0, 5.0)

    def denormalize(self, x: torch.Tensor) -> torch.Tensor:
        """(L, ...) -> x clipped to [-5, 5], times std, plus mean."""
        return (x.clamp(-5.0, 5.0) * self.std).add_(self.mean)
