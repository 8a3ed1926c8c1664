"""What every peer starts from: the workload's params, its EnvPool, and the time spent in it."""

from __future__ import annotations

import itertools
import json
import random
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.bench.meter import Meter


class Job:
    """One run of a peer, from the params file on the command line.

    `params`, `config`: rl_games'. `pool`: EnvPool with the workload's environments. `folder`: for what the peer writes.
    """

    def __init__(self) -> None:
        file = Path(sys.argv[1])
        self.meter = Meter()
        self.folder = file.parent / "run"
        self.params: dict[str, Any] = json.loads(file.read_text())["params"]
        self.config: dict[str, Any] = self.params["config"]
        self.epochs: int = self.config["max_epochs"]
        self.horizon: int = self.config["horizon_length"]
        self.num_envs: int = self.config["num_actors"]
        self.units: list[int] = self.params["network"]["mlp"]["units"]
        self.activation: type[torch.nn.Module] = {"elu": torch.nn.ELU, "relu": torch.nn.ReLU}[self.params["network"]["mlp"]["activation"]]
        self.separate: bool = self.params["network"]["separate"]
        seed = self.params["seed"]
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        self.pool = self._make_pool(seed)
        self.observation_space, self.action_space = self.pool.observation_space, self.pool.action_space
        self.continuous = not hasattr(self.action_space, "n")
        self.step_seconds = 0.0

    def _make_pool(self, seed: int) -> Any:
        import envpool

        options = {k: v for k, v in self.config["env_config"].items() if k not in ("env_name", "has_lives")}
        return envpool.make(self.config["env_config"]["env_name"], env_type="gymnasium", num_envs=self.num_envs, seed=seed, **options)

    def mlp(self) -> torch.nn.Sequential:
        """A new one, from the observations (N, O) to the last of the workload's units."""
        sizes = itertools.pairwise([self.observation_space.shape[0], *self.units])
        return torch.nn.Sequential(*[m for a, b in sizes for m in (torch.nn.Linear(a, b), self.activation())])

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Actions (N, ...) in [-1, 1] or as indices -> obs (N, ...), rewards, terminated and truncated (N,)."""
        self.meter.first_step()
        started = time.perf_counter()
        if self.continuous:
            actions = np.clip(actions, -1, 1).astype(self.action_space.dtype)  # HalfCheetah's own range
        obs, rewards, terminated, truncated, _ = self.pool.step(actions)
        self.step_seconds += time.perf_counter() - started
        return obs, rewards, terminated, truncated

    def epoch(self, play: float | None = None, update: float | None = None) -> None:
        """An epoch ends now. Seconds of its rollout and update, where the peer's loop can tell."""
        self.meter.epoch(self.step_seconds, play, update)
        self.step_seconds = 0.0
