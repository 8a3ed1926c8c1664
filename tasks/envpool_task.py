"""Any EnvPool environment: `task=envpool task.id=HalfCheetah-v4`, stepped by C++ threads."""

from __future__ import annotations

import difflib
import os
import warnings
from typing import Any

import numpy as np
from gymnasium import spaces

from core.errors import UserError, unknown
from core.registry import register_task
from core.vecenv import Obs, VecEnv
from tasks import envpool_families
from tasks.gymnasium_task import GymMaker, find_spec
from tasks.row_vecenv import LocalVecEnv, to_numpy
from tasks.spaces import float_obs, float_space

OWN_KEYS = {"num_envs": "task.num_envs", "seed": "seed", "num_threads": "task.num_threads"}
QUICK = ("envpool.classic_control", "envpool.toy_text")  # families whose step takes less than waking a thread
FIXED_KEYS = ("batch_size", "env_type", "gym_reset_return_info")
ATARI_SCALE = 4  # 84 x 84 frames are too small to watch


@register_task("envpool", ids_of_kind=lambda: envpool_families.load("").list_all_envs())
def make(
    *,
    num_envs: int,
    seed: int | None,
    device: str,
    render_mode: str | None = None,
    id: str | None = None,
    options: dict[str, Any] | None = None,
    obs_key: str | None = None,
    flatten_obs: bool = True,
    use_dict_obs_space: bool = False,
    num_threads: int = 0,
    render_id: str | None = None,
) -> VecEnv:
    """N EnvPool environments, reset in the step after the one in which they end.

    Args:
        id: one of envpool.list_all_envs().
        options: keyword arguments of envpool.make, e.g. max_episode_steps, episodic_life, frame_skip.
        obs_key: the only entry of a Dict observation that is used, e.g. MiniGrid's `image`.
        flatten_obs: one vector from a Dict observation (or its one entry), keys in EnvPool's order.
        use_dict_obs_space: observations {observation, reward, last_action}, as in rl_games.
        num_threads: 0: one more than there are cores, for quick environments EnvPool's own choice (as many as there are cores).
        render_id: gymnasium id to take the pictures from, where it is not `id` (EnvPool cannot render everywhere).

    With a render_mode, Atari shows its last observed frame; every other id runs as its gymnasium twin (same-step reset).
    Raises UserError for an unknown id or option, where a library lacks, and where nothing can render.
    """
    if render_mode is None or _is_atari(id):
        return EnvpoolVecEnv(id, num_envs, seed, dict(options or {}), flatten_obs, use_dict_obs_space, num_threads, render_mode, obs_key)
    if use_dict_obs_space:
        raise UserError("task.use_dict_obs_space cannot be rendered outside Atari")
    return _gymnasium_twin(id, num_envs, seed, render_mode, dict(options or {}), flatten_obs, obs_key, render_id)


