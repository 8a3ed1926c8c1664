"""Observations of which the policy sees only a part: `task.hidden_obs=[1, 3]` takes the velocities from CartPole.

What is hidden is not lost: the whole vector is offered as the state of a central value, or of a teacher that may know more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from core.errors import UserError
from core.vecenv import Obs, VecEnv


class HiddenObs(VecEnv):
    """`env` with the numbers at the indices `hidden` taken out of its flat observations.

    Observations are {"obs": (N, O - k), "states": (N, O)} for k hidden numbers. Where the environment has a state of its own, or several
    agents, "states" is what it was. Everything else is the environment's. `hidden` may count from the end, as Python does.

    Raises UserError for observations that are not one flat vector, and for an index that is not in it, twice there, or would leave nothing.
    """

    def __init__(self, env: VecEnv, hidden: Sequence[int]) -> None:
        space = env.observation_space
        if not isinstance(space, spaces.Box) or len(space.shape) != 1:
            raise UserError(f"task.hidden_obs needs one flat vector of observations, and the task's are {space}")
        size = space.shape[0]
        outside = [index for index in hidden if not -size <= index < size]
        if outside:
            raise UserError(f"task.hidden_obs has {outside[0]}: an observation here has {size} numbers, 0 to {size - 1}")
        gone = {index % size for index in hidden}
        if len(gone) < len(hidden) or len(gone) == size:
            raise UserError(f"task.hidden_obs={list(hidden)}: each index once, and something has to be left of {size} numbers")
        self.env = env
        self.seen = [index for index in range(size) if index not in gone]
        self.observation_space = spaces.Box(space.low[self.seen], space.high[self.seen], dtype=space.dtype.type)
        self.action_space = env.action_space
        self._adds_states = env.state_space is None and env.num_agents == 1
        self.state_space = space if self._adds_states else env.state_space
        self.num_envs, self.num_agents, self.value_size = env.num_envs, env.num_agents, env.value_size
        self.reset_mode, self.is_torch, self.device, self.render_mode = env.reset_mode, env.is_torch, env.device, env.render_mode
        self.max_episode_steps = env.max_episode_steps
        self.differentiable = env.differentiable
        self._index: Any = torch.tensor(self.seen, device=env.device) if env.is_torch else np.array(self.seen)

    def reset(self) -> Obs:
        return self._hide(self.env.reset())

    def step(self, actions: Any) -> tuple[Obs, Any, Any, dict[str, Any]]:
        obs, rewards, dones, infos = self.env.step(actions)
        if "terminal_obs" in infos:
            infos = {**infos, "terminal_obs": self._hide(infos["terminal_obs"])}
        return self._hide(obs), rewards, dones, infos

    def _hide(self, obs: Obs) -> Obs:
        if isinstance(obs, dict):  # {"obs", "states"}
            return {**obs, "obs": obs["obs"][:, self._index]}
        return {"obs": obs[:, self._index], "states": obs} if self._adds_states else obs[:, self._index]

    # ---- the environment's, unchanged --------------------------------------------------------------------------------

    def has_action_masks(self) -> bool:
        return self.env.has_action_masks()

    def get_action_masks(self) -> Any:
        return self.env.get_action_masks()

    def get_number_of_agents(self) -> int:
        return self.num_agents

    def seed(self, seed: int) -> None:
        self.env.seed(seed)

    def set_train_info(self, env_frames: int, *args: Any, **kwargs: Any) -> None:
        self.env.set_train_info(env_frames, *args, **kwargs)

    @property
    def can_save_state(self) -> bool:
        return self.env.can_save_state

    def get_env_state(self) -> Any:
        return self.env.get_env_state()

    def set_env_state(self, env_state: Any) -> None:
        self.env.set_env_state(env_state)

    def detach(self) -> None:
        self.env.detach()

    def render(self) -> np.ndarray:
        return self.env.render()

    def close(self) -> None:
        self.env.close()
