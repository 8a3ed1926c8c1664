"""The first observations, held against the spaces that the environment declared: a wrong space is found before training starts."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from core.errors import UserError
from core.vecenv import CPU, Obs, VecEnv, to_tensor

TOLERANCE = 1e-4  # of a bound: float32 against the float64 that it was declared in


def reset(env: VecEnv) -> Obs:
    """`env.reset()`, whose observations are checked where `env.checks_obs`.

    Raises UserError naming the part of the observation, environment, place and value that lie outside the space, or the shape that differs.
    Later observations are not checked for bounds: that would cost in every step. Those that are not finite stop a run whenever they come.
    """
    obs = env.reset()
    if env.checks_obs:
        wrapped = isinstance(obs, dict) and "obs" in obs and not has_part(env.observation_space, "obs")
        rows = env.num_envs * env.num_agents
        _check(obs["obs"] if wrapped else obs, env.observation_space, "observation", rows, env.num_agents)
        if wrapped and "states" in obs and env.state_space is not None:
            _check(obs["states"], env.state_space, "state", env.num_envs, 1)
    return obs


def has_part(space: spaces.Space, name: str) -> bool:
    """Whether a Dict space has a part of that name: `obs` then is no wrapping of ours."""
    return isinstance(space, spaces.Dict) and name in space.spaces


def _check(obs: Any, space: spaces.Space, what: str, rows: int, per_env: int) -> None:
    if isinstance(space, spaces.Dict):
        for name, part in space.spaces.items():
            if not isinstance(obs, dict) or name not in obs:
                found = ", ".join(obs) if isinstance(obs, dict) else type(obs).__name__
                raise UserError(f"the first {what} has no part '{name}', which its space declares; there is: {found}")
            _check(obs[name], part, f"{what}'s part '{name}'", rows, per_env)
    elif isinstance(space, spaces.Box):
        _check_box(to_tensor(obs, obs.device if isinstance(obs, torch.Tensor) else CPU), space, what, rows, per_env)


def _check_box(obs: torch.Tensor, space: spaces.Box, what: str, rows: int, per_env: int) -> None:
    if tuple(obs.shape) != (rows, *space.shape):
        raise UserError(f"the first {what} has the shape {tuple(obs.shape)}, and its space {space} asks for {(rows, *space.shape)}")
    if (obs.dtype == torch.uint8) != (space.dtype == np.uint8):
        raise UserError(
            f"the first {what} is of type {str(obs.dtype).removeprefix('torch.')}, and its space declares {space.dtype}: "
            "bytes (uint8) are divided by 255, all other numbers are not, so mend one of the two"
        )
    low, high = (torch.as_tensor(bound, dtype=torch.float64).to(obs.device) for bound in (space.low, space.high))
    value = obs.double()
    # a NaN lies outside nothing, and is named by the check that every step has
    outside = (value < low - TOLERANCE * low.abs().clamp(min=1)) | (value > high + TOLERANCE * high.abs().clamp(min=1))
    if outside.any():
        row, *place = outside.nonzero()[0].tolist()
        bounds = f"{low[tuple(place)]:g} to {high[tuple(place)]:g}"
        raise UserError(
            f"the first {what} is outside its space: {value[(row, *place)]:g} at {place} of environment {row // per_env}, declared is "
            f"{bounds} (mend the space, or let it be with task.check_obs=false)"
        )