class EnvpoolVecEnv(VecEnv):
    """EnvPool behind VecEnv. Next-step reset.

    infos: `time_outs` (N,), `elapsed_step` (N,); for Atari `scores` (N,), the raw score of the running game, and, with
    episodic_life, `lives` (N,): a game is over where they are 0.
    """

    reset_mode = "next_step"

    def __init__(
        self,
        id: str | None,
        num_envs: int,
        seed: int | None,
        options: dict[str, Any],
        flatten_obs: bool = True,
        use_dict_obs_space: bool = False,
        num_threads: int = 0,
        render_mode: str | None = None,
        obs_key: str | None = None,
    ) -> None:
        self.num_envs = num_envs
        self.render_mode = render_mode
        if seed is None:  # EnvPool's own default is the constant 42
            seed = int(np.random.SeedSequence().generate_state(1)[0]) % 2**31
        self._pool = _make_pool(id, num_envs, seed, num_threads, options)
        self._flatten = flatten_obs and isinstance(self._pool.observation_space, spaces.Dict)
        self._key = obs_key
        self._with_reward = use_dict_obs_space
        self._episodic_life = bool(options.get("episodic_life", False))
        self.observation_space = self._observation_space()
        self.action_space = self._pool.action_space
        self.max_episode_steps = self._pool.spec.config.max_episode_steps or None
        if isinstance(self.action_space, spaces.Box):
            self.action_space = float_space(self.action_space)
        self._scores = np.zeros(num_envs, dtype=np.float32)
        self._ended = np.zeros(num_envs, dtype=bool)
        self._frame: np.ndarray | None = None

    def reset(self) -> Obs:
        obs, _ = self._pool.reset()
        self._scores[:] = 0.0
        self._ended = np.zeros(self.num_envs, dtype=bool)
        n = self.num_envs
        return self._observe(obs, np.zeros(n, np.float32), np.zeros(n, np.float32))

    def step(self, actions: Any) -> tuple[Obs, np.ndarray, np.ndarray, dict[str, Any]]:
        array = to_numpy(actions)
        obs, rewards, terminated, truncated, raw = self._pool.step(array)  # which makes it its own type
        infos = {"time_outs": truncated & ~terminated, "elapsed_step": raw["elapsed_step"]}
        if "reward" in raw:  # Atari: what the game gave, before clipping
            self._scores += raw["reward"]
            infos["scores"] = self._scores.copy()
            self._scores[raw["terminated"].astype(bool) | truncated] = 0.0  # a lost life is no lost game
            if self._episodic_life:
                infos["lives"] = raw["lives"]
        taken = np.where(self._ended, 0, array) if self._with_reward else array  # a reset row took no action
        self._ended = terminated | truncated
        return self._observe(obs, rewards, taken), rewards, self._ended, infos

    def render(self) -> np.ndarray:
        """Atari: the newest grey frame that environment 0's policy saw, four times as large."""
        assert self._frame is not None, "render() before reset()"
        return np.repeat(np.repeat(np.stack([self._frame] * 3, axis=-1), ATARI_SCALE, axis=0), ATARI_SCALE, axis=1)

    def close(self) -> None:
        self._pool.close()

    def _observe(self, obs: Any, rewards: np.ndarray, actions: np.ndarray) -> Obs:
        if self._key is not None:
            obs = {self._key: obs[self._key]} if self._flatten else obs[self._key]
        if self._flatten:
            obs = np.concatenate([np.reshape(value, (self.num_envs, -1)) for value in obs.values()], axis=1)
        if self.render_mode is not None:
            self._frame = obs[0, -1].copy()
        obs = float_obs(obs)
        if not self._with_reward:
            return obs
        return {"observation": obs, "reward": np.clip(rewards, -1, 1), "last_action": actions.astype(np.float32)}

    def _observation_space(self) -> spaces.Space:
        space = self._pool.observation_space
        if self._key is not None:
            if not isinstance(space, spaces.Dict):
                self.close()
                raise UserError(f"task.obs_key='{self._key}': the observations of this environment have no parts, they are {space}")
            if self._key not in space.spaces:
                self.close()
                raise unknown("part of the observation", self._key, space.spaces, "task.obs_key")
            space = spaces.Dict({self._key: space[self._key]}) if self._flatten else space[self._key]
        if self._flatten:
            low = np.concatenate([np.reshape(sub.low, -1) for sub in space.spaces.values()])
            high = np.concatenate([np.reshape(sub.high, -1) for sub in space.spaces.values()])
            space = spaces.Box(low, high, dtype=low.dtype)
        space = float_space(space)
        if not self._with_reward:
            return space
        if not isinstance(self._pool.action_space, spaces.Discrete):
            raise UserError(f"task.use_dict_obs_space needs a Discrete action space; this one is {self._pool.action_space}")
        return spaces.Dict(
            {
                "observation": space,
                "reward": spaces.Box(-1.0, 1.0, (), np.float32),
                "last_action": spaces.Box(0.0, float(self._pool.action_space.n), (), np.float32),
            }
        )


