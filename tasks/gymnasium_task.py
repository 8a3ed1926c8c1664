"""Any gymnasium environment: `task=gymnasium task.id=CartPole-v1`, in this process, in processes of its own, or in Ray workers."""

from __future__ import annotations

import copy
import dataclasses
import difflib
import functools
import importlib
import inspect
import os
import time
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from core.errors import UserError, unknown
from core.registry import register_task
from core.vecenv import Obs, VecEnv, tree_map
from tasks import offscreen
from tasks.one_env import seed_globals
from tasks.ray_vecenv import RayVecEnv
from tasks.row_vecenv import to_numpy
from tasks.spaces import float_obs, float_space, normalize_spaces

VECENVS = ("sync", "async", "ray")
EXTRAS = ("mujoco", "box2d", "toy_text", "classic_control")  # gymnasium's packages that need more than gymnasium


@register_task("gymnasium")
def make(
    *,
    num_envs: int,
    seed: int | None,
    device: str,
    render_mode: str | None = None,
    id: str | None = None,
    vecenv: str = "sync",
    wrappers: list[dict[str, Any] | str] | None = None,
    options: dict[str, Any] | None = None,
    max_episode_steps: int | None = None,
    num_workers: int | None = None,
    ray_config: dict[str, Any] | None = None,
) -> VecEnv:
    """N copies of one gymnasium environment, reset in the step in which they end.

    Args:
        id: as registered with gymnasium, or `module:Id-v0` to import a module that registers it.
        vecenv: sync (this process), async (one process each) or ray (workers).
        wrappers: applied in order: {name: of gymnasium.wrappers or a dotted path, and the wrapper's own arguments}.
        options: keyword arguments of gymnasium.make.
        max_episode_steps: replaces the registered time limit; -1: none.
        num_workers, ray_config: with vecenv=ray only.

    Raises UserError for an unknown id, wrapper or option, for a package that is not installed and for spaces no policy can use.
    """
    if vecenv not in VECENVS:
        raise unknown("vecenv", vecenv, VECENVS, "task.vecenv")
    if vecenv != "ray" and (num_workers is not None or ray_config):
        raise UserError(f"task.num_workers and task.ray_config belong to task.vecenv=ray; it is '{vecenv}'")
    maker = GymMaker(find_spec(id), resolve_wrappers(wrappers or []), dict(options or {}), max_episode_steps)
    if vecenv == "ray":
        maker(0, render_mode).close()  # the mistakes that a user can make show here, before workers start
        return RayVecEnv(maker, num_envs, seed, render_mode, num_workers, ray_config)
    return GymnasiumVecEnv(maker, num_envs, seed, render_mode, vecenv)


@dataclasses.dataclass
class GymMaker:
    """Builds one environment; travels to other processes."""

    spec: EnvSpec
    wrappers: list[tuple[Any, dict[str, Any]]]
    options: dict[str, Any]
    max_episode_steps: int | None

    def __call__(self, index: int, render_mode: str | None) -> gymnasium.Env:
        """Environment `index`; only the first is checked against gymnasium's API, as all are alike."""
        options = {"disable_env_checker": index > 0, **self.options}
        if render_mode is not None:
            options["render_mode"] = render_mode
            offscreen.prepare(".mujoco." in str(self.spec.entry_point))
        try:
            env = gymnasium.make(self.spec, max_episode_steps=self.max_episode_steps, **options)
        except (gymnasium.error.DependencyNotInstalled, ImportError) as error:
            raise UserError(f"task.id '{self.spec.id}' needs a package: {_install_hint(self.spec, error)}") from error
        except TypeError as error:
            if "keyword argument 'render_mode'" in str(error):
                raise UserError(f"task.id '{self.spec.id}' cannot render: its __init__ takes no render_mode") from error
            if "keyword argument" in str(error):
                raise UserError(f"task.options: {error}") from error
            raise
        except gymnasium.error.Error as error:
            raise UserError(f"task.id '{self.spec.id}': {error}") from error
        for position, (wrapper, arguments) in enumerate(self.wrappers):
            try:
                env = wrapper(env, **arguments)
            except (TypeError, ValueError, AssertionError) as error:
                raise UserError(f"task.wrappers[{position}] {wrapper.__name__}({arguments}): {error}") from error
        return normalize_spaces(env)


