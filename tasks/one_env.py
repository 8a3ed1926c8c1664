"""Single environments behind either API (gymnasium's five values, old gym's four), and a group of them that steps in one process.

Runs inside Ray workers, so nothing here imports torch: a worker starts in a second and stays small.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import os
import pickle
import random
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from core.errors import UserError
from tasks.spaces import float_obs, float_space

Maker = Callable[[int, "str | None"], Any]  # (index of the environment, render_mode) -> environment


@dataclasses.dataclass
class Batch:
    """What a group answers to reset and step. n rows = environments of the group x agents."""

    obs: Any  # (n, ...), or {"obs": (n, ...), "states": (environments, ...)} with a central value
    rewards: np.ndarray  # (n,) or (n, V)
    dones: np.ndarray  # (n,)
    time_outs: np.ndarray  # (n,)
    infos: list[dict[str, Any]]  # one per environment, of this transition, not of the reset after it
    terminal_obs: Any  # like obs, as it was before the reset; None where no environment was reset
    masks: np.ndarray | None  # (n, A) booleans, valid for `obs`; None without action masks


@dataclasses.dataclass
class Failure:
    """An environment raised. Sent instead of a result, because an exception's class may not exist in the other process."""

    index: int
    text: str


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
            "render_modes": list((getattr(self.env, "metadata", None) or {}).get("render_modes", [])),
        }

    def reset(self) -> Any:
        """The first observation, as rows. The first call seeds everything that the environment draws from."""
        self._steps = 0
        seed, self._seed = self._seed, None
        result = self.env.reset() if seed is None else _seeded_reset(self.env, seed)
        return self._rows(result[0] if _is_pair(result) else result)

    def step(self, action: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any], Any]:
        """Returns obs, rewards, dones, time_outs, info, terminal obs (None unless the environment was reset)."""
        result = self.env.step(action if self.num_agents > 1 else action[0])
        if len(result) == 5:
            obs, reward, terminated, truncated, info = result
            terminated, truncated = self._flags(terminated), self._flags(truncated)
            dones, time_outs = terminated | truncated, truncated & ~terminated
        else:
            obs, reward, done, info = result
            dones = self._flags(done)
            time_outs = self._flags(info.get("time_outs", info.get("TimeLimit.truncated", False))) & dones
        self._steps += 1
        if self._limit is not None and self._steps >= self._limit:
            time_outs, dones = time_outs | ~dones, np.ones_like(dones)
        rewards = np.asarray(reward, dtype=np.float32).reshape(self.num_agents, -1)
        obs, terminal = self._rows(obs), None
        if dones.all():
            terminal = _map(np.copy, obs)  # an environment may write its next observation into the same array
            obs = self.reset()
        return obs, rewards[:, 0] if self.value_size == 1 else rewards, dones, time_outs, info, terminal

    def mask(self) -> np.ndarray:
        """(agents, A) booleans: which actions are allowed now."""
        assert self._get_mask is not None
        return np.asarray(self._get_mask(), dtype=bool).reshape(self.num_agents, -1)

    def _flags(self, value: Any) -> np.ndarray:
        return np.broadcast_to(np.asarray(value, dtype=bool), (self.num_agents,))

    def _rows(self, obs: Any) -> Any:
        if self.central_value:
            return {"obs": self._agent_rows(obs["obs"]), "states": _map(_one_row, float_obs(obs["state"]))}
        return self._agent_rows(obs)

    def _agent_rows(self, obs: Any) -> Any:
        obs = float_obs(obs)
        return obs if self.num_agents > 1 else _map(_one_row, obs)


def _answering(method: Callable[..., Any]) -> Callable[..., Any]:
    """Turns whatever the environment raises into a Failure."""

    @functools.wraps(method)
    def wrapper(self: EnvGroup, *args: Any) -> Any:
        try:
            return method(self, *args)
        except UserError as error:
            return Failure(self.current, str(error))
        except Exception:  # user code may raise anything, and all of it has to reach the user
            return Failure(self.current, traceback.format_exc())

    return wrapper