def _make_pool(id: str | None, num_envs: int, seed: int, num_threads: int, options: dict[str, Any]) -> Any:
    if not id:
        raise UserError("task.id is missing: which EnvPool environment? Example: task.id=HalfCheetah-v4")
    envpool = envpool_families.load(str(id))
    specs = envpool.registration.registry.specs
    if id not in specs:
        close = difflib.get_close_matches(str(id), envpool.list_all_envs(), n=3, cutoff=0.5)
        guess = f"Did you mean {' or '.join(repr(c) for c in close)}? " if close else ""
        raise UserError(f"unknown EnvPool environment '{id}' at task.id. {guess}List: envpool.list_all_envs()")
    for key in options:
        if key in OWN_KEYS:
            raise UserError(f"task.options.{key} belongs to {OWN_KEYS[key]}")
        if key in FIXED_KEYS:
            raise UserError(f"task.options.{key} cannot be changed: every environment steps at every step")
    num_threads = num_threads or threads(specs[id][0], num_envs)
    with warnings.catch_warnings():
        # the spaces' bounds are double and become float: no user can act on that
        warnings.filterwarnings("ignore", message=".*precision lowered by casting.*", category=UserWarning)
        try:
            keys = envpool.make_spec(id).config._fields
        except ImportError as error:  # a family's libraries: Procgen's Qt 5
            raise UserError(f"EnvPool cannot load what '{id}' at task.id needs: {error}") from error
        for key in options:
            if key not in keys:
                raise unknown("option", key, set(keys) - set(OWN_KEYS) - set(FIXED_KEYS), f"task.options.{key}")
        try:
            pool = envpool.make(
                id, env_type="gymnasium", num_envs=num_envs, batch_size=num_envs, seed=seed, num_threads=num_threads, **options
            )
            # spaces are built on first use, and that is where the warnings come from
            assert pool.observation_space is not None
            assert pool.action_space is not None
        except (TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"task.options {options}: EnvPool refuses them: {str(error).splitlines()[0]}") from error
    return pool


def threads(family: str, num_envs: int) -> int:
    """EnvPool's threads where nobody said how many; 0: its own choice.

    One more than there are cores: the policy runs on one of them between two steps, and the thread that waited there is late for the next.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 0 if family in QUICK else min(num_envs, cores + 1)


def _is_atari(id: str | None) -> bool:
    if not id:
        return False
    specs = envpool_families.load(str(id)).registration.registry.specs
    return id in specs and specs[id][0] == "envpool.atari"


def _gymnasium_twin(
    id: str | None,
    num_envs: int,
    seed: int | None,
    render_mode: str,
    options: dict[str, Any],
    flatten_obs: bool,
    obs_key: str | None,
    render_id: str | None,
) -> VecEnv:
    """The same task in gymnasium: EnvPool's MuJoCo renderer aborts the process where no OpenGL library is loaded."""
    pool = EnvpoolVecEnv(id, 1, 0, options, flatten_obs, obs_key=obs_key)
    pool.close()
    where = "task.render_id" if render_id else "task.id (rendering takes gymnasium's twin; name another in task.render_id)"
    spec = find_spec(render_id or id, where)
    limit = options.pop("max_episode_steps", None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "HalfCheetah-v4 is out of date": the user asked for it
        twin = LocalVecEnv(GymMaker(spec, [], options, limit), num_envs, seed, render_mode)
    if not _alike(pool.observation_space, twin.observation_space) or not _alike(pool.action_space, twin.action_space):
        twin.close()
        raise UserError(
            f"cannot render EnvPool's '{id}' as gymnasium's '{spec.id}': spaces {pool.observation_space}, {pool.action_space} "
            f"against {twin.observation_space}, {twin.action_space}. Name a gymnasium id with the same spaces in task.render_id"
        )
    return twin


def _alike(one: spaces.Space, other: spaces.Space) -> bool:
    """Equal in what a policy's shapes and action scale depend on; the bounds of observations are not."""
    if isinstance(one, spaces.Discrete) or isinstance(other, spaces.Discrete):
        return one == other
    return type(one) is type(other) and one.shape == other.shape
