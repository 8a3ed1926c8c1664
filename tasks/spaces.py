"""From any gymnasium space to those that a policy here can use: Box (or a flat dict of Box) in, Box, Discrete or MultiDiscrete out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from core.errors import UserError

MOST_CHOICES = 1024  # of an integer among the actions


def float_space(space: spaces.Space) -> spaces.Space:
    """The space of what `float_obs` returns: float32, but bytes stay bytes; also mends bounds of 1e-38 that stand for -infinity."""
    if isinstance(space, spaces.Dict):
        return spaces.Dict({key: float_space(sub) for key, sub in space.spaces.items()})
    if not isinstance(space, spaces.Box) or space.dtype == np.uint8:
        return space
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    # C++ environments write numeric_limits<T>::min(), the smallest positive number, where they mean the lowest one
    low[(low > 0) & (low < 2e-38)] = -np.inf
    limit = float(np.finfo(np.float32).max)
    low[low <= -limit], high[high >= limit] = -np.inf, np.inf
    return spaces.Box(low.astype(np.float32), high.astype(np.float32), dtype=np.float32)


def float_obs(obs: Any) -> Any:
    """float32 arrays; bytes stay bytes; dicts keep their keys."""
    if isinstance(obs, dict):
        return {key: float_obs(value) for key, value in obs.items()}
    array = np.asarray(obs)
    return array if array.dtype in (np.uint8, np.float32) else array.astype(np.float32)


def as_declared(obs: Any, space: spaces.Space) -> Any:
    """`float_obs` by what the space says, not the array: bytes are divided by 255 and nothing else is, so the two must not differ.

    Raises UserError where a space of bytes meets numbers with a fraction.
    """
    if isinstance(space, spaces.Dict):
        return {key: as_declared(value, space.spaces[key]) if key in space.spaces else float_obs(value) for key, value in obs.items()}
    array = np.asarray(obs)
    if not isinstance(space, spaces.Box) or space.dtype != np.uint8:
        return array.astype(np.float32, copy=False)
    if array.dtype.kind not in "iub":
        raise UserError(
            f"an observation of type {array.dtype}, and its space declares bytes (uint8), which are divided by 255: "
            "return bytes, or declare float32"
        )
    return array.astype(np.uint8, copy=False)


def normalize_spaces(env: gymnasium.Env) -> gymnasium.Env:
    """Wraps `env` where its spaces are not among those a policy here can use.

    Observations: Discrete, MultiDiscrete, MultiBinary and Tuple are flattened (one-hot where discrete); a Dict keeps its keys
    and has each entry flattened that is no Box. Stacked pictures (S, H, W, C) become one of S * C channels, the oldest first.
    Actions: Discrete and MultiDiscrete start at 0, a Tuple of Discrete, MultiBinary and a Box of integers become MultiDiscrete, a Box of
    floats gets one dimension. Raises UserError for the rest.
    """
    return _normalize_action(_normalize_observation(env))


def _normalize_observation(env: gymnasium.Env) -> gymnasium.Env:
    space = env.observation_space
    leaves = space.spaces if isinstance(space, spaces.Dict) else {"": space}
    for key, leaf in leaves.items():
        if not leaf.is_np_flattenable:
            raise UserError(
                f"task.id: observation space {f'{key}: ' if key else ''}{leaf} has no fixed size. "
                "Valid: Box, Discrete, MultiDiscrete, MultiBinary, Tuple or Dict of them; wrap the environment (task.wrappers)"
            )
    if isinstance(space, spaces.Box) and len(space.shape) == 4 and space.dtype == np.uint8:
        low, high = (_stacked_as_channels(bound) for bound in (space.low, space.high))
        return gymnasium.wrappers.TransformObservation(env, _stacked_as_channels, spaces.Box(low, high, dtype=np.uint8))
    if all(isinstance(leaf, spaces.Box) and leaf.shape for leaf in leaves.values()):
        return env
    if not isinstance(space, spaces.Dict):
        return gymnasium.wrappers.FlattenObservation(env)
    odd = {key: leaf for key, leaf in leaves.items() if not (isinstance(leaf, spaces.Box) and leaf.shape)}

    def flatten(obs: dict[str, Any]) -> dict[str, Any]:
        return {key: spaces.flatten(odd[key], value) if key in odd else value for key, value in obs.items()}

    flat = spaces.Dict({key: spaces.flatten_space(leaf) if key in odd else leaf for key, leaf in leaves.items()})
    return gymnasium.wrappers.TransformObservation(env, flatten, flat)


def _stacked_as_channels(pictures: np.ndarray) -> np.ndarray:
    """(S, H, W, C) to (H, W, S * C): what convolutions read."""
    return np.concatenate(list(pictures), axis=-1)


def _normalize_action(env: gymnasium.Env) -> gymnasium.Env:
    space = env.action_space
    if isinstance(space, spaces.Discrete):
        return env if space.start == 0 else _act(env, lambda a: a + space.start, spaces.Discrete(int(space.n)))
    if isinstance(space, spaces.MultiDiscrete):
        if space.nvec.ndim == 1 and not np.any(space.start):
            return env
        nvec = space.nvec
        return _act(env, lambda a: np.asarray(a).reshape(nvec.shape) + space.start, spaces.MultiDiscrete(nvec.reshape(-1)))
    if isinstance(space, spaces.MultiBinary):
        shape = space.shape
        return _act(env, lambda a: np.asarray(a).reshape(shape).astype(np.int8), spaces.MultiDiscrete([2] * int(np.prod(shape))))
    if isinstance(space, spaces.Tuple) and all(isinstance(sub, spaces.Discrete) for sub in space.spaces):
        starts = [int(sub.start) for sub in space.spaces]  # type: ignore[attr-defined]  # all Discrete, checked above
        sizes = [int(sub.n) for sub in space.spaces]  # type: ignore[attr-defined]  # likewise
        return _act(env, lambda a: tuple(int(x) + start for x, start in zip(a, starts, strict=True)), spaces.MultiDiscrete(sizes))
    if isinstance(space, spaces.Box) and space.dtype.kind in "iub":
        if (space.high.astype(np.float64) - space.low.astype(np.float64)).max() >= MOST_CHOICES:
            raise UserError(
                f"task.id: action space {space} is of integers, each of which becomes a choice among at most {MOST_CHOICES}: "
                "wrap the environment (task.wrappers) or declare a Box of floats"
            )
        low, high = space.low.astype(np.int64), space.high.astype(np.int64)
        return _act(
            env, lambda a: (np.asarray(a).reshape(low.shape) + low).astype(space.dtype), spaces.MultiDiscrete((high - low + 1).reshape(-1))
        )
    if isinstance(space, spaces.Box):
        if len(space.shape) == 1 and space.dtype == np.float32:
            return env
        flat = spaces.Box(space.low.reshape(-1).astype(np.float32), space.high.reshape(-1).astype(np.float32), dtype=np.float32)
        low, high = space.low.astype(np.float32), space.high.astype(np.float32)

        def in_box(action: np.ndarray) -> np.ndarray:
            given = np.asarray(action).reshape(space.shape)
            action = given.astype(space.dtype)  # 0.1 of float32 lies above 0.1 of float64
            return np.where(given == low, space.low, np.where(given == high, space.high, action))

        return _act(env, in_box, flat)
    raise UserError(f"task.id: action space {space} is none of Box, Discrete, MultiDiscrete, MultiBinary, Tuple of Discrete")


def _act(env: gymnasium.Env, function: Callable[[Any], Any], space: spaces.Space) -> gymnasium.Env:
    return gymnasium.wrappers.TransformAction(env, function, space)
