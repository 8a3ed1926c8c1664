"""Any EnvPool environment: `task=envpool task.id=HalfCheetah-v4`, stepped by C++ threads."""

from __future__ import annotations

import difflib
import importlib
import os
import warnings
from typing import Any

import numpy as np
from gymnasium import spaces

from core.errors import UserError, unknown
from core.registry import register_task
from core.vecenv import Obs, VecEnv
from tasks import envpool_families
from tasks.envpool_games import AgainstRandom, seats
from tasks.envpool_spaces import MASK, Actions, Observations
from tasks.gymnasium_task import GymMaker, find_spec
from tasks.row_vecenv import LocalVecEnv, to_numpy

OWN_KEYS = {"num_envs": "task.num_envs", "seed": "seed", "num_threads": "task.num_threads"}
QUICK = ("envpool.classic_control", "envpool.toy_text")  # families whose step takes less than waking a thread
FIXED_KEYS = ("batch_size", "env_type", "gym_reset_return_info")
ATARI_SCALE = 4  # 84 x 84 frames are too small to watch
OWN_PICTURES = ("envpool.minigrid", "envpool.procgen", "envpool.jumanji", "envpool.pgx", "envpool.highway", "envpool.vizdoom")
SUCCESS = ("success", "is_success", "solved", "prev_level_complete")  # what the families call it: MetaWorld, Fetch, MyoSuite, Procgen
DEFAULTS: dict[str, dict[str, Any]] = {
    "envpool.vizdoom": {"use_combined_action": True}
}  # buttons as one Discrete, not numbers without bounds
LEGAL = "legal_action_mask"  # the board games' name for the mask, in infos
MULTIPLAYER_DOOM = "EnvPool's '{id}' is a game of several players over a network: EnvPool 1.2.5 ends the whole process where it is made"
UNSERVED = {
    "Cig-v1": MULTIPLAYER_DOOM,
    "MultiDuel-v1": MULTIPLAYER_DOOM,
}


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
    opponent: str = "self",
    one_hot: list[int] | None = None,
) -> VecEnv:
    """N EnvPool environments, reset in the step after the one in which they end.

    Args:
        id: one of envpool.list_all_envs().
        options: keyword arguments of envpool.make, e.g. max_episode_steps, episodic_life, frame_skip.
        obs_key: the only entry of a Dict observation that is used, e.g. MiniGrid's `image`.
        flatten_obs: one vector, except of a picture in bytes; a Dict's parts in EnvPool's order. false: a Dict stays a Dict.
        use_dict_obs_space: observations {observation, reward, last_action}, as in rl_games.
        num_threads: 0: one more than there are cores, for quick environments EnvPool's own choice (as many as there are cores).
        render_id: gymnasium id to take the pictures from, where it is not `id` (EnvPool cannot render everywhere).
        opponent: in board games: self (the policy plays all players) or random (one of them, against random moves).
        one_hot: choices of each channel of a picture of symbols: MiniGrid's `image` with [11, 6, 4] (object, colour, state) is one-hot.

    With a render_mode, Atari shows its last observed frame, families that draw without OpenGL their own pictures, every other id runs
    as its gymnasium twin (same-step reset).

    Raises UserError for an unknown id or option, where a library lacks, and where nothing can render.
    """
    if num_envs < 1:
        raise UserError(f"task.num_envs={num_envs}: at least 1")
    if render_mode is None or _family(id) in ("envpool.atari", *OWN_PICTURES):
        return EnvpoolVecEnv(
            id, num_envs, seed, dict(options or {}), flatten_obs, use_dict_obs_space, num_threads, render_mode, obs_key, opponent, one_hot
        )
    if use_dict_obs_space or one_hot:
        raise UserError(f"task.{'one_hot' if one_hot else 'use_dict_obs_space'} cannot be rendered here: its pictures are gymnasium's")
    return _gymnasium_twin(id, num_envs, seed, render_mode, dict(options or {}), flatten_obs, obs_key, render_id)


