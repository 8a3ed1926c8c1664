"""Records what a player plays: any player, whose counted episodes become a demonstration file (core/demos.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from core import demos
from core.vecenv import Obs, to_tensor, tree_map
from players.default import Player


def recording(player_cls: type[Player]) -> type[Player]:
    """`player_cls` with a recorder; its own hooks are called first, and what it plays is unchanged. Afterwards `save` writes."""

    class Recording(player_cls):  # type: ignore[valid-type, misc]  # a base class that is only known here
        def on_eval_start(self) -> None:
            super().on_eval_start()
            self.left = self.quotas()
            self.pieces: list[dict[str, Any]] = []  # one per step, of the rows that count
            self.running = np.arange(self.num_rows)  # the trajectory that each row is in, numbered as they begin
            self.begun = self.num_rows
            self.finished: list[int] = []  # trajectories, in the order in which they ended
            self.returns: dict[int, float] = {}
            self.lengths: dict[int, int] = {}
            self.before = tree_map(torch.clone, self.seen)

        def on_eval_step(self, obs: Obs, rewards: torch.Tensor, dones: torch.Tensor, infos: dict[str, Any]) -> None:
            super().on_eval_step(obs, rewards, dones, infos)
            counts = np.repeat([n > 0 for n in self.left], self.num_agents)
            rows = np.flatnonzero(counts & ~self.reset_rows.cpu().numpy())
            paid = rewards.reshape(self.num_rows, -1)[:, 0].double().cpu().numpy()
            ended = dones.cpu().numpy()
            given = infos.get("time_outs")
            time_outs = np.zeros(self.num_rows, bool) if given is None else to_tensor(given, "cpu").bool().numpy()
            after = self.seen
            if ended.any() and self.env.reset_mode == "same_step":
                after = self.successors(infos.get("terminal_obs"), dones)
            self.pieces.append(
                {
                    "trajectory": self.running[rows].copy(),
                    "obs": taken(self.before, rows),
                    "actions": taken(self.chosen, rows),
                    "next_obs": taken(after, rows),
                    "rewards": paid[rows].astype(np.float32),
                    "terminated": (ended & ~time_outs)[rows],
                    "dones": ended[rows],
                }
            )
            for row in rows:
                trajectory = int(self.running[row])
                self.returns[trajectory] = self.returns.get(trajectory, 0.0) + float(paid[row])
                self.lengths[trajectory] = self.lengths.get(trajectory, 0) + 1
                if ended[row]:
                    self.finished.append(trajectory)
                    self.running[row] = self.begun
                    self.begun += 1
            self.before = tree_map(torch.clone, self.seen)

        def successors(self, terminal: Any, dones: torch.Tensor) -> Any:
            """The observations after the step; where the episode ended, its last one, or, of a task that does not tell it, the one
            before the step."""
            if terminal is None:
                last = self.before
            else:
                last = tree_map(lambda leaf: to_tensor(leaf, self.policy.device), self.without_states(terminal))
            rows = dones.to(self.policy.device)
            return tree_map(lambda now, end: torch.where(rows.reshape(-1, *[1] * (now.dim() - 1)), end, now), self.seen, last)

        def on_episode_end(self, env_index: int, episode: dict[str, Any]) -> None:
            super().on_episode_end(env_index, episode)
            self.left[env_index] -= 1

        def save(self, path: Path, meta: dict[str, Any]) -> int:
            """Writes the counted episodes, in the order in which they ended. Returns the number of transitions."""
            arrays = {name: joined([piece[name] for piece in self.pieces]) for name in self.pieces[0]}
            place = np.zeros(self.begun, dtype=np.int64)
            place[self.finished] = np.arange(len(self.finished))
            order = np.argsort(place[arrays.pop("trajectory")], kind="stable")
            arrays = tree_map(lambda array: array[order], arrays)
            clips = self.policy.clip_actions
            if self.policy.action_kind == "continuous" and clips:
                arrays["actions"] = arrays["actions"].clip(-1.0, 1.0)
            demos.write(
                path,
                arrays,
                {
                    **meta,
                    "observation_space": demos.describe(self.env.observation_space),
                    "action_space": demos.describe(self.env.action_space),
                    "clip_actions": clips,
                    "deterministic": self.deterministic,
                    "seed": self.seed,
                    "agents": self.num_agents,
                    "transitions": len(order),
                    "episode_returns": [self.returns[t] for t in self.finished],
                    "episode_lengths": [self.lengths[t] for t in self.finished],
                },
            )
            return len(order)

    return Recording


def taken(tree: Any, rows: np.ndarray) -> Any:
    """The rows of tensors, as arrays of their own."""
    index = torch.from_numpy(rows)
    return tree_map(lambda leaf: leaf.index_select(0, index.to(leaf.device)).cpu().numpy(), tree)


def joined(pieces: list[Any]) -> Any:
    return tree_map(lambda *leaves: np.concatenate(leaves), *pieces)