class EnvGroup:
    """Several environments that step one after the other in this process.

    Args:
        indices: of its environments among all.
        seed: of environment 0; environment i gets seed + i. None: unseeded.
        own_process: also seed the global generators, which some environments draw from.
        render_mode: for environment 0.
    """

    def __init__(self, indices: Sequence[int], seed: int | None, own_process: bool, render_mode: str | None) -> None:
        self.indices = list(indices)
        self.current = self.indices[0]
        self._seed, self._own_process, self._render_mode = seed, own_process, render_mode
        self.envs: list[OneEnv] = []

    def process_id(self) -> int:
        return os.getpid()

    @_answering
    def unpack(self, payload: bytes) -> dict[str, Any]:
        """`start` in another process. payload: `row_vecenv.portable(maker)`."""
        content = pickle.loads(payload)
        for pickled in content["specs"]:
            with contextlib.suppress(Exception):  # an unrelated environment that does not load here must not stop this one
                spec = pickle.loads(pickled)
                gymnasium.registry.setdefault(spec.id, spec)
        return self.start(pickle.loads(content["maker"]))

    @_answering
    def start(self, maker: Maker) -> dict[str, Any]:
        """Builds the environments; returns the info of the first."""
        if self._own_process and self._seed is not None:
            seed_globals(self._seed + self.indices[0])
        for index in self.indices:
            self.current = index
            render_mode = self._render_mode if index == 0 else None
            seed = None if self._seed is None else self._seed + index
            self.envs.append(OneEnv(maker(index, render_mode), seed, render_mode))
        return self.envs[0].info()

    @_answering
    def reset(self) -> Batch:
        """A new episode in each environment."""
        rows = []
        for index, env in zip(self.indices, self.envs, strict=True):
            self.current = index
            rows.append(env.reset())
        n = sum(env.num_agents for env in self.envs)
        none = np.zeros(n, dtype=bool)
        return Batch(join(rows), np.zeros(n, np.float32), none, none, [{} for _ in rows], None, self._masks())

    @_answering
    def step(self, actions: np.ndarray) -> Batch:
        """actions: (n, ...). Environments whose episode ended are reset before this returns."""
        steps = []
        at = 0
        for index, env in zip(self.indices, self.envs, strict=True):
            self.current = index
            steps.append(env.step(actions[at : at + env.num_agents]))
            at += env.num_agents
        obs, rewards, dones, time_outs, infos, terminal = zip(*steps, strict=True)
        before_reset = None
        if any(t is not None for t in terminal):
            before_reset = join([o if t is None else t for o, t in zip(obs, terminal, strict=True)])
        return Batch(
            join(obs),
            np.concatenate(rewards),
            np.concatenate(dones),
            np.concatenate(time_outs),
            [_numbers(info, self.envs[0].num_agents) for info in infos],
            before_reset,
            self._masks(),
        )

    @_answering
    def set_weights(self, indices: list[int], weights: Any) -> None:
        """Self-play: hands the opponents' weights to those of its environments that are among `indices`."""
        for index, env in zip(self.indices, self.envs, strict=True):
            self.current = index
            if index in indices:
                env.env.update_weights(weights)

    @_answering
    def render(self) -> np.ndarray | None:
        """The picture of this group's first environment."""
        return self.envs[0].env.render()

    @_answering
    def close(self) -> None:
        for env in self.envs:
            if hasattr(env.env, "close"):
                env.env.close()
        self.envs = []

    def _masks(self) -> np.ndarray | None:
        return np.concatenate([env.mask() for env in self.envs]) if self.envs[0].has_masks else None


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
        env = getattr(env, "env", None)
    return None


def join(trees: Sequence[Any]) -> Any:
    """Concatenates arrays, or dicts of them, along the rows."""
    if isinstance(trees[0], dict):
        return {key: join([tree[key] for tree in trees]) for key in trees[0]}
    return np.concatenate(trees)


def _map(function: Callable[[np.ndarray], np.ndarray], tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _map(function, value) for key, value in tree.items()}
    return function(tree)


def _one_row(array: np.ndarray) -> np.ndarray:
    return array[None]


def _is_pair(result: Any) -> bool:
    return isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict)


def _numbers(info: dict[str, Any], num_agents: int) -> dict[str, Any]:
    """The entries that are one number per environment or per agent; pictures and texts do not travel."""
    return {key: value for key, value in info.items() if np.shape(value) in ((), (num_agents,)) and _is_number(value)}


def _is_number(value: Any) -> bool:
    return np.asarray(value).dtype.kind in "biuf"


def _accepts_seed(function: Any) -> bool:
    parameters = inspect.signature(function).parameters
    return "seed" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def _drivable(env: Any) -> tuple[Any, int | None]:
    """The environment, and a step limit to hold it to.

    gymnasium's own wrappers cannot drive an environment whose `reset` knows no seed (old gym); they are taken off, and of
    TimeLimit the limit is kept.
    """
    if not isinstance(env, gymnasium.Wrapper) or _accepts_seed(env.unwrapped.reset):
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
    while inner is not None and not _accepts_seed(inner.reset):
        inner = getattr(inner, "env", None)
    if inner is env:
        return env.reset(seed=seed)
    if inner is not None:
        inner.reset(seed=seed)
    return env.reset()
