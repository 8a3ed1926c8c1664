"""A single environment behind either API (gymnasium's five values, old gym's four), which writes its steps into given arrays.

Runs inside workers, so nothing here imports torch: a worker starts in a second and stays small.
"""

from __future__ import annotations

import functools
import inspect
import random
import sys
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from tasks.rows import tree_map
from tasks.spaces import as_declared, float_obs, float_space

Maker = Callable[[int, "str | None"], Any]  # (index of the environment, render_mode) -> environment


class OneEnv:
    """One environment and its seed. The rows of its results are its agents."""

    def __init__(self, env: Any, seed: int | None, render_mode: str | None) -> None:
        self.env, self._limit = _drivable(env)
        self._seed = seed
        self._steps = 0
        agents = find_attr(self.env, "get_number_of_agents")
        self.num_agents = int(agents()) if agents else 1
        self.central_value = bool(find_attr(self.env, "use_central_value"))
        self.value_size = int(find_attr(self.env, "value_size") or 1)
        self._get_mask = find_attr(self.env, "get_action_mask")
        has_mask = find_attr(self.env, "has_action_mask")
        self.has_masks = self._get_mask is not None and (has_mask is None or bool(has_mask()))
        self._single = self.num_agents == 1 and self.value_size == 1
        if render_mode is not None and getattr(self.env, "render_mode", render_mode) != render_mode:
            self.env.unwrapped.render_mode = render_mode  # creators of rl_games have no argument for it

    def info(self) -> dict[str, Any]:
        """Spaces and sizes, for the process that made the group."""
        state_space = find_attr(self.env, "state_space")
        return {
            "observation_space": float_space(self.env.observation_space),
            "action_space": self.env.action_space,
            "state_space": float_space(state_space) if self.central_value and state_space is not None else None,
            "num_agents": self.num_agents,
            "value_size": self.value_size,
            "central_value": self.central_value,
            "has_masks": self.has_masks,
            "max_episode_steps": self._time_limit(),
            "render_modes": list((getattr(self.env, "metadata", None) or {}).get("render_modes", [])),
        }

    def reset(self) -> Any:
        """The first observation: a tree of (k, ...), with k = agents, or 1 for a central state."""
        obs = self._begin()
        if self.central_value:
            return {"obs": self._agent_rows(obs["obs"]), "states": tree_map(_one_row, float_obs(obs["state"]))}
        return self._agent_rows(obs)

    def attach(self, rows: dict[str, Any]) -> None:
        """rows: of this environment alone, as `tasks.rows.layout` names them, (k, ...) each. `step` writes there."""
        self._obs, self._terminal, self._masks = self._as_given(rows["obs"]), self._as_given(rows["terminal"]), rows.get("masks")
        self._rewards, self._dones, self._time_outs, self._ended = (rows[k] for k in ("rewards", "dones", "time_outs", "ended"))

    def step(self, action: Any) -> dict[str, Any]:
        """Steps, and begins the next episode if this one ended. Writes everything into the attached rows; returns the step's info.

        action: (...) for one agent, (agents, ...) for several. dones, time_outs and ended are written only where they are true:
        the caller clears them.
        """
        result = self.env.step(action)
        self._steps += 1
        ended = self._write_ends_of_one(result) if self._single else self._write_ends(result)
        obs = result[0]
        if ended:
            self._ended[0] = True
            _put(self._terminal, obs)  # before the reset, as an environment may write its next observation into the same array
            obs = self._begin()
        _put(self._obs, obs)
        if self._masks is not None:
            self._masks[...] = self.mask()
        return result[-1]

    def mask(self) -> np.ndarray:
        """(agents, A) booleans: which actions are allowed now. Raises ValueError for a mask of another size."""
        assert self._get_mask is not None
        mask = np.asarray(self._get_mask(), dtype=bool)
        if mask.size != self.num_agents * self._choices:
            agents = f" for each of {self.num_agents} agents" if self.num_agents > 1 else ""
            raise ValueError(
                f"an action mask of shape {mask.shape}; wanted is a boolean for each of the {self._choices} choices of "
                f"{self.env.action_space}{agents}"
            )
        return mask.reshape(self.num_agents, -1)

    @functools.cached_property
    def _choices(self) -> int:
        space: Any = self.env.action_space
        heads: Any = space.spaces if isinstance(space, spaces.Tuple) else [space]
        return sum(int(np.sum(head.nvec if isinstance(head, spaces.MultiDiscrete) else head.n)) for head in heads)

    def _time_limit(self) -> int | None:
        """Of ours, or of gymnasium's TimeLimit among the wrappers."""
        env = self.env
        while self._limit is None and env is not None:
            if isinstance(env, gymnasium.wrappers.TimeLimit):
                return env._max_episode_steps
            env = _inside(env)
        return self._limit

    def _begin(self) -> Any:
        """Resets; the environment's own observation. The first call seeds everything that the environment draws from."""
        self._steps = 0
        seed, self._seed = self._seed, None
        result = self.env.reset() if seed is None else _seeded_reset(self.env, seed)
        return result[0] if _is_pair(result) else result

    def _write_ends_of_one(self, result: Any) -> bool:
        """`_write_ends` without arrays: they cost as much as the physics of a cheap environment."""
        reward = result[1]
        self._rewards[0] = reward if isinstance(reward, float | int) else _one_number(reward)
        done = bool(result[2])
        if len(result) == 5:
            time_out = bool(result[3]) and not done
        else:
            time_out = done and bool(result[3].get("time_outs", result[3].get("TimeLimit.truncated", False)))
        if self._limit is not None and self._steps >= self._limit:
            time_out = time_out or not done
        if not (done or time_out):
            return False
        self._dones[0] = True
        self._time_outs[0] = time_out
        return True

    def _write_ends(self, result: Any) -> bool:
        """Rewards, dones and time_outs of several agents or values. True where the episode ended for all of them."""
        if len(result) == 5:
            terminated, truncated = self._flags(result[2]), self._flags(result[3])
            dones, time_outs = terminated | truncated, truncated & ~terminated
        else:
            info = result[3]
            dones = self._flags(result[2])
            time_outs = self._flags(info.get("time_outs", info.get("TimeLimit.truncated", False))) & dones
        if self._limit is not None and self._steps >= self._limit:
            time_outs, dones = time_outs | ~dones, np.ones_like(dones)
        rewards = np.asarray(result[1], dtype=np.float32).reshape(self.num_agents, -1)
        self._rewards[...] = rewards[:, 0] if self.value_size == 1 else rewards
        self._dones[...] = dones
        self._time_outs[...] = time_outs
        return bool(dones.all())

    def _flags(self, value: Any) -> np.ndarray:
        return np.broadcast_to(np.asarray(value, dtype=bool), (self.num_agents,))

    def _as_given(self, rows: Any) -> Any:
        """Rows in the structure in which the environment gives its observations."""
        agents = rows["obs"] if self.central_value else rows
        agents = tree_map(_squeeze, agents) if self.num_agents == 1 else agents
        return {"obs": agents, "state": tree_map(_squeeze, rows["states"])} if self.central_value else agents

    def _agent_rows(self, obs: Any) -> Any:
        obs = as_declared(obs, self.env.observation_space)
        return obs if self.num_agents > 1 else tree_map(_one_row, obs)


