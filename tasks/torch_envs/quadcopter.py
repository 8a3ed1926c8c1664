"""A small quadcopter, driven by the thrusts of its four motors, that has to hover at a point."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from tasks.torch_envs.canvas import Canvas
from tasks.torch_envs.rk4 import rk4
from tasks.torch_vecenv import TorchVecEnv, register_torch_env


@register_torch_env("Quadcopter")
class Quadcopter(TorchVecEnv):
    """A Crazyflie 2.0 as a rigid body. The equations, the reward and where the numbers come from: docs/tasks/torch.md.

    State: position p (3) and velocity v (3) in the world (z upwards), attitude q (4: w, x, y, z; body to world), body rates w (3).
    Units: m, m/s, rad/s. Action: four thrusts, -1 none, 1 all that a motor has; motors front right, rear right, rear left, front left.

    Observation (12), all in the body's axes: from it to the target, velocity, the world's upwards, body rates. It does not tell the
    heading, which hovering does not need.

    Reward, of where the step ends: 1 / (1 + 10 |p - target|^2 + 0.5 |v|^2 + 0.05 |w|^2), so 1 per step at rest on the target.
    Terminates on the ground (z <= 0), 2 m from the target, tilted by 90 degrees, and where its gyroscope saturates (2000 degrees/s).
    """

    state_size = 13
    time_limit = 500  # 5 s
    smooth = True

    DT, GRAVITY, MASS, ARM = 0.01, 9.81, 0.028, 0.046  # s, m/s^2, kg, m from the centre to a motor
    INERTIA = (16.571710e-6, 16.655602e-6, 29.261652e-6)  # kg m^2 about x (forward), y (left), z (up)
    MAX_THRUST = 0.1597  # N, of one motor
    TORQUE_PER_THRUST = 0.005964552  # m: what a propeller turns against the body
    HOVER = 2 * MASS * GRAVITY / (4 * MAX_THRUST) - 1  # the action that carries its weight: -0.14

    TARGET = (0.0, 0.0, 1.0)
    MAX_DISTANCE, MAX_RATE = 2.0, math.radians(2000)

    def __init__(self, **kwargs: Any) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (12,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (4,), np.float32)
        # constant tensors are made once: making one waits for the device
        constant = {"dtype": torch.float32, "device": kwargs["device"]}
        a = self.ARM / math.sqrt(2)
        inertia = torch.tensor(self.INERTIA, **constant)
        arms = torch.tensor([[a, -a], [-a, -a], [-a, a], [a, a]], **constant)  # x, y of the motors
        turns = torch.tensor([-1.0, 1.0, -1.0, 1.0], **constant)  # motors 1 and 3 turn counter-clockwise, and the body against them
        torques = torch.stack([arms[:, 1], -arms[:, 0], turns * self.TORQUE_PER_THRUST], dim=1)  # r x (0, 0, f) and reaction
        lift = torch.full((4, 1), 1 / self.MASS, **constant)
        self.mixer = torch.cat([lift, torques / inertia], dim=1)  # (4 motors, 4): accelerations per thrust: along body z; about x, y, z
        self.gyroscopic = (inertia.roll(1) - inertia.roll(-1)) / inertia  # (Iz - Iy) / Ix, ...
        self.gravity = torch.tensor([0.0, 0.0, -self.GRAVITY], **constant)
        self.target = torch.tensor(self.TARGET, **constant)
        super().__init__(**kwargs)

    def _initial(self, uniform: torch.Tensor) -> torch.Tensor:
        """Within 0.5 m of the target along each axis, 0.5 m/s, any heading, tilted by up to 24 degrees, 1 rad/s."""
        position, velocity, tilt, rates = uniform[:, 0:3], uniform[:, 3:6], uniform[:, 6:8], uniform[:, 10:13]
        half_yaw = uniform[:, 8] * (math.pi / 2)
        w, z = torch.cos(half_yaw), torch.sin(half_yaw)
        x, y = (0.15 * tilt).unbind(dim=1)
        attitude = torch.stack([w, w * x - z * y, w * y + z * x, z], dim=1)  # yaw after tilt: (w, 0, 0, z) (1, x, y, 0)
        return torch.cat([self.target + 0.5 * position, 0.5 * velocity, _unit(attitude), rates], dim=1)

    def _advance(self, state: torch.Tensor, actions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        thrusts = (actions.clamp(-1.0, 1.0) + 1.0) * (0.5 * self.MAX_THRUST)
        driven = thrusts @ self.mixer
        lift, turn = driven[:, :1], driven[:, 1:]
        position, velocity, attitude, rates = _parts(rk4(lambda s: self._derivative(s, lift, turn), state, self.DT))
        attitude = _unit(attitude)
        distance2 = (position - self.target).square().sum(dim=1)
        rate2 = rates.square().sum(dim=1)
        rewards = 1.0 / (1.0 + 10.0 * distance2 + 0.5 * velocity.square().sum(dim=1) + 0.05 * rate2)
        upright = _up(attitude)[:, 2] > 0.0
        flies = (position[:, 2] > 0.0) & (distance2 < self.MAX_DISTANCE**2) & upright & (rate2 < self.MAX_RATE**2)
        return torch.cat([position, velocity, attitude, rates], dim=1), rewards, ~flies

    def _derivative(self, state: torch.Tensor, lift: torch.Tensor, turn: torch.Tensor) -> torch.Tensor:
        """p' = v,  v' = R(q) (0, 0, lift) + g,  q' = q (0, w) / 2,  w' = turn - I^-1 (w x I w), with a diagonal I."""
        _, velocity, attitude, rates = _parts(state)
        w, axis = attitude[:, :1], attitude[:, 1:]
        spun = torch.cat([-(axis * rates).sum(dim=1, keepdim=True), w * rates + torch.linalg.cross(axis, rates)], dim=1)
        turned = turn - self.gyroscopic * rates.roll(-1, dims=1) * rates.roll(1, dims=1)
        return torch.cat([velocity, _up(attitude) * lift + self.gravity, 0.5 * spun, turned], dim=1)

    def _observe(self, state: torch.Tensor) -> torch.Tensor:
        position, velocity, attitude, rates = _parts(state)
        x, y = _into_body(attitude, self.target - position), _into_body(attitude, velocity)
        a, b, c, d = attitude.unbind(dim=1)
        up = torch.stack([2 * (b * d - a * c), 2 * (c * d + a * b), 1 - 2 * (b * b + c * c)], dim=1)
        return torch.cat([x, y, up, rates], dim=1)

    def _paint(self, state: np.ndarray) -> np.ndarray:
        """The room from above one side. The quadcopter is five times its size; its front rotors are red, its shadow is grey."""
        position, attitude = state[0:3], state[6:10]
        turn, rise = math.radians(30), math.radians(20)
        right = np.array([math.cos(turn), -math.sin(turn), 0.0])
        up = np.array([math.sin(turn) * math.sin(rise), math.cos(turn) * math.sin(rise), math.cos(rise)])

        def seen(point: Any) -> tuple[float, float]:
            return float(right @ point), float(up @ point)

        canvas = Canvas(seen((0.0, 0.0, 0.75)), reach=1.6)
        grid = np.linspace(-1.0, 1.0, 5)
        for x in grid:
            canvas.line(seen((x, -1, 0)), seen((x, 1, 0)), (200, 200, 200), 1)
            canvas.line(seen((-1, x, 0)), seen((1, x, 0)), (200, 200, 200), 1)
        shadow = np.array([*position[:2], 0.0])
        ring = [(0.1 * math.cos(angle), 0.1 * math.sin(angle), 0.0) for angle in np.linspace(0, 2 * math.pi, 24)]
        canvas.polygon([seen(shadow + corner) for corner in ring], (190, 190, 190))
        canvas.line(seen(shadow), seen(position), (215, 215, 215), 1)
        for axis in 0.12 * np.eye(3):
            canvas.line(seen(self.TARGET - axis), seen(self.TARGET + axis), (60, 160, 80), 3)
        w, x, y, z = attitude
        forward = np.array([1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y)])
        left = np.array([2 * (x * y - w * z), 1 - 2 * (x * x + z * z), 2 * (y * z + w * x)])
        arm = 5 * self.ARM / math.sqrt(2)
        for front, side in ((1, -1), (-1, -1), (-1, 1), (1, 1)):
            motor = position + arm * (front * forward + side * left)
            canvas.line(seen(position), seen(motor), (70, 70, 70), 3)
            disc = [motor + 0.1 * (math.cos(angle) * forward + math.sin(angle) * left) for angle in np.linspace(0, 2 * math.pi, 24)]
            canvas.polygon([seen(corner) for corner in disc], (200, 60, 50) if front > 0 else (40, 70, 160))
        canvas.disc(seen(position), 0.04, (30, 30, 30))
        return canvas.array()


def _parts(state: torch.Tensor) -> list[torch.Tensor]:
    """(N, 13) -> position (N, 3), velocity (N, 3), attitude (N, 4), body rates (N, 3)."""
    return list(state.split([3, 3, 4, 3], dim=1))


def _unit(q: torch.Tensor) -> torch.Tensor:
    return q / q.square().sum(dim=1, keepdim=True).sqrt()


def _up(q: torch.Tensor) -> torch.Tensor:
    """(N, 3): the body's z axis in the world, of unit quaternions (N, 4)."""
    w, x, y, z = q.unbind(dim=1)
    return torch.stack([2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)], dim=1)


def _into_body(q: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """(N, 3) of the world, in the axes of bodies of unit attitudes (N, 4)."""
    w, axis = q[:, :1], q[:, 1:]
    across = torch.linalg.cross(axis, v)
    return v - 2 * w * across + 2 * torch.linalg.cross(axis, across)
