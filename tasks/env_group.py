"""Several environments that step one after the other in one process: a worker's, or all of a run's."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import pickle
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np

from core.errors import UserError
from tasks import rows
from tasks.one_env import Maker, OneEnv, seed_globals

NUMBERS = (bool, int, float, np.number, np.bool_)


@dataclasses.dataclass
class Failure:
    """An environment raised. Sent instead of a result, because an exception's class may not exist in the other process."""

    index: int
    text: str
    mistake: bool  # a UserError: the text says it all


def _answering(method: Callable[..., Any]) -> Callable[..., Any]:
    """Turns whatever the environment raises into a Failure."""

    @functools.wraps(method)
    def wrapper(self: EnvGroup, *args: Any) -> Any:
        try:
            return method(self, *args)
        except UserError as error:
            return Failure(self.current, str(error), True)
        except (Exception, SystemExit):  # user code may raise anything, and all of it has to reach the user
            return Failure(self.current, traceback.format_exc(), False)

    return wrapper


class EnvGroup:
    """E environments of all.

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
        self._rows: dict[str, Any] = {}

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
    def reset(self) -> tuple[Any, np.ndarray | None]:
        """A new episode in each environment. Returns observations (E, k, ...) and action masks (E, k, A) or None."""
        first = []
        for index, env in zip(self.indices, self.envs, strict=True):
            self.current = index
            first.append(env.reset())
        masks = np.stack([env.mask() for env in self.envs]) if self.envs[0].has_masks else None
        return rows.tree_map(lambda *leaves: np.stack(leaves), *first), masks

    @_answering
    def attach(self, arrays: dict[str, Any]) -> None:
        """Where `step` writes: the arrays of these environments (`tasks.rows`). Call it after the first `reset`."""
        self._rows = arrays
        for i, env in enumerate(self.envs):
            env.attach(rows.tree_map(lambda leaf, i=i: leaf[i], arrays))

    @_answering
    def attach_own(self, layout: dict[str, Any]) -> None:
        """`attach` to arrays of this process, for `step_alone`."""
        self.attach(rows.allocate(layout, len(self.envs)))

    @_answering
    def step(self, actions: np.ndarray) -> dict[str, np.ndarray]:
        """actions: (rows of the group, ...). Environments whose episode ended are reset before this returns.

        Writes into the attached arrays. Returns what the environments reported in numbers: (E, agents, ...) per key, 0 where an
        environment did not report it.
        """
        for key in ("dones", "time_outs", "ended"):
            self._rows[key].fill(False)
        agents = self.envs[0].num_agents
        given = actions if agents == 1 else actions.reshape(len(self.envs), agents, *actions.shape[1:])
        reported = []
        for i, env in enumerate(self.envs):
            self.current = self.indices[i]
            info = env.step(given[i])
            if info:
                reported.append((i, info))
        return _columns(reported, len(self.envs), agents) if reported else {}

    @_answering
    def step_alone(self, actions: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """`step` for a process that shares no memory: also returns the arrays, those of `terminal` only where an episode ended."""
        infos = self.step(actions)
        if isinstance(infos, Failure):
            return infos  # type: ignore[return-value]  # the caller looks for one
        ended = self._rows["ended"][:, 0]
        return infos, {**self._rows, "terminal": rows.tree_map(lambda leaf: leaf[ended], self._rows["terminal"])}

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


def _columns(reported: list[tuple[int, dict[str, Any]]], num_envs: int, num_agents: int) -> dict[str, np.ndarray]:
    """(E, agents, ...) per key, of (environment, info) pairs. Texts do not travel, nor arrays whose shapes differ."""
    seen: dict[str, tuple[list[int], list[Any]]] = {}
    for i, info in reported:
        for key, value in info.items():
            if isinstance(value, NUMBERS) or _is_numeric(value, num_agents):
                places, values = seen.setdefault(key, ([], []))
                places.append(i)
                values.append(value)
    columns = {}
    for key, (places, values) in seen.items():
        if len({np.shape(value) for value in values}) > 1:
            continue
        column = np.asarray(values)  # (environments that reported it, ...)
        shape = column.shape[1:]
        if shape[:1] == (num_agents,):
            shape = shape[1:]
        elif shape and num_agents > 1:
            continue
        else:
            column = column[:, None]
        columns[key] = np.zeros((num_envs, num_agents, *shape), column.dtype)
        columns[key][places] = column
    return columns


def _is_numeric(value: Any, num_agents: int) -> bool:
    """An array of numbers, or a list with one for each agent."""
    if isinstance(value, list | tuple) and len(value) == num_agents:
        try:
            value = np.asarray(value)
        except ValueError:  # ragged
            return False
    return isinstance(value, np.ndarray) and value.dtype.kind in "biuf"
