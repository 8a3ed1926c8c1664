"""A mass in the plane that is pushed to a target: the smallest environment whose gradients are exact."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from tasks.torch_envs.canvas import Canvas
from tasks.torch_vecenv import TorchVecEnv, register_torch_env


@register_torch_env("PointMass")
class PointMass(TorchVecEnv):
    """State: position, velocity, target (2 each). Observation: target - position, velocity. Action: force / 4 N in [-1, 1]^2.

    The mass of 1 kg has no friction; during a step of 0.05 s the force is constant, so that the motion is exact:

        a = 4 m/s^2 * action,  position += velocity * dt + a * dt^2 / 2,  velocity += a * dt

    Reward, of where the step ends: -(|position - target|^2 + 0.1 |velocity|^2 + 0.01 |action|^2), in m, m/s. It is quadratic and the
    motion linear, so gradients through `step` are those of a linear-quadratic problem; beyond the limits of an action they are zero.
    Never terminates. Position and target start in +-1 m, the velocity in +-0.5 m/s. Linear feedback reaches a
    mean return of -13.7.
    """

    state_size = 6
    time_limit = 100
    smooth = True

    FORCE, DT = 4.0, 0.05

    def __init__(self, **kwargs: Any) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (4,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.spread = torch.tensor([1.0, 1.0, 0.5, 0.5, 1.0, 1.0], device=kwargs["device"])  # made once: making it waits for the device
        super().__init__(**kwargs)

    def _initial(self, uniform: torch.Tensor) -> torch.Tensor:
        return uniform * self.spread

    def _advance(self, state: torch.Tensor, actions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        position, velocity, target = state.split(2, dim=1)
        force = actions.clamp(-1.0, 1.0)
        acceleration = self.FORCE * force
        position = position + self.DT * velocity + (0.5 * self.DT**2) * acceleration
        velocity = velocity + self.DT * acceleration
        costs = (position - target).square() + 0.1 * velocity.square() + 0.01 * force.square()
        rewards = -costs.sum(dim=1)
        return torch.cat([position, velocity, target], dim=1), rewards, torch.zeros_like(rewards, dtype=torch.bool)

    def _observe(self, state: torch.Tensor) -> torch.Tensor:
        position, velocity, target = state.split(2, dim=1)
        return torch.cat([target - position, velocity], dim=1)

    def _paint(self, state: np.ndarray) -> np.ndarray:
        """The target is a green disc, the line from the mass is where its velocity takes it in a third of a second."""
        position, velocity, target = state.reshape(3, 2)
        canvas = Canvas((0.0, 0.0), reach=1.5)
        for x in np.arange(-1.5, 1.51, 0.5):
            canvas.line((x, -1.5), (x, 1.5), (225, 225, 225), 1)
            canvas.line((-1.5, x), (1.5, x), (225, 225, 225), 1)
        canvas.disc(target, 0.07, (60, 160, 80))
        canvas.line(position, position + velocity / 3, (90, 90, 90), 3)
        canvas.disc(position, 0.05, (40, 70, 160))
        return canvas.array()
