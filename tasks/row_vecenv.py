"""From groups of single environments to one VecEnv, wherever the groups live."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterable
from typing import Any

import cloudpickle
import gymnasium
import numpy as np
import torch

from core.errors import UserError
from core.vecenv import Obs, VecEnv
from tasks.one_env import Batch, EnvGroup, Failure, Maker, join


class RowVecEnv(VecEnv):
    """Rows are environment-major: row = environment * num_agents + agent. Same-step reset.

    With a central value, observations are {"obs": (N, ...), "states": (num_envs, ...)}: one state per environment, as in rl_games.
    infos: `time_outs` (N,), `terminal_obs` like the observations, and every number that an environment reports, as (N,) arrays
    (0 where an environment did not report it).

    A subclass starts the groups, calls `_describe`, and writes `_ask`.
    """

    reset_mode = "same_step"

    def __init__(self, num_envs: int, render_mode: str | None) -> None:
        self.num_envs = num_envs
        self.render_mode = render_mode
        self._masks: np.ndarray | None = None

    def _ask(self, method: str, arguments: list[tuple[Any, ...]] | None = None) -> list[Any]:
        """Calls `method` on every group, with one argument tuple each, and returns the answers in the groups' order.

        Raises UserError where an environment raised or a group is gone.
        """
        raise NotImplementedError

    def _describe(self, info: dict[str, Any], sizes: list[int]) -> None:
        """info: `OneEnv.info()`; sizes: environments per group."""
        self.observation_space = info["observation_space"]
        self.action_space = info["action_space"]
        self.state_space = info["state_space"]
        self.num_agents = info["num_agents"]
        self.value_size = info["value_size"]
        self._has_masks = info["has_masks"]
        self._groups = len(sizes)
        self._cuts = np.cumsum(sizes)[:-1] * self.num_agents
        if self.render_mode is not None and self.render_mode not in info["render_modes"]:
            self.close()
            raise UserError(f"this environment cannot render '{self.render_mode}'. It offers: {info['render_modes'] or '(nothing)'}")

    def reset(self) -> Obs:
        batches = self._ask("reset")
        self._masks = self._join_masks(batches)
        return join([batch.obs for batch in batches])

    def step(self, actions: Any) -> tuple[Obs, np.ndarray, np.ndarray, dict[str, Any]]:
        batches = self._ask("step", [(part,) for part in np.split(to_numpy(actions), self._cuts)])
        obs = join([batch.obs for batch in batches])
        infos = self._join_infos([info for batch in batches for info in batch.infos])
        infos["time_outs"] = np.concatenate([batch.time_outs for batch in batches])
        infos["terminal_obs"] = obs
        if any(batch.terminal_obs is not None for batch in batches):
            infos["terminal_obs"] = join([b.obs if b.terminal_obs is None else b.terminal_obs for b in batches])
        self._masks = self._join_masks(batches)
        rewards = np.concatenate([batch.rewards for batch in batches])
        return obs, rewards, np.concatenate([batch.dones for batch in batches]), infos

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

    def _join_masks(self, batches: list[Batch]) -> np.ndarray | None:
        return np.concatenate([batch.masks for batch in batches]) if self._has_masks else None

    def _join_infos(self, infos: list[dict[str, Any]]) -> dict[str, Any]:
        joined: dict[str, Any] = {}
        for i, info in enumerate(infos):
            for key, value in info.items():
                if key not in joined:
                    joined[key] = np.zeros(self.num_envs * self.num_agents, dtype=np.asarray(value).dtype)
                joined[key][i * self.num_agents : (i + 1) * self.num_agents] = value
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
            raise UserError(f"environment {answer.index} raised in {method}:\n{answer.text}")
        return [answer]

    def close(self) -> None:
        self._group.close()


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
