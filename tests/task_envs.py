"""Environments whose every episode is known in advance, in the two APIs that users write."""

from __future__ import annotations

import os
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

LENGTH = 5  # steps of an episode, where a test needs one length for all


class Counter(gymnasium.Env):
    """Observation: [step of the episode, number of the episode, a draw made at reset]; reward: the step.

    Terminates after `length` steps. Every `reset` writes into the array that `step` returned, as careless environments do not;
    `crash_at` raises, `exit_at` ends the process.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012  # as gymnasium declares it

    def __init__(self, length: int = 3, crash_at: int = -1, exit_at: int = -1, render_mode: str | None = None) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float64)
        self.action_space = spaces.Discrete(2)
        self.length, self.crash_at, self.exit_at, self.render_mode = length, crash_at, exit_at, render_mode
        self.episode = -1
        self.step_number = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.episode += 1
        self.step_number = 0
        self.draw = self.np_random.uniform()
        return self._obs(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.step_number += 1
        if self.step_number == self.crash_at:
            raise ValueError("the wheels came off")
        if self.step_number == self.exit_at:
            os._exit(1)
        info = {"scores": float(self.step_number), "note": "texts stay in the worker"}
        return self._obs(), float(self.step_number), self.step_number >= self.length, False, info

    def render(self) -> np.ndarray:
        return np.full((4, 5, 3), self.step_number, dtype=np.uint8)

    def _obs(self) -> np.ndarray:
        return np.array([self.step_number, self.episode, self.draw])


class Odd(gymnasium.Env):
    """Spaces that policies cannot use as they are; returns what it was given, so that tests see the conversion."""

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space) -> None:
        self.observation_space, self.action_space = observation_space, action_space
        self.last_action: Any = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), action
        self.last_action = action
        return self.observation_space.sample(), 0.0, False, False, {}


class Team:
    """Old gym API: two agents, a central state, two values, action masks. An episode lasts `length` steps and then times out."""

    use_central_value = True
    value_size = 2

    def __init__(self, length: int = 2) -> None:
        self.observation_space = spaces.Box(-1.0, 9.0, (2,), np.float64)
        self.state_space = spaces.Box(-1.0, 9.0, (3,), np.float64)
        self.action_space = spaces.Discrete(3)
        self.length = length
        self.t = 0

    def get_number_of_agents(self) -> int:
        return 2

    def has_action_mask(self) -> bool:
        return True

    def get_action_mask(self) -> list[list[bool]]:
        return [[True, self.t > 0, False], [True, True, self.t > 0]]

    def reset(self) -> dict[str, np.ndarray]:
        self.t = 0
        return self._obs()

    def step(self, actions: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, dict[str, Any]]:
        self.t += 1
        over = self.t >= self.length
        info = {"time_outs": over, "battle_won": 1 if over else 0}
        return self._obs(), np.array([[a, 10.0 * a] for a in actions]), np.array([over, over]), info

    def _obs(self) -> dict[str, np.ndarray]:
        return {"obs": np.array([[0.0, self.t], [1.0, self.t]]), "state": np.full(3, float(self.t))}


def register(id: str, max_episode_steps: int | None = None, **kwargs: Any) -> str:
    """Registers Counter at run time (a function, no import path) under `id`, and returns the id."""
    gymnasium.registry.pop(id, None)
    gymnasium.register(id, entry_point=lambda **kw: Counter(**kw), max_episode_steps=max_episode_steps, kwargs=kwargs)
    return id


class MultiChoice(gymnasium.Env):
    """Two heads of unequal size; a reward for each that matches the sign of its observation."""

    def __init__(self) -> None:
        self.observation_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.action_space = spaces.MultiDiscrete([2, 3])

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        return self._draw(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        reward = float(action[0] == (self.seen[0] > 0)) + float(action[1] == 1 + (self.seen[1] > 0))
        return self._draw(), reward, False, False, {}

    def _draw(self) -> np.ndarray:
        self.seen = self.np_random.uniform(-1.0, 1.0, 2).astype(np.float32)
        return self.seen


class Picture(gymnasium.Env):
    """A picture whose one bright column says which action is rewarded; `actions` of any kind."""

    def __init__(self, actions: str = "discrete", size: int = 36) -> None:
        kinds = {"discrete": spaces.Discrete(3), "multi_discrete": spaces.MultiDiscrete([2, 3]), "continuous": spaces.Box(-1.0, 1.0, (2,))}
        self.action_space = kinds[actions]
        self.observation_space = spaces.Box(0, 255, (size, size, 3), np.uint8)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        return self._obs(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        reward = -float(np.abs(np.sum(action) - self.column % 3))
        return self._obs(), reward, False, False, {}

    def _obs(self) -> np.ndarray:
        self.column = int(self.np_random.integers(36))
        picture = np.zeros(self.observation_space.shape, np.uint8)  # type: ignore[arg-type]
        picture[:, self.column % picture.shape[1]] = 255
        return picture
