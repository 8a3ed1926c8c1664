"""What one epoch's steps leave behind: the buffer (T, N, ...), one step of it, and the episodes that ended."""

from __future__ import annotations

import collections
import dataclasses
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from rl_games.algos_torch.torch_ext import numpy_to_torch_dtype_dict
from torch import Tensor

from core.vecenv import tree_map


@dataclasses.dataclass
class Transition:
    """One step of all N rows, handed to `on_step`, which may edit `rewards` and `dones` and fill `fields`."""

    n: int  # step within the rollout, 0 .. T-1
    obs: Any  # (N, ...) what the policy saw
    result: dict[str, Any]  # what `act` returned
    next_obs: Any  # (N, ...) after a same-step reset: already the next episode's first
    raw_rewards: Tensor  # (N, V) as the environment gave them
    rewards: Tensor  # (N, V) shaped; what is learned from
    dones: Tensor  # (N,) the episode ended with this step
    time_outs: Tensor  # (N,) it ended by truncation only
    infos: dict[str, Any]
    valid: Tensor  # (N,) false where a next-step environment merely reset
    fields: dict[str, Tensor] = dataclasses.field(default_factory=dict)  # values of `rollout_fields`

    @property
    def terminated(self) -> Tensor:
        """(N,) the episode ended for real: nothing follows to bootstrap from."""
        return self.dones & ~self.time_outs


