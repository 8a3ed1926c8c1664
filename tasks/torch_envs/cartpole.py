"""gymnasium's CartPole-v1."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from tasks.torch_vecenv import TorchVecEnv, register_torch_env


@register_torch_env("CartPole")
class CartPole(TorchVecEnv):
    """gymnasium's CartPole-v1. State and observation: x, x', theta, theta'. Reward 1 per step."""

    gym_id = "CartPole-v1"
    state_size = 4
    time_limit = 500

    GRAVITY, POLE_MASS, TOTAL_MASS, HALF_LENGTH, FORCE, DT = 9.8, 0.1, 1.1, 0.5, 10.0, 0.02
    X_LIMIT, THETA_LIMIT = 2.4, 12 * 2 * math.pi / 360

    def __init__(self, **kwargs: Any) -> None:
        high = np.array([2 * self.X_LIMIT, np.inf, 2 * self.THETA_LIMIT, np.inf], dtype=np.float32)
        self.observation_space = spaces.Box(-high, high, dtype=np.float32)
        self.action_space = spaces.Discrete(2)
        super().__init__(**kwargs)

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
