"""Environments of the legacy package `gym`, old API or new: `task=gym task.id=CartPole-v1`."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import importlib
import inspect
import io
import warnings
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from core.errors import UserError
from core.registry import register_task
from core.vecenv import VecEnv
from tasks import offscreen
from tasks.gymnasium_task import apply_wrappers, import_module_of, portable_entry_point, resolve_wrappers
from tasks.one_env import accepts_seed
from tasks.spaces import normalize_spaces
from tasks.vecenvs import check_choice, make_vecenv


def _gym() -> Any:
    """The package. It prints at import that nobody maintains it, and that NumPy 2 is not for it: that is known to whoever asks for it."""
    with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module("gym")


@register_task("gym", needs_modules=("gym",), extra="gym", ids_of_kind=lambda: list(_gym().envs.registry))
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
    ray_address: str | None = None,
) -> VecEnv:
    """N copies of one environment that is registered with legacy gym, reset in the step in which they end.

    Args:
        id: as registered with gym, or `module:Id-v0` to import a module that registers it.
        wrappers: gymnasium's, applied to the adapter, as of kind gymnasium.
        options: keyword arguments of the environment.
        max_episode_steps: replaces the registered time limit; -1: none.
        vecenv, num_workers, ray_config, ray_address: as of kind gymnasium.

    Raises UserError for an unknown id, wrapper or option, for a package that is not installed and for spaces no policy can use.
    """
    check_choice(vecenv, num_workers, ray_config, ray_address)
    maker = LegacyMaker(_find(id), resolve_wrappers(wrappers or []), dict(options or {}), max_episode_steps)
    return make_vecenv(
        maker, num_envs, seed, render_mode, vecenv=vecenv, num_workers=num_workers, ray_config=ray_config, ray_address=ray_address
    )


@dataclasses.dataclass(frozen=True)
class Spec:
    """What gym's registry knows of an environment; travels to processes in which gym was never told of it."""

    id: str
    entry_point: Any  # 'module:attribute', or what makes it
    kwargs: dict[str, Any]
    max_episode_steps: int | None


def _find(id: str | None) -> Spec:
    """Raises UserError with the nearest ids."""
    if not id:
        raise UserError("task.id is missing: which environment of gym? Example: task.id=CartPole-v1")
    module, _, name = str(id).rpartition(":")
    if module:
        import_module_of(str(id), module, "task.id")
    registry = _gym().envs.registry
    if name not in registry:
        close = difflib.get_close_matches(name, list(registry), n=3, cutoff=0.5)
        guess = f"Did you mean {' or '.join(repr(c) for c in close)}? " if close else ""
        raise UserError(
            f"unknown gym environment '{id}' at task.id. {guess}An environment of your own has to be registered first: name its module "
            "with `modules=[...]` or as `module:Id-v0`. What is registered with gymnasium is of kind gymnasium"
        )
    found = registry[name]
    return Spec(name, portable_entry_point(found.entry_point), dict(found.kwargs), found.max_episode_steps)


@dataclasses.dataclass
class LegacyMaker:
    """Builds one environment without gym's own wrappers: its checker does not run under NumPy 2, and its TimeLimit not with four values."""

    spec: Spec
    wrappers: list[tuple[Any, dict[str, Any]]]
    options: dict[str, Any]
    max_episode_steps: int | None

    def __call__(self, index: int, render_mode: str | None) -> gymnasium.Env:
        """Raises UserError for options that the environment does not take, and for a package that it lacks."""
        _gym()
        if render_mode is not None:
            offscreen.prepare(needs_mujoco=False)
        limit = self.spec.max_episode_steps if self.max_episode_steps is None else self.max_episode_steps
        env: gymnasium.Env = Legacy(self._build(render_mode), render_mode)
        if limit is not None and limit > 0:
            env = gymnasium.wrappers.TimeLimit(env, limit)
        return normalize_spaces(apply_wrappers(env, self.wrappers))

    def _build(self, render_mode: str | None) -> Any:
        arguments = {**self.spec.kwargs, **self.options}
        try:
            factory = self.spec.entry_point if callable(self.spec.entry_point) else _load(self.spec.entry_point)
            if render_mode is not None and "render_mode" in inspect.signature(factory).parameters:
                arguments["render_mode"] = render_mode
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of gym's spaces, under NumPy 2
                return factory(**arguments)
        except ImportError as error:
            raise UserError(f"task.id '{self.spec.id}' needs a package: {error}") from error
        except TypeError as error:
            if "keyword argument" in str(error):
                raise UserError(f"task.options: {error}") from error
            raise


def _load(entry_point: str) -> Any:
    module, _, attribute = entry_point.partition(":")
    return getattr(importlib.import_module(module), attribute)


class Legacy(gymnasium.Env):
    """A gym environment as gymnasium's: `reset` with or without a seed and an info, `step` with four values or five, `render(mode)`.

    Of four values, `info["TimeLimit.truncated"]` says whether time was up. Members that rl_games asks for (`get_number_of_agents`,
    `get_action_mask`, ...) are those of the environment.
    """

    def __init__(self, env: Any, render_mode: str | None) -> None:
        self.env = env
        self.render_mode = render_mode
        self.metadata = {"render_modes": [], **(getattr(env, "metadata", None) or {})}
        self.metadata["render_modes"] = self.metadata["render_modes"] or self.metadata.get("render.modes", [])
        self.observation_space, self.action_space = space_of(env.observation_space), space_of(env.action_space)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None and not accepts_seed(self.env.reset):
            if callable(getattr(self.env, "seed", None)):
                self.env.seed(seed)
            result = self.env.reset()
        else:
            result = self.env.reset() if seed is None else self.env.reset(seed=seed)
        return result if isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict) else (result, {})

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        result = self.env.step(action)
        if len(result) == 5:
            return result
        obs, reward, done, info = result
        cut_off = bool(info.get("TimeLimit.truncated", False))
        return obs, reward, bool(done) and not cut_off, bool(done) and cut_off, info

    def render(self) -> Any:
        if "mode" in inspect.signature(self.env.render).parameters:
            return self.env.render(mode=self.render_mode)
        return self.env.render()

    def close(self) -> None:
        self.env.close()


def space_of(space: Any) -> spaces.Space:
    """gymnasium's space of a gym one. Raises UserError for a kind that gymnasium has no like of."""
    kind = type(space).__name__
    if isinstance(space, spaces.Space):  # an environment may mix both packages
        return space
    if kind == "Box":
        return spaces.Box(np.asarray(space.low), np.asarray(space.high), dtype=space.dtype.type)
    if kind == "Discrete":
        return spaces.Discrete(int(space.n), start=int(getattr(space, "start", 0)))
    if kind == "MultiDiscrete":
        return spaces.MultiDiscrete(np.asarray(space.nvec))
    if kind == "MultiBinary":
        return spaces.MultiBinary(tuple(space.shape) if len(space.shape) > 1 else int(space.shape[0]))
    if kind == "Dict":
        return spaces.Dict({key: space_of(part) for key, part in space.spaces.items()})
    if kind == "Tuple":
        return spaces.Tuple([space_of(part) for part in space.spaces])
    raise UserError(f"task.id: gym's space {space} is none of Box, Discrete, MultiDiscrete, MultiBinary, Dict, Tuple")