class Rollout:
    """The buffer of one epoch. Every field is a tensor (T, N, ...) (or a dict of them) and an attribute.

    obs, actions, neglogp (T, N), values (T, N, V), rewards (T, N, V, shaped), raw_rewards (T, N, V), dones_before and
    dones_after (T, N), time_outs (T, N), valid (T, N); mus, sigmas (T, N, A) or none; states (T, num_actors, ...);
    action_masks; next_obs where the agent `keeps_next_obs`; the author's `rollout_fields`.
    Memory: rnn_states, a list of (T / seq_length, layers, N, units), and
    rnn_dones (T, N): 1 where the memory was zeroed before the step.
    """

    def __init__(self, horizon: int, device: torch.device, seq_length: int) -> None:
        self.horizon = horizon
        self.device = device
        self.seq_length = seq_length
        self.fields: dict[str, Any] = {}
        self.rnn_states: list[Tensor] = []

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["fields"][name]
        except KeyError:
            raise AttributeError(f"rollout has no field '{name}'; it has {', '.join(self.__dict__.get('fields', {}))}") from None

    def add_space(self, name: str, space: spaces.Space, rows: int) -> None:
        """Allocates a field for values of a space (Dict spaces become dicts)."""
        if isinstance(space, spaces.Dict):
            self.fields[name] = {key: self._zeros(sub, rows) for key, sub in space.spaces.items()}
        else:
            self.fields[name] = self._zeros(space, rows)

    def add(self, name: str, rows: int, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> None:
        """Allocates a field (T, rows, *shape). Raises ValueError for a name that is taken."""
        if name in self.fields:
            raise ValueError(f"rollout field '{name}' exists already; choose another name in rollout_fields()")
        self.fields[name] = torch.zeros((self.horizon, rows, *shape), dtype=dtype, device=self.device)

    def add_memory(self, rnn_states: list[Tensor]) -> None:
        count = self.horizon // self.seq_length
        self.rnn_states = [torch.zeros((count, *state.shape), device=self.device) for state in rnn_states]

    def write(self, n: int, name: str, value: Any) -> None:
        def put(buffer: Tensor, x: Tensor) -> None:
            buffer[n] = x

        tree_map(put, self.fields[name], value)

    def write_memory(self, n: int, rnn_states: list[Tensor]) -> None:
        """Keeps the memory with which each sequence starts."""
        if n % self.seq_length == 0:
            for buffer, state in zip(self.rnn_states, rnn_states, strict=True):
                buffer[n // self.seq_length] = state

    def flat_memory(self) -> list[Tensor] | None:
        """Each (layers, N * T / seq_length, units), sequences ordered as the flat batch's rows."""
        if not self.rnn_states:
            return None
        return [flat_memory(state) for state in self.rnn_states]

    def _zeros(self, space: spaces.Space, rows: int) -> Tensor:
        assert space.shape is not None
        assert space.dtype is not None
        dtype = numpy_to_torch_dtype_dict[np.dtype(space.dtype)]
        return torch.zeros((self.horizon, rows, *space.shape), dtype=dtype, device=self.device)


def flat_memory(state: Tensor) -> Tensor:
    """(sequences per row, layers, N, units) -> (layers, N * sequences, units), ordered as the flat batch's sequences."""
    return state.permute(1, 2, 0, 3).reshape(state.shape[1], -1, state.shape[3])


def summed_up(values: Tensor) -> Tensor:
    """(T, ...) -> the sums up to each step. In turn where deterministic kernels are asked for: CUDA's cumsum has none and raises."""
    if not (values.is_cuda and torch.are_deterministic_algorithms_enabled()):
        return values.cumsum(dim=0)
    sums = values.clone()
    for step in range(1, len(sums)):
        sums[step] += sums[step - 1]
    return sums


class EpisodeStats:
    """Returns and lengths of the last `games_to_track` finished episodes, and the totals of those still running.

    Agents of one environment share its episodes: statistics count the first agent's row, as rl_games does.
    """

    def __init__(self, rows: int, num_agents: int, value_size: int, games_to_track: int, device: torch.device | str = "cpu") -> None:
        self.num_agents = num_agents
        self.value_size = value_size
        self.returns: collections.deque[np.ndarray] = collections.deque(maxlen=games_to_track)  # each (V,)
        self.shaped: collections.deque[np.ndarray] = collections.deque(maxlen=games_to_track)
        self.lengths: collections.deque[float] = collections.deque(maxlen=games_to_track)
        self.finished = 0
        self.running = torch.zeros((rows, 2 * value_size + 1), dtype=torch.float64, device=device)  # returns, shaped returns, length

    def add_rollout(self, rollout: Rollout, shaped: Tensor, counts: Tensor | None = None) -> None:
        """Counts a whole rollout at once. shaped: (T, N, V) rewards after shaping, bootstrap included as rl_games logs them.
        counts: (T, N) whose finished episodes count; None: all."""
        # an episode's total is the difference of two running sums: where it ended, and where the one before it in its row did
        sums = torch.cat([rollout.raw_rewards, shaped, rollout.valid.unsqueeze(2)], dim=2).double()
        sums[0] += self.running
        sums = summed_up(sums)
        rows, steps = (rollout.dones_after > 0).t().nonzero(as_tuple=True)  # row by row, each in the order of time
        self.running = sums[-1]
        if not len(rows):
            return
        ends = sums[steps, rows]
        same_row = (rows[1:] == rows[:-1]).unsqueeze(1)
        totals = ends.clone()
        totals[1:] -= ends[:-1] * same_row
        last = torch.ones_like(rows, dtype=torch.bool)
        last[:-1] = ~same_row.squeeze(1)
        self.running[rows[last]] -= ends[last]
        counted = rows % self.num_agents == 0
        if counts is not None:
            counted &= counts[steps, rows]
        order = (steps * sums.shape[1] + rows)[counted].argsort()
        self.finished += len(order)
        found = totals[counted][order[-(self.returns.maxlen or 0) :]].cpu().numpy()
        self.returns.extend(found[:, : self.value_size])
        self.shaped.extend(found[:, self.value_size : -1])
        self.lengths.extend(found[:, -1].tolist())

    # what rl_games' own observers and self-play call on `game_rewards`

    @property
    def current_size(self) -> int:
        return len(self.returns)

    def __len__(self) -> int:
        return len(self.returns)

    def get_mean(self) -> np.ndarray:
        """(V,) mean return of the tracked episodes."""
        return np.mean(self.returns, axis=0)

    def clear(self) -> None:
        self.returns.clear()
        self.shaped.clear()
        self.lengths.clear()

    def restart(self) -> None:
        """The environments were reset: what was running never finished."""
        self.running.zero_()

    def state_dict(self) -> dict[str, Any]:
        return {
            "returns": torch.as_tensor(np.array(self.returns)),
            "shaped": torch.as_tensor(np.array(self.shaped)),
            "lengths": list(self.lengths),
            "finished": self.finished,
            "running": self.running[:, : self.value_size].cpu(),
            "running_shaped": self.running[:, self.value_size : -1].cpu(),
            "running_length": self.running[:, -1].cpu(),
        }

    def load_state_dict(self, state: dict[str, Any], running: bool) -> None:
        """`running`: the environments continue where they stood; otherwise their unfinished episodes are dropped."""
        self.returns.extend(state["returns"].cpu().numpy())
        self.shaped.extend(state["shaped"].cpu().numpy())
        self.lengths.extend(state["lengths"])
        self.finished = state["finished"]
        if running:
            parts = (state["running"], state["running_shaped"], state["running_length"].unsqueeze(1))
            self.running = torch.cat(parts, dim=1).to(self.running)
