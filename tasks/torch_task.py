"""Environments written in torch: `task=TorchCartPole`. N at a time on any device, and their state can be saved.

A third one is a class with the members of `TorchVecEnv` marked "to write", and a line in `ENVS`.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import gymnasium
import numpy as np
import torch
from gymnasium import spaces

from core.errors import UserError, unknown
from core.registry import register_task
from core.vecenv import VecEnv
from tasks import offscreen


class TorchVecEnv(VecEnv):
    """Same-step reset, no copy to the host inside `step`, its own random generator.

    `state` is (N, S) float32, `steps` (N,) counts the steps of the running episodes. What changes from step to step must be a tensor on
    `device` and an attribute of the environment, or its `generator`: a CUDA graph then replays `step` without this code.
    """

    reset_mode = "same_step"
    is_torch = True
    capturable = True
    max_episode_steps: int  # there always is one

    # ---- to write ---------------------------------------------------------------------------------------------------
    gym_id: ClassVar[str]  # the gymnasium twin, which draws the picture
    time_limit: ClassVar[int]  # steps per episode unless max_episode_steps says otherwise

    def _initial(self, uniform: torch.Tensor) -> torch.Tensor:
        """(N, S) first states, from (N, S) random numbers in [-1, 1)."""
        raise NotImplementedError

    def _advance(self, state: torch.Tensor, actions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """state (N, S), actions (N, ...) -> next state (N, S), rewards (N,), terminated (N,)."""
        raise NotImplementedError

    def _observe(self, state: torch.Tensor) -> torch.Tensor:
        """(N, S) -> (N, O)."""
        raise NotImplementedError

    # ---- the same for all -------------------------------------------------------------------------------------------

    def __init__(
        self,
        state_size: int,
        num_envs: int,
        seed: int | None,
        device: str,
        render_mode: str | None = None,
        max_episode_steps: int | None = None,
    ) -> None:
        self.num_envs = num_envs
        self.device = device
        self.render_mode = render_mode
        self.max_episode_steps = max_episode_steps or self.time_limit
        self.generator = torch.Generator(device=device)
        if seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(seed)
        self._shape = (num_envs, state_size)
        self.state = self._draw()
        self.steps = torch.zeros(num_envs, dtype=torch.int64, device=device)
        self._picture: gymnasium.Env | None = None

    def reset(self) -> torch.Tensor:
        self.state = self._draw()
        self.steps = torch.zeros_like(self.steps)
        return self._observe(self.state)

    def step(self, actions: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, dict[str, Any]]:
        state, rewards, terminated = self._advance(self.state, torch.as_tensor(actions, device=self.device))
        steps = self.steps + 1
        truncated = steps >= self.max_episode_steps
        dones = terminated | truncated
        # every row draws a first state, whether it needs one or not: asking which do would wait for the device
        self.state = torch.where(dones[:, None], self._draw(), state)
        self.steps = torch.where(dones, torch.zeros_like(steps), steps)
        infos = {"time_outs": truncated & ~terminated, "terminal_obs": self._observe(state)}
        return self._observe(self.state), rewards, dones, infos

    def current_obs(self) -> torch.Tensor:
        """(N, O): what `reset` or `step` returned last; after `set_env_state`, what the saved run saw."""
        return self._observe(self.state)

    @property
    def can_save_state(self) -> bool:
        return True

    def get_env_state(self) -> dict[str, torch.Tensor]:
        return {"state": self.state, "steps": self.steps, "generator": self.generator.get_state()}

    def set_env_state(self, env_state: dict[str, torch.Tensor]) -> None:
        """Goes on exactly where `get_env_state` was called. Raises UserError for the state of another number of environments."""
        if env_state is None:  # rl_games hands over what a checkpoint without state holds
            return
        if env_state["state"].shape != self.state.shape:
            raise UserError(
                f"the saved state is of {env_state['state'].shape[0]} environments, task.num_envs is {self.num_envs}: "
                "resume with the same number"
            )
        self.state = env_state["state"].to(self.device)
        self.steps = env_state["steps"].to(self.device)
        self.generator.set_state(env_state["generator"].cpu())

    def render(self) -> np.ndarray:
        if self._picture is None:
            offscreen.prepare(needs_mujoco=False)
            self._picture = gymnasium.make(self.gym_id, render_mode=self.render_mode)
            self._picture.reset()
        inner: Any = self._picture.unwrapped
        inner.state = self.state[0].double().cpu().numpy()
        return self._picture.render()  # type: ignore[return-value]  # rgb_array returns an array

    def close(self) -> None:
        if self._picture is not None:
            self._picture.close()
            self._picture = None

    def _draw(self) -> torch.Tensor:
        return self._initial(torch.rand(self._shape, generator=self.generator, device=self.device) * 2.0 - 1.0)


class CartPole(TorchVecEnv):
    """gymnasium's CartPole-v1. State and observation: x, x', theta, theta'. Reward 1 per step."""

    gym_id = "CartPole-v1"
    time_limit = 500

    GRAVITY, POLE_MASS, TOTAL_MASS, HALF_LENGTH, FORCE, DT = 9.8, 0.1, 1.1, 0.5, 10.0, 0.02
    X_LIMIT, THETA_LIMIT = 2.4, 12 * 2 * math.pi / 360

    def __init__(self, **kwargs: Any) -> None:
        high = np.array([2 * self.X_LIMIT, np.inf, 2 * self.THETA_LIMIT, np.inf], dtype=np.float32)
        self.observation_space = spaces.Box(-high, high, dtype=np.float32)
        self.action_space = spaces.Discrete(2)
        super().__init__(4, **kwargs)

    def _initial(self, uniform: torch.Tensor) -> torch.Tensor:
        return 0.05 * uniform

    def _advance(self, state: torch.Tensor, actions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        x, x_dot, theta, theta_dot = state.unbind(dim=1)
        force = torch.where(actions == 1, self.FORCE, -self.FORCE)
        cos, sin = torch.cos(theta), torch.sin(theta)
        pole = self.POLE_MASS * self.HALF_LENGTH
        push = (force + pole * theta_dot.square() * sin) / self.TOTAL_MASS
        theta_acc = (self.GRAVITY * sin - cos * push) / (self.HALF_LENGTH * (4.0 / 3.0 - self.POLE_MASS * cos.square() / self.TOTAL_MASS))
        x_acc = push - pole * theta_acc * cos / self.TOTAL_MASS
        x, x_dot = x + self.DT * x_dot, x_dot + self.DT * x_acc
        theta, theta_dot = theta + self.DT * theta_dot, theta_dot + self.DT * theta_acc
        terminated = (x.abs() > self.X_LIMIT) | (theta.abs() > self.THETA_LIMIT)
        return torch.stack([x, x_dot, theta, theta_dot], dim=1), torch.ones_like(x), terminated

    def _observe(self, state: torch.Tensor) -> torch.Tensor:
        return state


class Pendulum(TorchVecEnv):
    """gymnasium's Pendulum-v1. State: theta, theta'. Observation: cos, sin, theta'. Action: torque in [-2, 2]. Never terminates."""

    gym_id = "Pendulum-v1"
    time_limit = 200

    GRAVITY, MASS, LENGTH, DT, MAX_SPEED, MAX_TORQUE = 10.0, 1.0, 1.0, 0.05, 8.0, 2.0

    def __init__(self, **kwargs: Any) -> None:
        high = np.array([1.0, 1.0, self.MAX_SPEED], dtype=np.float32)
        self.observation_space = spaces.Box(-high, high, dtype=np.float32)
        self.action_space = spaces.Box(-self.MAX_TORQUE, self.MAX_TORQUE, (1,), np.float32)
        self.spread = torch.tensor([math.pi, 1.0], device=kwargs["device"])  # made once: making it waits for the device
        super().__init__(2, **kwargs)

    def _initial(self, uniform: torch.Tensor) -> torch.Tensor:
        return uniform * self.spread

    def _advance(self, state: torch.Tensor, actions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        theta, theta_dot = state.unbind(dim=1)
        torque = actions[:, 0].clamp(-self.MAX_TORQUE, self.MAX_TORQUE)
        angle = torch.remainder(theta + math.pi, 2 * math.pi) - math.pi
        cost = angle.square() + 0.1 * theta_dot.square() + 0.001 * torque.square()
        gain = 3.0 * self.GRAVITY / (2.0 * self.LENGTH) * torch.sin(theta) + 3.0 / (self.MASS * self.LENGTH**2) * torque
        theta_dot = (theta_dot + gain * self.DT).clamp(-self.MAX_SPEED, self.MAX_SPEED)
        theta = theta + theta_dot * self.DT
        return torch.stack([theta, theta_dot], dim=1), -cost, torch.zeros_like(cost, dtype=torch.bool)

    def _observe(self, state: torch.Tensor) -> torch.Tensor:
        theta, theta_dot = state.unbind(dim=1)
        return torch.stack([torch.cos(theta), torch.sin(theta), theta_dot], dim=1)


ENVS: dict[str, type[Any]] = {"CartPole": CartPole, "Pendulum": Pendulum}


@register_task("torch", ids_of_kind=lambda: ENVS)
def make(
    *,
    num_envs: int,
    seed: int | None,
    device: str,
    render_mode: str | None = None,
    id: str | None = None,
    max_episode_steps: int | None = None,
) -> VecEnv:
    """N environments that live on `device`.

    Args:
        id: CartPole or Pendulum.
        max_episode_steps: replaces the environment's own limit (500, 200).

    Raises UserError for an unknown id.
    """
    if id not in ENVS:
        raise unknown("torch environment", str(id), ENVS, "task.id")
    return ENVS[id](num_envs=num_envs, seed=seed, device=device, render_mode=render_mode, max_episode_steps=max_episode_steps)
