"""gymnasium's Ant-v5 and Humanoid-v5 on MuJoCo Warp: same models, observations, rewards, terminations, first states and frame skips."""

from __future__ import annotations

from typing import Any

import torch

from tasks.warp_vecenv import WarpVecEnv

ENVS: dict[str, type[WarpVecEnv]] = {}


def register_warp(name: str) -> Any:
    """Class decorator: a `WarpVecEnv` that `task.id` may name."""

    def wrap(cls: type[WarpVecEnv]) -> type[WarpVecEnv]:
        ENVS[name] = cls
        return cls

    return wrap


@register_warp("Ant")
class Ant(WarpVecEnv):
    """Ant-v5: 105 numbers in, 8 torques. Runs along x; ends when its height leaves healthy_z_range."""

    mjcf = "ant.xml"
    frame_skip = 5
    forward_reward_weight = 1.0
    ctrl_cost_weight = 0.5
    contact_cost_weight = 5e-4
    healthy_reward = 1.0
    healthy_z_range = (0.2, 1.0)
    contact_force_range = (-1.0, 1.0)
    reset_noise_scale = 0.1

    def observe(self, data: Any) -> torch.Tensor:
        return torch.cat([data.qpos[:, 2:], data.qvel, self._contacts(data)[:, 1:].flatten(1)], dim=1)

    def remember(self, data: Any) -> torch.Tensor:
        return data.xpos[:, 1, :2]

    def reward(self, data: Any, actions: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        speed = (data.xpos[:, 1, 0] - before[:, 0]) / self.dt
        costs = self.ctrl_cost_weight * actions.square().sum(1) + self.contact_cost_weight * self._contacts(data).square().sum((1, 2))
        return self.forward_reward_weight * speed + self.healthy_reward * ~self.terminated(data) - costs

    def terminated(self, data: Any) -> torch.Tensor:
        low, high = self.healthy_z_range
        finite = torch.isfinite(data.qpos).all(1) & torch.isfinite(data.qvel).all(1)
        return ~(finite & (data.qpos[:, 2] >= low) & (data.qpos[:, 2] <= high))

    def initial(self) -> tuple[torch.Tensor, torch.Tensor]:
        scale = self.reset_noise_scale
        return self.qpos0 + scale * self.uniform(self.model.nq), scale * self.normal(self.model.nv)

    def _contacts(self, data: Any) -> torch.Tensor:
        return data.cfrc_ext.clamp(*self.contact_force_range)


@register_warp("Humanoid")
class Humanoid(WarpVecEnv):
    """Humanoid-v5: 348 numbers in, 17 torques. Walks along x; ends when its height leaves healthy_z_range.

    Its model asks for the solver PGS, which MuJoCo Warp has not: Newton solves the same problem."""

    mjcf = "humanoid.xml"
    frame_skip = 5
    physics = {"solver": "Newton"}  # noqa: RUF012  # a ClassVar of the base class
    forward_reward_weight = 1.25
    ctrl_cost_weight = 0.1
    contact_cost_weight = 5e-7
    contact_cost_max = 10.0
    healthy_reward = 5.0
    healthy_z_range = (1.0, 2.0)
    reset_noise_scale = 0.01

    def observe(self, data: Any) -> torch.Tensor:
        parts = [data.cinert[:, 1:], data.cvel[:, 1:], data.qfrc_actuator[:, 6:], data.cfrc_ext[:, 1:]]
        return torch.cat([data.qpos[:, 2:], data.qvel, *(part.flatten(1) for part in parts)], dim=1)

    def remember(self, data: Any) -> torch.Tensor:
        """The centre of mass along x."""
        if not hasattr(self, "_mass"):
            self._mass = torch.as_tensor(self.model.body_mass, dtype=torch.float32, device=self.device)
        return (data.xipos[:, :, 0] @ self._mass / self._mass.sum())[:, None]

    def reward(self, data: Any, actions: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        speed = (self.remember(data) - before)[:, 0] / self.dt
        contact = (self.contact_cost_weight * data.cfrc_ext.square().sum((1, 2))).clamp(max=self.contact_cost_max)
        costs = self.ctrl_cost_weight * actions.square().sum(1) + contact
        return self.forward_reward_weight * speed + self.healthy_reward * ~self.terminated(data) - costs

    def terminated(self, data: Any) -> torch.Tensor:
        low, high = self.healthy_z_range
        return ~((data.qpos[:, 2] > low) & (data.qpos[:, 2] < high))

    def initial(self) -> tuple[torch.Tensor, torch.Tensor]:
        scale = self.reset_noise_scale
        return self.qpos0 + scale * self.uniform(self.model.nq), scale * self.uniform(self.model.nv)
