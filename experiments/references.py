"""The return of random actions on every task of a suite: `python -m experiments.references suite=mujoco`.

Prints lines for the `random` of cfg/suite/references.yaml. Actions are drawn uniformly from the task's action
space, 100 episodes on the seeds of the suite's evaluation, counted as every evaluation counts them (docs/evaluate.md).
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from core import build
from core.cli import main_guard
from core.schema import Count, Text
from core.vecenv import VecEnv
from experiments import cells, suites
from experiments.arguments import parse
from players.default import Player


@dataclasses.dataclass(kw_only=True)
class Options:
    """The command's keys."""

    suite: Text
    games_num: Count = 100
    config_dir: Text | None = None


class RandomPlayer(Player):
    """A player whose policy looks at nothing."""

    def on_eval_start(self) -> None:
        self.env.action_space.seed(self.seed)

    def _see(self, obs: Any) -> Any:
        return obs

    def _actions(self, obs: Any) -> Any:
        actions = np.stack([np.asarray(self.env.action_space.sample()) for _ in range(self.num_rows)])  # (N,) or (N, A)
        return torch.as_tensor(actions, device=self.env.device) if self.env.is_torch else actions


def play(env: VecEnv, games_num: int, seed: int) -> dict[str, Any]:
    """eval.json's statistics of random actions."""
    nothing: Any = SimpleNamespace(device=torch.device("cpu"), initial_rnn_states=lambda: None)
    return RandomPlayer(nothing, env, games_num=games_num, deterministic=False, seed=seed).run()


def main(argv: Sequence[str]) -> None:
    options, overrides, _ = parse(argv, Options)
    suite = suites.load(options.suite, options.config_dir)
    for cell in cells.plan(suite, ["PPO"], [0], "runs", overrides=overrides, config_dir=options.config_dir):
        num_envs, seed = min(options.games_num, 100), suite.protocol.seed
        with contextlib.closing(build.make_env(cell.config, num_envs, seed, "cpu")) as env:
            played = play(env, options.games_num, seed)["return"]
        print(f"{cell.task}: {{random: {played['mean']:.1f}}}  # std {played['std']:.1f}", flush=True)


if __name__ == "__main__":
    with main_guard():
        main(sys.argv[1:])
