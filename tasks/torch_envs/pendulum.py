"""gymnasium's Pendulum-v1."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from tasks.torch_vecenv import TorchVecEnv, register_torch_env


@register_torch_env("Pendulum")
class Pendulum(TorchVecEnv):
    """gymnasium's Pendulum-v1. State: theta, theta'. Observation: cos, sin, theta'. Action: torque in [-2, 2]. Never terminates.

    Its cost is smooth but where the pendulum hangs straight down, and has no gradient in a torque or a speed beyond the limits.
    """

    gym_id = "Pendulum-v1"
    state_size = 2
    time_limit = 200
    smooth = True

    GRAVITY, MASS, LENGTH, DT, MAX_SPEED, MAX_TORQUE = 10.0, 1.0, 1.0, 0.05, 8.0, 2.0

    def __init__(self, **kwargs: Any) -> None:
        high = np.array([1.0, 1.0, self.MAX_SPEED], dtype=np.float32)
        self.observation_space = spaces.Box(-high, high, dtype=np.float32)
        self.action_space = spaces.Box(-self.MAX_TORQUE, self.MAX_TORQUE, (1,), np.float32)
        self.spread = torch.tensor([math.pi, 1.0], device=kwargs["device"])  # made once: making it waits for the device
        super().__init__(**kwargs)

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
