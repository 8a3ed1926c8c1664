"""What every environment looks like to an agent and to a player: N environments that step together."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from gymnasium import spaces
from rl_games.common.ivecenv import IVecEnv

ResetMode = Literal["same_step", "next_step"]
Obs = Any  # array or tensor (N, ...), a dict of them, or {"obs": ..., "states": ...}


class VecEnv(IVecEnv):
    """Base class over rl_games' `IVecEnv`. A task kind subclasses it, sets the attributes and writes `reset` and `step`.

    Episode ends: see docs/architecture.md ("The vectorised environment"). Rows are ordered environment-major:
    row = environment * num_agents + agent.
    """

    num_envs: int
    observation_space: spaces.Space
    action_space: spaces.Space
    state_space: spaces.Space | None = None  # what a central value sees; None: the observation
    num_agents: int = 1
    value_size: int = 1
    reset_mode: ResetMode = "same_step"
    is_torch: bool = False  # observations, rewards and dones are tensors on `device`
    capturable: bool = False  # `step` may become part of a CUDA graph: docs/graphs.md
    differentiable: bool = False  # gradients pass through `step` to the actions, and `detach` cuts them: docs/tasks/torch.md
    device: str = "cpu"
    render_mode: str | None = None
    max_episode_steps: int | None = None  # where a time limit cuts episodes off; None: there is none, or nobody knows

    checks_obs: bool = True  # whether the first observations are held against the spaces: `task.check_obs`

    def reset(self) -> Obs:
        """Starts a new episode in every environment and returns the first observations (N, ...)."""
        raise NotImplementedError

    def step(self, actions: Any) -> tuple[Obs, Any, Any, dict[str, Any]]:
        """actions: (N, A) floats in the environment's scale, (N,) or (N, k) integers.

        Returns obs (N, ...), rewards (N,) or (N, V), dones (N,), infos with `time_outs` (N,) and, with same-step reset,
        `terminal_obs` (same structure as obs; only the rows where dones are read).
        """
        raise NotImplementedError

    def get_env_info(self) -> dict[str, Any]:
        """What rl_games' agents read at construction."""
        info = {
            "observation_space": self.observation_space,
            "action_space": self.action_space,
            "state_space": self.state_space,
            "agents": self.num_agents,
            "value_size": self.value_size,
        }
        return info

    def detach(self) -> None:
        """Of a differentiable environment: what comes later has no gradient in the actions up to here. Does nothing in others."""

    @property
    def can_render(self) -> bool:
        return self.render_mode is not None

    def render(self) -> np.ndarray:
        """The picture of environment 0, (H, W, 3) uint8."""
        raise NotImplementedError(f"{type(self).__name__} cannot render")

    @property
    def can_save_state(self) -> bool:
        """True where `get_env_state` holds all there is, so that a resumed run continues bit by bit."""
        return False

    def close(self) -> None:
        """Ends workers and windows. Safe to call twice."""


CPU = torch.device("cpu")


def action_kind(space: spaces.Space) -> str:
    """'continuous', 'discrete' or 'multi_discrete', as the registry names them.

    Raises ValueError for a space that no policy here can act in.
    """
    if isinstance(space, spaces.Box):
        if len(space.shape) == 1:
            return "continuous"
        raise ValueError(f"Box action space of shape {space.shape}: flatten it to one dimension")
    if isinstance(space, spaces.Discrete):
        return "discrete"
    if isinstance(space, spaces.Tuple) and all(isinstance(s, spaces.Discrete) for s in space.spaces):
        return "multi_discrete"
    if isinstance(space, spaces.MultiDiscrete):
        return "multi_discrete"
    raise ValueError(f"action space {space} is none of Box (one dimension), Discrete, MultiDiscrete, Tuple of Discrete")


def as_tuple_space(space: spaces.Space) -> spaces.Space:
    """rl_games knows multi-discrete actions as a Tuple of Discrete only."""
    if isinstance(space, spaces.MultiDiscrete):
        return spaces.Tuple([spaces.Discrete(int(n)) for n in space.nvec])
    return space


def tree_map(function: Any, *trees: Any) -> Any:
    """Applies `function` to the leaves of (nested) dicts of equal structure."""
    if isinstance(trees[0], dict):
        return {key: tree_map(function, *(tree[key] for tree in trees)) for key in trees[0]}
    return function(*trees)


def to_tensor(value: Any, device: torch.device | str) -> torch.Tensor:
    """NumPy or tensor to a tensor on `device`; float64 becomes float32, bytes stay bytes."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    array = np.asarray(value)
    if array.dtype == np.float64:
        array = array.astype(np.float32)
    tensor = torch.from_numpy(array if array.flags.c_contiguous else np.ascontiguousarray(array))
    return tensor if device == CPU else tensor.to(device)