class GymnasiumVecEnv(VecEnv):
    """gymnasium's own vector environments with same-step reset.

    infos: `time_outs` (N,), `terminal_obs`, and every numeric entry of the transition's info, (N, ...).
    """

    reset_mode = "same_step"

    def __init__(self, maker: GymMaker, num_envs: int, seed: int | None, render_mode: str | None, vecenv: str) -> None:
        self.num_envs = num_envs
        self.render_mode = render_mode
        self._seed = seed
        self._async = vecenv == "async"
        makers = [functools.partial(_seeded, maker, i, seed, render_mode, os.getpid(), self._async) for i in range(num_envs)]
        cls = AsyncVectorEnv if self._async else SyncVectorEnv
        self._envs = cls(makers, autoreset_mode=AutoresetMode.SAME_STEP)
        self.observation_space = float_space(self._envs.single_observation_space)
        self.action_space = self._envs.single_action_space
        modes = self._envs.metadata.get("render_modes") or []
        if render_mode is not None and render_mode not in modes:
            self.close()
            raise UserError(f"task.id '{maker.spec.id}' cannot render '{render_mode}'. It offers: {modes or '(nothing)'}")

    def reset(self) -> Obs:
        seed, self._seed = self._seed, None
        return float_obs(self._call(self._envs.reset, seed=seed)[0])

    def step(self, actions: Any) -> tuple[Obs, np.ndarray, np.ndarray, dict[str, Any]]:
        raw, rewards, terminated, truncated, raw_infos = self._call(self._envs.step, to_numpy(actions))
        obs, dones = float_obs(raw), terminated | truncated
        infos = _numeric(raw_infos, dones)
        infos["time_outs"] = truncated & ~terminated
        infos["terminal_obs"] = obs
        if dones.any():
            infos["terminal_obs"] = tree_map(np.copy, obs)
            for i in np.flatnonzero(dones):
                _put_row(infos["terminal_obs"], int(i), raw_infos["final_obs"][i])
        return obs, rewards.astype(np.float32), dones, infos

    def render(self) -> np.ndarray:
        if isinstance(self._envs, SyncVectorEnv):
            return self._envs.envs[0].render()  # type: ignore[return-value]  # rgb_array returns an array
        return self._call(self._envs.render)[0]

    def close(self) -> None:
        if self._envs.closed:
            return
        if isinstance(self._envs, AsyncVectorEnv):
            # gymnasium's own close waits for answers, and a dead process gives none
            for process in self._envs.processes:
                process.terminate()
            for process in self._envs.processes:
                process.join()
            for pipe in self._envs.parent_pipes:
                if pipe is not None:  # gymnasium's mark of a process that raised
                    pipe.close()
            self._envs.closed = True
        else:
            self._envs.close()

    def _call(self, method: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return method(*args, **kwargs)
        except (EOFError, BrokenPipeError, ConnectionResetError) as error:
            time.sleep(0.1)  # the pipe closes a moment before the process is gone
            dead = [i for i, process in enumerate(getattr(self._envs, "processes", [])) if not process.is_alive()]
            self.close()
            raise UserError(f"task.vecenv=async: the process of environment {dead} died") from error


def find_spec(id: str | None, where: str = "task.id") -> EnvSpec:
    """The registered EnvSpec of an id, importing its module if it has one. Raises UserError with the nearest ids."""
    if not id:
        raise UserError(f"{where} is missing: which gymnasium environment? Example: {where}=CartPole-v1")
    module, _, name = str(id).rpartition(":")
    if name.startswith("ALE/") and name not in gymnasium.registry:
        module = module or "ale_py"
    if module:
        try:
            importlib.import_module(module)
        except ImportError as error:
            hint = "pip install ale-py" if module == "ale_py" else "is the module on the path?"
            raise UserError(f"{where} '{id}': cannot import '{module}': {error} ({hint})") from error
    if name not in gymnasium.registry:
        close = difflib.get_close_matches(name, list(gymnasium.registry), n=3, cutoff=0.5)
        guess = f"Did you mean {' or '.join(repr(c) for c in close)}? " if close else ""
        raise UserError(
            f"unknown gymnasium environment '{id}' at {where}. {guess}"
            "An environment of your own has to be registered first: name its module with `modules=[...]` or as `module:Id-v0`"
        )
    spec = copy.copy(gymnasium.registry[name])
    if isinstance(spec.entry_point, str) and spec.entry_point.startswith("outside_"):
        owner, _, attribute = spec.entry_point.partition(":")
        spec.entry_point = getattr(importlib.import_module(owner), attribute)  # its module has no name in other processes
    return spec


def resolve_wrappers(entries: list[dict[str, Any] | str]) -> list[tuple[Any, dict[str, Any]]]:
    """From the YAML's entries to classes and arguments. Raises UserError naming the entry."""
    resolved = []
    for position, entry in enumerate(entries):
        where = f"task.wrappers[{position}]"
        arguments = {"name": entry} if isinstance(entry, str) else dict(entry)
        name = arguments.pop("name", None)
        if not name:
            raise UserError(f"{where} has no name. Example: {{name: FrameStackObservation, stack_size: 4}}")
        resolved.append((_wrapper_class(name, where), arguments))
    return resolved


def _wrapper_class(name: str, where: str) -> Any:
    if "." not in name and ":" not in name:
        known = [key for key, value in vars(gymnasium.wrappers).items() if inspect.isclass(value)]
        if name not in known:
            raise unknown("wrapper", name, known, where)
        return getattr(gymnasium.wrappers, name)
    module, _, attribute = name.replace(":", ".").rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(f"{where}: no wrapper '{name}': {error}") from error


def _seeded(maker: GymMaker, index: int, seed: int | None, render_mode: str | None, parent: int, is_async: bool) -> gymnasium.Env:
    if seed is not None and os.getpid() != parent:
        seed_globals(seed + index)  # a forked process starts with its parent's generators, the same in all of them
    # gymnasium asks every asynchronous environment for its picture, so each needs the mode
    env = maker(index, render_mode if index == 0 or is_async else None)
    if seed is not None:
        env.action_space.seed(seed + index)
    return env


def _numeric(raw: dict[str, Any], dones: np.ndarray) -> dict[str, Any]:
    """The numeric entries of gymnasium's infos. Where an episode ended, those of its last step, not those of the reset after it."""
    infos = {key: value for key, value in raw.items() if _is_numeric(key, value)}
    for key, value in raw.get("final_info", {}).items():
        if _is_numeric(key, value):
            infos[key] = infos[key].copy() if key in infos else np.zeros_like(value)
            infos[key][dones] = value[dones]
    return infos


def _is_numeric(key: str, value: Any) -> bool:
    return not key.startswith("_") and isinstance(value, np.ndarray) and value.dtype.kind in "biuf"


def _put_row(tree: Any, row: int, value: Any) -> None:
    if isinstance(tree, dict):
        for key in tree:
            _put_row(tree[key], row, value[key])
    else:
        tree[row] = value


def _install_hint(spec: EnvSpec, error: Exception) -> str:
    for extra in EXTRAS:
        if f".{extra}." in str(spec.entry_point):
            return f"{error}. Try: pip install 'gymnasium[{extra.replace('_', '-')}]'"
    return str(error)
