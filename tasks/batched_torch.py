"""What the adapters of batched torch simulators share: mjlab, Brax, Isaac Lab, ManiSkill, IsaacGymEnvs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from core.errors import UserError, unknown
from core.vecenv import Obs, ResetMode, VecEnv, tree_map


class BatchedTorch(VecEnv):
    """A simulator's own batch of environments behind our contract; tensors stay on its device.

    A subclass writes `reset` and `step` with `self.read` for observations and `self.outcome` for the rest, and calls `__init__` with the
    first observations.

    Observations that come in named groups are reduced to two: the policy's, `obs`, and what a central value sees, `states`, if there is
    a group for it.
    """

    reset_mode: ResetMode = "same_step"
    is_torch = True

    def __init__(
        self,
        num_envs: int,
        device: str,
        first_obs: Any,
        action_space: Any,
        action_bound: float,
        obs_group: str | None = None,
        state_group: str | None = None,
        render_mode: str | None = None,
    ) -> None:
        """first_obs: (N, ...) or a mapping of groups. obs_group, state_group: names in it; a state_group that is not there is left out.

        Raises UserError for an unknown obs_group, and for an action space that no policy here can act in.
        """
        self.num_envs, self.device, self.render_mode = num_envs, device, render_mode
        self._obs_group, self._state_group = obs_group, None
        if isinstance(first_obs, Mapping):
            if obs_group not in first_obs:
                raise unknown("observation group", str(obs_group), first_obs, "task.obs_group")
            if state_group in first_obs:
                self._state_group = state_group
        self.action_space = bounded(action_space, action_bound)
        first = self.read(first_obs)
        if self._state_group is not None:
            self.observation_space, self.state_space = space_of(first["obs"]), space_of(first["states"])
        else:
            self.observation_space = space_of(first)

    def read(self, obs: Any) -> Obs:
        """Copies, as simulators write their next observations into the same memory: (N, ...) or {"obs", "states"}; floats are float32."""
        if not isinstance(obs, Mapping):
            return _copy(obs)
        if self._state_group is None:
            return _copies(obs[self._obs_group])
        return {"obs": _copies(obs[self._obs_group]), "states": _copies(obs[self._state_group])}

    def outcome(self, rewards: Any, terminated: Any, truncated: Any) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
        """Rewards (N,) float32, dones (N,) bool, infos with `time_outs`: truncated and not terminated."""
        terminated, truncated = terminated.view(-1).bool(), truncated.view(-1).bool()
        return rewards.view(-1).to(torch.float32, copy=True), terminated | truncated, {"time_outs": truncated & ~terminated}


def bounded(space: Any, bound: float) -> spaces.Space:
    """The simulator's action space as gymnasium's; a Box without limits gets +-bound, for actions are scaled to its limits.

    Raises UserError for a bound that is not above 0 and for a space of another kind."""
    if hasattr(space, "n"):
        return spaces.Discrete(int(space.n))
    shape = getattr(space, "shape", None)
    if isinstance(space, Mapping | spaces.Dict) or not shape:
        raise UserError(f"task.id: its actions are {space}, and a policy here acts in one Box or Discrete space")
    if not bound > 0:
        raise UserError(f"task.action_bound has to be above 0, is {bound}")
    low = np.broadcast_to(np.asarray(space.low, np.float32), shape)
    high = np.broadcast_to(np.asarray(space.high, np.float32), shape)
    return spaces.Box(np.where(np.isfinite(low), low, -bound), np.where(np.isfinite(high), high, bound), dtype=np.float32)


def configure(cfg: Any, values: Mapping[str, Any]) -> None:
    """Writes into a simulator's configuration of nested objects and mappings: {"sim.dt": 0.01, "commands.motion.motion_file": "walk.npz"}.

    Raises UserError for a path that is not there, naming the nearest that is at that place."""
    for path, value in values.items():
        *parents, last = path.split(".")
        place = cfg
        for name in parents:
            place = _members(place, name, path)[name]
        _members(place, last, path)
        if isinstance(place, dict):
            place[last] = value
        else:
            setattr(place, last, value)


def _members(place: Any, name: str, path: str) -> Mapping[str, Any]:
    members = place if isinstance(place, Mapping) else vars(place)
    if name not in members:
        raise unknown("name", name, (str(key) for key in members if not str(key).startswith("_")), f"task.cfg, '{path}'")
    return members


def space_of(obs: Any) -> spaces.Space:
    """The space of one environment, of observations (N, ...): unbounded floats, or bytes."""
    if isinstance(obs, dict):
        return spaces.Dict({key: space_of(value) for key, value in obs.items()})
    shape = tuple(obs.shape[1:])
    if obs.dtype == torch.uint8:
        return spaces.Box(0, 255, shape, np.uint8)
    return spaces.Box(-np.inf, np.inf, shape, np.float32)


def where_done(dones: torch.Tensor, new: Obs, old: Obs) -> Obs:
    """`new` where dones (N,), else `old`; for trees of (N, ...)."""
    return tree_map(lambda a, b: torch.where(dones.view(-1, *[1] * (a.dim() - 1)), a, b), new, old)


def _copies(obs: Any) -> Any:
    if isinstance(obs, Mapping):
        return {key: _copies(value) for key, value in obs.items()}
    return _copy(obs)


def _copy(obs: torch.Tensor) -> torch.Tensor:
    return obs.clone() if obs.dtype == torch.uint8 else obs.to(torch.float32, copy=True)
