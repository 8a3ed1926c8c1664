"""Environments of the legacy gym, one for each API that it had. gym is needed to import this."""

from __future__ import annotations

from typing import Any

import numpy as np

from tasks import old_gym

gym = old_gym.import_gym()


class Old(gym.Env):  # type: ignore[name-defined,misc]
    """Before gym 0.22: `seed()`, a plain `reset()`, four values, `render(mode)`. Observation: [step, a draw made at reset]."""

    metadata = {"render.modes": ["rgb_array"], "video.frames_per_second": 7}  # noqa: RUF012  # as it was declared

    def __init__(self, length: int = 3, cut_at: int = 0) -> None:
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)
        self.action_space = gym.spaces.Discrete(2)
        self.length, self.cut_at = length, cut_at
        self.rng = np.random.RandomState()
        self.seeds: list[Any] = []

    def seed(self, seed: int | None = None) -> list[Any]:
        self.seeds.append(seed)
        self.rng = np.random.RandomState(seed)
        return [seed]

    def reset(self) -> np.ndarray:
        self.t, self.draw = 0, self.rng.uniform()
        return np.array([self.t, self.draw])

    def step(self, action: int) -> Any:
        self.t += 1
        info = {"scores": float(self.t)}
        if self.t == self.cut_at:  # as TimeLimit said it
            info["TimeLimit.truncated"] = True
        return np.array([self.t, self.draw]), float(action), self.t in (self.length, self.cut_at), info

    def render(self, mode: str = "human") -> Any:
        return np.full((4, 5, 3), self.t, np.uint8) if mode == "rgb_array" else None


class Between(Old):
    """gym 0.22 to 0.25: `reset` takes the seed, and step still returns four values."""

    def reset(self, *, seed: int | None = None, return_info: bool = False, options: Any = None) -> Any:
        if seed is not None:
            self.seeds.append(("reset", seed))
        return super().reset()


class New(gym.Env):  # type: ignore[name-defined,misc]
    """gym 0.26: (observation, info), five values, a render mode at construction; both flags may be raised at once."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 9}  # noqa: RUF012

    def __init__(self, length: int = 3, cut_at: int = 0, render_mode: str | None = None) -> None:
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)
        self.action_space = gym.spaces.Discrete(2)
        self.length, self.cut_at, self.render_mode = length, cut_at, render_mode

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.t, self.draw = 0, self.np_random.uniform()
        return np.array([self.t, self.draw]), {}

    def step(self, action: int) -> Any:
        self.t += 1
        info = {"scores": float(self.t)}
        return np.array([self.t, self.draw]), float(action), self.t == self.length, self.t == self.cut_at, info

    def render(self) -> np.ndarray:
        return np.full((4, 5, 3), self.t, np.uint8)


class Odd(gym.Env):  # type: ignore[name-defined,misc]
    """Samples of its own spaces; keeps the last action."""

    def __init__(self, observation: Any, action: Any) -> None:
        self.observation_space, self.action_space = observation, action

    def reset(self) -> Any:
        return self.observation_space.sample()

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action), action
        self.last = action
        return self.observation_space.sample(), 0.0, False, {}


def register(id: str, entry_point: Any, max_episode_steps: int | None = None, **kwargs: Any) -> str:
    """With gym, again where it stands there already. Returns the id."""
    registry = gym.envs.registration.registry
    registry.pop(id, None)
    registry[id] = gym.envs.registration.EnvSpec(id, entry_point, max_episode_steps=max_episode_steps, kwargs=kwargs)
    return id
