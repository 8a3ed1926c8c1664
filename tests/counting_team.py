"""A PettingZoo environment whose every episode is known: two agents, observation [step, agent], reward the step, over after LENGTH steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pettingzoo
from gymnasium import spaces

LENGTH = 5  # as tests.kinds


class parallel_env(pettingzoo.ParallelEnv):  # type: ignore[misc, name-defined]  # untyped; the name is PettingZoo's
    metadata = {"name": "counting_v0", "render_modes": []}  # noqa: RUF012  # as PettingZoo declares it

    def __init__(self, render_mode: str | None = None, cut_off: bool = False) -> None:
        self.possible_agents, self.cut_off, self.render_mode = ["a", "b"], cut_off, render_mode

    def observation_space(self, agent: str) -> spaces.Space:
        return spaces.Box(0.0, 99.0, (2,), np.float32)

    def action_space(self, agent: str) -> spaces.Space:
        return spaces.Discrete(2)

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        self.agents, self.t = list(self.possible_agents), 0
        return self._obs(), {name: {} for name in self.agents}

    def step(self, actions: dict[str, Any]) -> Any:
        self.t += 1
        over = self.t >= LENGTH
        flags = [dict.fromkeys(self.agents, over and self.cut_off == cut_off) for cut_off in (False, True)]
        result = self._obs(), dict.fromkeys(self.agents, float(self.t)), *flags, {name: {} for name in self.agents}
        self.agents = [] if over else self.agents
        return result

    def _obs(self) -> dict[str, np.ndarray]:
        return {name: np.array([self.t, i], np.float32) for i, name in enumerate(self.possible_agents)}