class EnvpoolVecEnv(VecEnv):
    """EnvPool behind VecEnv. Next-step reset. N rows: environments, or in games of several players environments times players.

    infos: `time_outs` (N,), `elapsed_step` (E,) for E environments; for Atari `scores` (E,), the raw score of the running game, and, with
    episodic_life, `lives` (E,): a game is over where they are 0. Where the environment says what success is: `success` (E,) bool, whether
    it had any in the running episode, and `success_at_end` (E,), whether it has now; in a game against random moves, whether it was won.
    The row that only resets counts for none of them.
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
        opponent: str = "self",
        one_hot: list[int] | None = None,
    ) -> None:
        self.num_envs = num_envs
        self.render_mode = render_mode
        if seed is None:  # EnvPool's own default is the constant 42
            seed = int(np.random.SeedSequence().generate_state(1)[0])
        seed %= 2**31  # EnvPool takes no larger ones
        family = _family(id)
        self._draws_itself = render_mode is not None and family in OWN_PICTURES
        self._pool = _make_pool(id, num_envs, seed, num_threads, options, render_mode if self._draws_itself else None)
        try:
            self._describe(flatten_obs, obs_key, one_hot, use_dict_obs_space, opponent, seed)
        except UserError:
            self.close()
            raise
        except RuntimeError as error:  # some files are first read by a reset
            self.close()
            raise UserError(f"EnvPool cannot reset '{id}' at task.id: {str(error).splitlines()[0]}") from error
        self._episodic_life = bool(options.get("episodic_life", False))
        self._scores = np.zeros(num_envs, dtype=np.float32)
        self._frame: np.ndarray | None = None
        self._masks: np.ndarray

    def _describe(self, flatten: bool, key: str | None, one_hot: list[int] | None, with_reward: bool, opponent: str, seed: int) -> None:
        """Spaces, players and masks: some of it only a first observation tells."""
        pool = self._pool
        self.max_episode_steps = getattr(pool.spec.config, "max_episode_steps", 0) or None
        obs, info = self._unseen = pool.reset()  # the run's first reset, and not the second of these seeds
        self._observations = Observations(pool.observation_space, flatten, key, one_hot)
        self.observation_space = self._observations.space
        if isinstance(obs, dict) and MASK in obs:
            self._mask_of: Any = lambda obs, info: obs[MASK]
        else:
            self._mask_of = (lambda obs, info: info[LEGAL]) if LEGAL in info else None
        mask = None if self._mask_of is None else self._mask_of(obs, info)
        self._actions = Actions(pool.action_space, None if mask is None else mask.shape[1:], _sizes(pool.observation_space))
        self.action_space = self._actions.space
        self._seats = seats(info, self.num_envs, opponent, seed)
        self.num_agents = self._seats.players
        self._wins = isinstance(self._seats, AgainstRandom)
        self._success_key = next((name for name in SUCCESS if name in info), None)
        self._with_reward = with_reward
        if with_reward:
            if not isinstance(self.action_space, spaces.Discrete) or self.num_agents > 1:
                raise UserError(
                    f"task.use_dict_obs_space needs a Discrete action space and one player; here: {self.action_space}, {self.num_agents}"
                )
            self.observation_space = spaces.Dict(
                {
                    "observation": self.observation_space,
                    "reward": spaces.Box(-1.0, 1.0, (), np.float32),
                    "last_action": spaces.Box(0.0, float(self.action_space.n), (), np.float32),
                }
            )
        self._begin(obs, info)

    def _begin(self, obs: Any, info: dict[str, Any]) -> None:
        self._ended = np.zeros(self.num_envs, dtype=bool)
        self._success = np.zeros(self.num_envs, dtype=bool)
        self._look(obs, info)

    def _look(self, obs: Any, info: dict[str, Any]) -> None:
        """Keeps the masks of what was just observed, and whose turn it is."""
        self._seats.look(info)
        if self._mask_of is not None:
            self._masks = self._seats.masks(self._actions.mask(self._mask_of(obs, info)))

    def reset(self) -> Obs:
        obs, info = self._unseen or self._pool.reset()
        self._unseen = None
        self._scores[:] = 0.0
        self._begin(obs, info)
        rows = np.zeros(self.num_envs * self.num_agents, np.float32)
        return self._observe(obs, rows, rows)

    def step(self, actions: Any) -> tuple[Obs, np.ndarray, np.ndarray, dict[str, Any]]:
        array = to_numpy(actions)
        obs, rewards, terminated, truncated, raw = self._pool.step(self._actions(self._seats.actions(array)))  # which makes it its own type
        seats = self._seats
        infos = {"time_outs": seats.each(truncated & ~terminated), "elapsed_step": raw["elapsed_step"]}
        if "reward" in raw:  # Atari: what the game gave, before clipping
            self._scores += raw["reward"]
            infos["scores"] = self._scores.copy()
            self._scores[raw["terminated"].astype(bool) | truncated] = 0.0  # a lost life is no lost game
            if self._episodic_life:
                infos["lives"] = raw["lives"]
        rewards = seats.rows(rewards)
        if self._success_key is not None or self._wins:
            self._note_success(rewards > 0 if self._wins else raw[self._success_key] > 0.5, infos)
        taken = np.where(self._ended, 0, array) if self._with_reward else array  # a reset row took no action
        self._ended = terminated | truncated
        self._look(obs, raw)
        return self._observe(obs, rewards, taken), rewards, seats.each(self._ended), infos

    def has_action_masks(self) -> bool:
        return self._mask_of is not None

    def get_action_masks(self) -> np.ndarray:
        """(N, choices) booleans for the observation that `reset` or `step` returned last."""
        if self._mask_of is None:
            raise UserError("use_action_masks is on, but this EnvPool environment does not say which actions are allowed")
        return self._masks

    def get_number_of_agents(self) -> int:
        return self.num_agents

    def render(self) -> np.ndarray:
        """The picture of environment 0; Atari: the newest grey frame that its policy saw, four times as large."""
        if self._draws_itself:
            return self._pool.render()[0]
        assert self._frame is not None, "render() before reset()"
        return np.repeat(np.repeat(np.stack([self._frame] * 3, axis=-1), ATARI_SCALE, axis=0), ATARI_SCALE, axis=1)

    def close(self) -> None:
        self._pool.close()

    def _note_success(self, now: np.ndarray, infos: dict[str, Any]) -> None:
        now = now & ~self._ended  # the row that resets is no step
        self._success = np.where(self._ended, False, self._success) | now
        infos["success"], infos["success_at_end"] = self._success, now

    def _observe(self, obs: Any, rewards: np.ndarray, actions: np.ndarray) -> Obs:
        if self.render_mode is not None and not self._draws_itself:
            self._frame = obs[0, -1].copy()
        seen = self._observations(obs) if self.num_agents == 1 and not self._wins else self._seats.rows(self._observations(obs))
        if not self._with_reward:
            return seen
        return {"observation": seen, "reward": np.clip(rewards, -1, 1), "last_action": actions.astype(np.float32)}


def _sizes(space: spaces.Space) -> list[int] | None:
    """Choices of each number of an action, where EnvPool gives the largest for all: the cube's face, depth and amount of a turn."""
    if isinstance(space, spaces.Dict) and "cube" in space.spaces:
        faces, side, _ = space["cube"].shape or ()
        return [faces, side // 2, 3]
    return None


def _make_pool(id: str | None, num_envs: int, seed: int, num_threads: int, options: dict[str, Any], render_mode: str | None) -> Any:
    if not id:
        raise UserError("task.id is missing: which EnvPool environment? Example: task.id=HalfCheetah-v4")
    envpool = envpool_families.load(str(id))
    specs = envpool.registration.registry.specs
    if id not in specs:
        close = difflib.get_close_matches(str(id), envpool.list_all_envs(), n=3, cutoff=0.5)
        guess = f"Did you mean {' or '.join(repr(c) for c in close)}? " if close else ""
        raise UserError(f"unknown EnvPool environment '{id}' at task.id. {guess}List: envpool.list_all_envs()")
    if id in UNSERVED:
        raise UserError(f"task.id: {UNSERVED[id].format(id=id)}")
    for key in options:
        if key in OWN_KEYS:
            raise UserError(f"task.options.{key} belongs to {OWN_KEYS[key]}")
        if key in FIXED_KEYS:
            raise UserError(f"task.options.{key} cannot be changed: every environment steps at every step")
    if num_threads < 0:
        raise UserError(f"task.num_threads={num_threads}: valid are 0 (a choice of ours) and more")
    limit = options.get("max_episode_steps")
    if isinstance(limit, int) and limit < 1:  # EnvPool ends every episode after one step then
        raise UserError(f"task.options.max_episode_steps={limit}: EnvPool takes 1 and more; leave it out for the environment's own")
    family = specs[id][0]
    num_threads = num_threads or threads(family, num_envs)
    with warnings.catch_warnings():
        # the spaces' bounds are double and become float: no user can act on that
        warnings.filterwarnings("ignore", message=".*precision lowered by casting.*", category=UserWarning)
        try:
            keys = _option_names(specs[id])
        except ImportError as error:  # a family's libraries: Procgen's Qt 5
            raise UserError(f"EnvPool cannot load what '{id}' at task.id needs: {error}") from error
        for key in options:
            if key not in (*keys, "from_pixels", "render_width", "render_height", "render_camera_id"):
                raise unknown("option", key, set(keys) - set(OWN_KEYS) - set(FIXED_KEYS), f"task.options.{key}")
        chosen = {**DEFAULTS.get(family, {}), **options}
        if render_mode is not None:
            chosen["render_mode"] = render_mode
        try:
            pool = envpool.make(
                id, env_type="gymnasium", num_envs=num_envs, batch_size=num_envs, seed=seed, num_threads=num_threads, **chosen
            )
            # spaces are built on first use, and that is where the warnings come from
            assert pool.observation_space is not None
            assert pool.action_space is not None
        except MemoryError as error:
            raise UserError(f"task.num_envs={num_envs}: not enough memory for so many '{id}'") from error
        except (TypeError, ValueError, RuntimeError) as error:
            told = str(error).splitlines()[0]
            if not options:
                raise UserError(f"EnvPool cannot make '{id}' at task.id: {told}") from error
            raise UserError(f"task.options {options}: EnvPool refuses them: {told}") from error
    return pool


def _option_names(spec: tuple[str, str, dict[str, Any]]) -> tuple[str, ...]:
    """What `envpool.make` takes for an environment, without making its spec, which reads files that an option may name."""
    module, spec_class, _ = spec
    return getattr(importlib.import_module(module), spec_class).gen_config._fields


def threads(family: str, num_envs: int) -> int:
    """EnvPool's threads where nobody said how many; 0: its own choice.

    One more than there are cores: the policy runs on one of them between two steps, and the thread that waited there is late for the next.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 0 if family in QUICK else min(num_envs, cores + 1)


def _family(id: str | None) -> str | None:
    """The module that has an environment, e.g. envpool.atari; None for one that is unknown."""
    if not id:
        return None
    specs = envpool_families.load(str(id)).registration.registry.specs
    return specs[id][0] if id in specs else None


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
