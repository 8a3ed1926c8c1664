"""From EnvPool's spaces to those that a policy can use, and the values with them: batches of all environments at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

from core.errors import UserError, unknown
from tasks.spaces import float_obs, float_space

COUNTERS = ("step_count", "step")  # Discrete spaces that count: one number, not as many as an episode may have steps
ONE_HOT_LIMIT = 1024  # choices; a larger Discrete observation is one number
NO_BOUND = 1e6  # a Box of actions beyond this (VizDoom's 1.8e308, LQR's 1e10) has no scale that a policy could be stretched to
MASK = "action_mask"  # Jumanji's name for it, among the observations

Convert = Callable[[np.ndarray], np.ndarray]


class Observations:
    """What the policy sees of EnvPool's observations, in one space and one structure.

    With `flatten`, one vector of all parts in EnvPool's order (with `key`, of that one), except where they are one picture of bytes
    (H, W, C) or (C, H, W). Without it a Dict stays one, whose nested parts are vectors. Either way Discrete numbers become one-hot, but
    counters one number, and booleans 0 or 1. `action_mask` is left out: it comes as the mask. With `one_hot`, the choices of each channel,
    a picture of symbols (H, W, C) becomes one-hot, (H, W, sum of choices) or flat; a symbol beyond them is all zeros.

    Raises UserError for a `key` that is not there, and for `one_hot` where it does not fit.
    """

    def __init__(self, space: spaces.Space, flatten: bool, key: str | None, one_hot: Sequence[int] | None = None) -> None:
        self.key = key
        self.space: spaces.Space
        self._parts: dict[str, Convert] | None = None
        if key is not None:
            if not isinstance(space, spaces.Dict):
                raise UserError(f"task.obs_key='{key}': the observations of this environment have no parts, they are {space}")
            if key not in space.spaces:
                raise unknown("part of the observation", key, space.spaces, "task.obs_key")
            space = spaces.Dict({key: space[key]}) if flatten and one_hot is None else space[key]
        if one_hot is not None:
            self.space, self._whole = _symbols(space, one_hot, flatten)
            return
        if not isinstance(space, spaces.Dict):
            self.space, self._whole = _leaf("", space, flatten and not _is_picture(space))
            return
        found = {name: _part(name, sub, flatten) for name, sub in space.spaces.items() if name != MASK}
        self._parts = {name: convert for name, (_, convert) in found.items()}
        self.space = (
            _joined([sub for sub, _ in found.values()]) if flatten else spaces.Dict({name: sub for name, (sub, _) in found.items()})
        )

    def __call__(self, obs: Any) -> Any:
        """obs: a tree of (N, ...). Returns (N, ...), or a dict of them."""
        if self._parts is None:
            return self._whole(obs if self.key is None else obs[self.key])
        parts = {name: convert(obs[name]) for name, convert in self._parts.items()}
        if isinstance(self.space, spaces.Dict):
            return parts
        return np.concatenate(list(parts.values()), axis=1)


class Actions:
    """The policy's actions for EnvPool's, and the masks for them.

    A Box of floats gets one dimension; one without bounds goes from -1 to 1. Integers become Discrete, or MultiDiscrete where there are
    several. Where a mask says which *combinations* are allowed (Tetris: rotation and column), they become one Discrete of all
    combinations, in C order, as no mask of single numbers could say it.

    Args:
        mask_shape: of one environment's mask; None: there is none.
        sizes: choices per number, where EnvPool's bounds, the same for all numbers, say too much.
    """

    def __init__(self, space: spaces.Space, mask_shape: tuple[int, ...] | None, sizes: list[int] | None = None) -> None:
        self.space: spaces.Space = space
        self.choices = None if mask_shape is None else int(np.prod(mask_shape))  # numbers in a row of the mask
        self._shape: tuple[int, ...] = space.shape or ()
        self._start: Any = 0
        self._combined: tuple[int, ...] | None = None
        if isinstance(space, spaces.Discrete):
            self._start, self.space = int(space.start), spaces.Discrete(int(space.n))
        elif isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.integer):
            numbers = int(np.prod(self._shape))
            if mask_shape is not None and not (len(mask_shape) == 2 and mask_shape[0] == numbers):
                self._combined, self.space = mask_shape, spaces.Discrete(int(np.prod(mask_shape)))
            else:
                self._start = space.low.reshape(-1)
                self.space = spaces.MultiDiscrete(sizes or (space.high.reshape(-1).astype(np.int64) - self._start + 1))
        elif isinstance(space, spaces.Box):
            low, high = space.low.reshape(-1).astype(np.float64), space.high.reshape(-1).astype(np.float64)
            endless = (high >= NO_BOUND) | (low <= -NO_BOUND)
            low[endless], high[endless] = -1.0, 1.0
            self.space = spaces.Box(low.astype(np.float32), high.astype(np.float32), dtype=np.float32)

    def __call__(self, actions: np.ndarray) -> np.ndarray:
        """(N,) or (N, A) of the policy's space to (N, ...) of EnvPool's. Raises UserError for a NaN or an infinite number."""
        if isinstance(self.space, spaces.Box):
            if not np.isfinite(actions.sum()):
                row = int(np.flatnonzero(~np.isfinite(actions).reshape(len(actions), -1).all(axis=1))[0])
                raise UserError(f"an action is not finite: {actions[row]} for environment {row}. The policy has diverged")
        elif self._combined is not None:
            actions = np.stack(np.unravel_index(actions, self._combined), axis=1)
        elif np.any(self._start):
            actions = actions + self._start
        return actions if actions.ndim == 1 + len(self._shape) else actions.reshape(len(actions), *self._shape)

    def mask(self, mask: np.ndarray) -> np.ndarray:
        """(N, choices) booleans. A row in which nothing is allowed, which an ended game may show, allows everything: no action of it is
        carried out."""
        flat = np.array(mask, dtype=bool).reshape(len(mask), -1)
        flat[~flat.any(axis=1)] = True
        return flat


def _is_picture(space: spaces.Space) -> bool:
    return isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) == 3


def _part(name: str, space: spaces.Space, flatten: bool) -> tuple[spaces.Box, Convert]:
    """A part of a Dict, where a nested one is one vector."""
    if not isinstance(space, spaces.Dict):
        return _leaf(name, space, flatten)
    inner = {key: _part(key, sub, True) for key, sub in space.spaces.items() if key != MASK}
    steps = {key: convert for key, (_, convert) in inner.items()}

    def convert(values: Mapping[str, Any]) -> np.ndarray:
        return np.concatenate([step(values[key]) for key, step in steps.items()], axis=1)

    return _joined([sub for sub, _ in inner.values()]), convert  # type: ignore[return-value]  # of a nested dict, not of an array


def _leaf(name: str, space: spaces.Space, flatten: bool) -> tuple[spaces.Box, Convert]:
    """The Box of one array and the function of its batches: float32, or bytes as they are; with `flatten`, one dimension."""
    if isinstance(space, spaces.Discrete):
        if space.n > ONE_HOT_LIMIT or name in COUNTERS:
            low, high = float(space.start), float(space.start + space.n - 1)
            return spaces.Box(low, high, (1,), np.float32), lambda x: x.reshape(-1, 1).astype(np.float32)
        values = np.arange(space.start, space.start + space.n)
        return spaces.Box(0.0, 1.0, (int(space.n),), np.float32), lambda x: (x.reshape(-1, 1) == values).astype(np.float32)
    if isinstance(space, spaces.MultiBinary):
        box: Any = spaces.Box(0.0, 1.0, space.shape, np.float32)
    else:
        box = float_space(space)
    if not flatten and box.shape:
        return box, float_obs
    flat = spaces.Box(box.low.reshape(-1), box.high.reshape(-1), dtype=box.dtype)
    return flat, lambda x: float_obs(x).reshape(len(x), -1)


def _symbols(space: spaces.Space, choices: Sequence[int], flatten: bool) -> tuple[spaces.Box, Convert]:
    """The Box and the function of `Observations`' one_hot."""
    shape = space.shape or ()
    if not _is_picture(space) or len(choices) != shape[-1] or min(choices) < 1:
        raise UserError(
            f"task.one_hot={list(choices)} needs a picture of symbols (H, W, C), bytes, and the choices of each of its C channels: "
            f"[11, 6, 4] for MiniGrid's, with task.obs_key=image. Here the observation is {space}"
        )
    channel = np.repeat(np.arange(len(choices)), choices)  # (K,): which channel each number is about, and which symbol it stands for
    symbol = np.concatenate([np.arange(n) for n in choices])
    to = (int(np.prod(shape[:2])) * len(symbol),) if flatten else (*shape[:2], len(symbol))
    return spaces.Box(0.0, 1.0, to, np.float32), lambda x: (x[..., channel] == symbol).astype(np.float32).reshape(len(x), *to)


def _joined(parts: list[spaces.Box]) -> spaces.Box:
    """The space of the parts one after the other; bytes only where all are."""
    low, high = np.concatenate([part.low for part in parts]), np.concatenate([part.high for part in parts])
    return spaces.Box(low, high, dtype=low.dtype.type)
