"""Convolutions for pictures: Mnih et al. 2015 and Espeholt et al. 2018 as modules, for pictures with their channels first or last."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from core.errors import UserError

NATURE = ((32, 8, 4), (64, 4, 2), (64, 3, 1))  # filters, kernel, stride


def picture_shape(network: str, obs_shape: Any) -> tuple[tuple[int, int, int], bool]:
    """((C, H, W), whether the channels come last in the observation). The smaller of first and last size are the channels, as for
    `cnn: auto`. Raises UserError where the observations are no pictures."""
    if not isinstance(obs_shape, tuple) or len(obs_shape) != 3:
        what = f"a Dict of {', '.join(obs_shape)}" if isinstance(obs_shape, dict) else f"shape {obs_shape}"
        raise UserError(
            f"network '{network}' reads pictures, (C, H, W) or (H, W, C), but the task's observations have {what} "
            "(train.params.network.name, docs/networks.md)"
        )
    if obs_shape[2] < obs_shape[0]:
        return (obs_shape[2], obs_shape[0], obs_shape[1]), True
    return obs_shape, False


class Convolutions(nn.Module):
    """(B, C, H, W) or (B, H, W, C) -> (B, F), F = `size`: `body`, flattened, a linear layer, ReLU.

    body: (B, C, H, W) -> (B, C', H', W').
    """

    def __init__(self, body: nn.Module, shape: tuple[int, int, int], channels_last: bool, units: int) -> None:
        super().__init__()
        self.body, self.channels_last, self.size = body, channels_last, units
        with torch.no_grad():
            flattened = body(torch.zeros(1, *shape)).numel()
        self.linear = nn.Linear(flattened, units)

    def forward(self, obs: Tensor) -> Tensor:
        if self.channels_last:
            obs = rearrange(obs, "b h w c -> b c h w")
        hidden = rearrange(self.body(obs), "b c h w -> b (c h w)")
        return torch.relu(self.linear(torch.relu(hidden)))


def nature_cnn(network: str, obs_shape: Any, units: int = 512) -> Convolutions:
    """Three convolutions without padding, each with ReLU. 84 x 84 -> 20 x 20 -> 9 x 9 -> 7 x 7, then `units`.

    Raises UserError for pictures under 36 x 36, the least that leaves one number per filter.
    """
    shape, channels_last = picture_shape(network, obs_shape)
    least = 1
    for _, kernel, stride in reversed(NATURE):
        least = (least - 1) * stride + kernel
    if min(shape[1:]) < least:
        raise UserError(
            f"network '{network}' needs pictures of at least {least} x {least}, but the task's are {shape[1]} x {shape[2]}: "
            "train.params.network.name=impala_cnn reads any size"
        )
    layers: list[nn.Module] = []
    for before, (filters, kernel, stride) in zip((shape[0], NATURE[0][0], NATURE[1][0]), NATURE, strict=True):
        layers += [nn.Conv2d(before, filters, kernel, stride), nn.ReLU()]
    return Convolutions(nn.Sequential(*layers), shape, channels_last, units)


def impala_cnn(network: str, obs_shape: Any, width: int = 1, channels: tuple[int, ...] = (16, 32, 32), units: int = 256) -> Convolutions:
    """Three stages of `Stage`, their channels times `width`, then `units`. Each halves the picture, rounding up: 84 -> 42 -> 21 -> 11,
    and 1 stays 1, so that any size will do."""
    shape, channels_last = picture_shape(network, obs_shape)
    sizes = [shape[0], *(width * c for c in channels)]
    return Convolutions(nn.Sequential(*[Stage(a, b) for a, b in itertools.pairwise(sizes)]), shape, channels_last, units)


class Stage(nn.Sequential):
    """3x3 convolution, 3x3 maximum with stride 2, two residual blocks. (B, before, H, W) -> (B, channels, ceil(H/2), ceil(W/2))."""

    def __init__(self, before: int, channels: int) -> None:
        pool = nn.MaxPool2d(3, stride=2, padding=1)
        super().__init__(nn.Conv2d(before, channels, 3, padding=1), pool, Residual(channels), Residual(channels))


class Residual(nn.Module):
    """x + conv(relu(conv(relu(x)))), 3x3 each. (B, channels, H, W) -> the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(torch.relu(self.first(torch.relu(x))))
