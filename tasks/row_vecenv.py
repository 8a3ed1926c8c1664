"""From groups of single environments to one VecEnv, wherever the groups live."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterable
from typing import Any, NoReturn

import cloudpickle
import gymnasium
import numpy as np
import torch

from core.errors import UserError
from core.vecenv import Obs, VecEnv
from tasks import rows
from tasks.env_group import EnvGroup, Failure
from tasks.one_env import Maker


class RowVecEnv(VecEnv):
    """Rows are environment-major: row = environment * num_agents + agent. Same-step reset.

    With a central value, observations are {"obs": (N, ...), "states": (num_envs, ...)}: one state per environment, as in rl_games.
    infos: `time_outs` (N,), `terminal_obs` like the observations, and every number that an environment reports, as (N,) arrays
    (0 where an environment did not report it).

    A subclass starts the groups, calls `_describe`, and writes `_ask` and `_attach`.
    """

    reset_mode = "same_step"

    def __init__(self, num_envs: int, render_mode: str | None) -> None:
        self.num_envs = num_envs
        self.render_mode = render_mode
        self._masks: np.ndarray | None = None
        self._rows: dict[str, Any] = {}

    def _ask(self, method: str, arguments: list[tuple[Any, ...]] | None = None) -> list[Any]:
        """Calls `method` on every group, with one argument tuple each, and returns the answers in the groups' order.

        Raises UserError where an environment raised or a group is gone.
        """
        raise NotImplementedError

    def _attach(self, layout: dict[str, Any]) -> dict[str, Any]:
        """Allocates the arrays of all environments for a `tasks.rows.layout`, where `_step` finds the groups' results."""
        raise NotImplementedError

    def _step(self, actions: list[tuple[np.ndarray]]) -> list[dict[str, np.ndarray]]:
        """Steps every group, so that `self._rows` holds their results; returns their infos."""
        return self._ask("step", actions)

    def _describe(self, info: dict[str, Any], sizes: list[int]) -> None:
        """info: `OneEnv.info()`; sizes: environments per group."""
        self.observation_space = info["observation_space"]
        self.action_space = info["action_space"]
        self.state_space = info["state_space"]
        self.num_agents = info["num_agents"]
        self.value_size = info["value_size"]
        self.max_episode_steps = info["max_episode_steps"]
        self._has_masks = info["has_masks"]
        self._groups = len(sizes)
        ends = np.cumsum(sizes).tolist()
        self._spans = [(end - size, end) for end, size in zip(ends, sizes, strict=True)]  # environments of each group
        if self.render_mode is not None and self.render_mode not in info["render_modes"]:
            self.close()
            raise UserError(f"this environment cannot render '{self.render_mode}'. It offers: {info['render_modes'] or '(nothing)'}")

    def reset(self) -> Obs:
        answers = self._ask("reset")
        obs = rows.tree_map(lambda *leaves: np.concatenate(leaves), *[obs for obs, _ in answers])
        masks = np.concatenate([masks for _, masks in answers]) if self._has_masks else None
        if not self._rows:  # only an observation tells its true shape and type
            self._rows = self._attach(rows.layout(obs, self.num_agents, self.value_size, masks))
        self._masks = None if masks is None else rows.flat(masks)
        return rows.flat(obs)

    def step(self, actions: Any) -> tuple[Obs, np.ndarray, np.ndarray, dict[str, Any]]:
        if not self._rows:
            raise RuntimeError("reset() comes before step()")
        given, agents = to_numpy(actions), self.num_agents
        reported = self._step([(given[start * agents : stop * agents],) for start, stop in self._spans])
        results = self._rows
        obs = rows.flat(results["obs"])
        infos = self._join_infos(reported)
        infos["time_outs"] = rows.flat(results["time_outs"])
        infos["terminal_obs"] = obs
        ended = np.flatnonzero(results["ended"])
        if len(ended):
            infos["terminal_obs"] = rows.tree_map(lambda now, last: _with_last(now, last, ended), results["obs"], results["terminal"])
        self._masks = rows.flat(results["masks"]) if self._has_masks else None
        return obs, rows.flat(results["rewards"]), rows.flat(results["dones"]), infos

    def has_action_masks(self) -> bool:
        return self._has_masks

    def get_action_masks(self) -> np.ndarray:
        """(N, A) booleans for the observation that `reset` or `step` returned last."""
        if self._masks is None:
            raise UserError("use_action_masks is on, but this environment has no get_action_mask()")
        return self._masks

    def get_number_of_agents(self) -> int:
        return self.num_agents

    def set_weights(self, indices: Iterable[int], weights: Any) -> None:
        """Self-play: rl_games' manager hands the opponents' weights to the environments `indices`."""
        chosen = [int(i) for i in indices]
        self._ask("set_weights", [(chosen, weights)] * self._groups)

    def render(self) -> np.ndarray:
        return self._ask("render")[0]

    def _join_infos(self, reported: list[dict[str, np.ndarray]]) -> dict[str, Any]:
        joined: dict[str, Any] = {}
        for key in dict.fromkeys(key for columns in reported for key in columns):
            known = [columns.get(key) for columns in reported]
            shapes = {column.shape[1:] for column in known if column is not None}
            if len(shapes) == 1:  # else the groups disagree on what this is
                dtype, shape = np.result_type(*[column for column in known if column is not None]), (self.num_envs, *shapes.pop())
                joined[key] = np.zeros(shape, dtype)
                for (start, stop), column in zip(self._spans, known, strict=True):
                    if column is not None:
                        joined[key][start:stop] = column
                joined[key] = joined[key].reshape(-1, *shape[2:])
        return joined