def seed_globals(seed: int) -> None:
    """Seeds the generators that belong to the whole process; torch's only where something has imported it already."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(seed)


def find_attr(env: Any, name: str) -> Any:
    """The attribute of the environment or, as gymnasium's wrappers pass nothing on, of one that it wraps; None without it."""
    while env is not None:
        if hasattr(env, name):
            return getattr(env, name)
        env = _inside(env)
    return None


def _inside(env: Any) -> Any:
    inner = getattr(env, "env", None)
    return None if inner is env else inner


def _one_number(reward: Any) -> np.ndarray:
    array = np.asarray(reward, np.float32)
    if array.size != 1:
        raise ValueError(f"a reward of shape {array.shape}, not one number; an environment of several values says `value_size`")
    return array.reshape(())


def _put(rows: Any, obs: Any) -> None:
    """Writes an observation, in the environment's own type. Raises ValueError where it differs from the first one in shape or kind."""
    if isinstance(rows, dict):
        for key in rows:
            _put(rows[key], obs[key])
        return
    array = obs if type(obs) is np.ndarray else np.asarray(obs)
    if array.shape != rows.shape:
        raise ValueError(f"an observation of shape {array.shape}; the first one had {rows.shape}")
    if rows.dtype == np.uint8 and array.dtype.kind not in "iub":
        raise ValueError(f"an observation of type {array.dtype}; its space declares bytes")
    rows[...] = array


def _squeeze(rows: np.ndarray) -> np.ndarray:
    return rows[0]


def _one_row(array: np.ndarray) -> np.ndarray:
    return array[None]


def _is_pair(result: Any) -> bool:
    return isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict)


def accepts_seed(function: Any) -> bool:
    parameters = inspect.signature(function).parameters
    return "seed" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def _drivable(env: Any) -> tuple[Any, int | None]:
    """The environment, and a step limit to hold it to.

    gymnasium's own wrappers cannot drive an environment whose `reset` knows no seed (old gym); they are taken off, and of
    TimeLimit the limit is kept.
    """
    if not isinstance(env, gymnasium.Wrapper) or accepts_seed(env.unwrapped.reset):
        return env, None
    limit = None
    outer = (gymnasium.wrappers.TimeLimit, gymnasium.wrappers.OrderEnforcing, gymnasium.wrappers.PassiveEnvChecker)
    while isinstance(env, outer):
        if isinstance(env, gymnasium.wrappers.TimeLimit):
            limit = env._max_episode_steps
        env = env.env
    return env, limit


def _seeded_reset(env: Any, seed: int) -> Any:
    """Seeds the spaces and the environment, or the first one inside it that takes a seed, and resets."""
    for space in (env.action_space, env.observation_space):
        if isinstance(space, spaces.Space):
            space.seed(seed)
    if hasattr(env, "seed") and callable(env.seed):
        env.seed(seed)
        return env.reset()
    inner = env
    while inner is not None and not accepts_seed(inner.reset):
        inner = _inside(inner)
    if inner is env:
        return env.reset(seed=seed)
    if inner is not None:
        inner.reset(seed=seed)
    return env.reset()
