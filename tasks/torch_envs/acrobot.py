"""gymnasium's Acrobot-v1: a two-link arm, driven at its elbow."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from tasks.torch_envs.rk4 import rk4
from tasks.torch_vecenv import TorchVecEnv, register_torch_env


@register_torch_env("Acrobot")
class Acrobot(TorchVecEnv):
    """gymnasium's Acrobot-v1, with the dynamics of Sutton and Barto's book. State: theta1, theta2, theta1', theta2'.

    Observation: cos and sin of both angles, both speeds. Actions 0, 1, 2: torque -1, 0, 1 N m. Reward -1 per step, 0 in the one that
    brings the tip above the line at height 1 m, which ends the episode.

    Links: length 1 m, mass 1 kg, centre of mass in the middle (0.5 m), moment of inertia 1 kg m^2.
    """

    gym_id = "Acrobot-v1"
    state_size = 4
    time_limit = 500

    GRAVITY, DT, HEIGHT = 9.8, 0.2, 1.0
    MAX_SPEEDS = (4 * math.pi, 9 * math.pi)

    def __init__(self, **kwargs: Any) -> None:
        high = np.array([1.0, 1.0, 1.0, 1.0, *self.MAX_SPEEDS], dtype=np.float32)
        self.observation_space = spaces.Box(-high, high, dtype=np.float32)
        self.action_space = spaces.Discrete(3)
        super().__init__(**kwargs)

    def _initial(self, uniform: torch.Tensor) -> torch.Tensor:
        return 0.1 * uniform

    def _advance(self, state: torch.Tensor, actions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        torque = (actions - 1).to(state.dtype)
        theta1, theta2, speed1, speed2 = rk4(lambda s: self._derivative(s, torque), state, self.DT).unbind(dim=1)
        theta1, theta2 = _wrapped(theta1), _wrapped(theta2)
        speed1 = speed1.clamp(-self.MAX_SPEEDS[0], self.MAX_SPEEDS[0])
        speed2 = speed2.clamp(-self.MAX_SPEEDS[1], self.MAX_SPEEDS[1])
        terminated = -torch.cos(theta1) - torch.cos(theta1 + theta2) > self.HEIGHT
        return torch.stack([theta1, theta2, speed1, speed2], dim=1), terminated.to(state.dtype) - 1.0, terminated

    def _derivative(self, state: torch.Tensor, torque: torch.Tensor) -> torch.Tensor:
        """The equations of motion, M q'' + h = (0, torque), with the numbers of the links put in."""
        theta1, theta2, speed1, speed2 = state.unbind(dim=1)
        cos2, sin2 = torch.cos(theta2), torch.sin(theta2)
        m11, m12, m22 = 3.5 + cos2, 1.25 + 0.5 * cos2, 1.25
        h2 = 0.5 * self.GRAVITY * torch.sin(theta1 + theta2)
        h1 = h2 + 1.5 * self.GRAVITY * torch.sin(theta1) - 0.5 * sin2 * speed2 * (speed2 + 2.0 * speed1)
        h2 = h2 + 0.5 * sin2 * speed1.square()
        acc2 = (torque - h2 + m12 / m11 * h1) / (m22 - m12.square() / m11)
        acc1 = -(m12 * acc2 + h1) / m11
        return torch.stack([speed1, speed2, acc1, acc2], dim=1)

    def _observe(self, state: torch.Tensor) -> torch.Tensor:
        theta1, theta2, speed1, speed2 = state.unbind(dim=1)
        return torch.stack([torch.cos(theta1), torch.sin(theta1), torch.cos(theta2), torch.sin(theta2), speed1, speed2], dim=1)


def _wrapped(angle: torch.Tensor) -> torch.Tensor:
    return torch.remainder(angle + math.pi, 2 * math.pi) - math.pi