class LocalVecEnv(RowVecEnv):
    """All environments in this process, one after the other.

    Args:
        maker: builds environment i.
        seed: of environment 0; environment i gets seed + i. None: unseeded.
    """

    def __init__(self, maker: Maker, num_envs: int, seed: int | None = None, render_mode: str | None = None) -> None:
        super().__init__(num_envs, render_mode)
        self._group = EnvGroup(range(num_envs), seed, False, render_mode)
        info = self._ask("start", [(maker,)])[0]
        self._describe(info, [num_envs])

    def _ask(self, method: str, arguments: list[tuple[Any, ...]] | None = None) -> list[Any]:
        answer = getattr(self._group, method)(*(arguments[0] if arguments else ()))
        if isinstance(answer, Failure):
            raise_failure(answer, method)
        return [answer]

    def _attach(self, layout: dict[str, Any]) -> dict[str, Any]:
        arrays = rows.allocate(layout, self.num_envs)
        self._ask("attach", [(arrays,)])
        return arrays

    def close(self) -> None:
        self._group.close()


def _with_last(now: np.ndarray, last: np.ndarray, ended: np.ndarray) -> np.ndarray:
    """A copy in rows, with the episode's last observation where it ended."""
    made = now.copy()
    made[ended] = last[ended]
    return made.reshape(-1, *made.shape[2:])


def raise_failure(failure: Failure, method: str, place: str = "") -> NoReturn:
    """A UserError with the traceback of an environment; place: `, in ...`, where it ran."""
    if failure.mistake:
        raise UserError(failure.text)
    raise UserError(f"environment {failure.index} raised in {method}{place}:\n{failure.text}")


def to_numpy(actions: Any) -> np.ndarray:
    """Actions as an array, from wherever the policy lives."""
    return actions.cpu().numpy() if isinstance(actions, torch.Tensor) else np.asarray(actions)


def portable(maker: Maker) -> bytes:
    """What another process needs to build the same environments: the maker, and what was registered with gymnasium at run time.

    Raises UserError if the maker cannot be pickled.
    """
    # files named on the command line are modules that no other process can import by name, so their code travels itself
    outside = [module for name, module in list(sys.modules.items()) if name.startswith("outside_")]
    for module in outside:
        cloudpickle.register_pickle_by_value(module)
    try:
        specs = [_pickled(spec) for spec in gymnasium.registry.values() if _is_runtime(spec)]
        return pickle.dumps({"maker": cloudpickle.dumps(maker), "specs": [spec for spec in specs if spec]})
    except (TypeError, AttributeError, pickle.PicklingError) as error:
        raise UserError(f"the environment's creator cannot be sent to a worker: {error}. Use task.vecenv=sync") from error
    finally:
        for module in outside:
            cloudpickle.unregister_pickle_by_value(module)


def _is_runtime(spec: Any) -> bool:
    return callable(spec.entry_point) or not str(spec.entry_point).startswith("gymnasium.envs.")


def _pickled(spec: Any) -> bytes | None:
    """None where it cannot be: an unrelated environment must not stop this one."""
    try:
        return cloudpickle.dumps(spec)
    except (TypeError, AttributeError, pickle.PicklingError):
        return None
