"""What a network remembers between steps: the interface, and rl_games' two kinds, an LSTM and a GRU, over any encoder.

States follow rl_games' protocol: a tuple of tensors (layers, N, units), all zeros where an episode begins. The agent keeps them through the
rollout, zeroes the rows whose episode ended, and stores those with which each training sequence starts.
"""

from __future__ import annotations

import abc
import itertools
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from core.errors import UserError


class Memory(nn.Module, abc.ABC):
    """Reads B = S * T rows, the steps of S sequences in order (row = s * T + t), and what each sequence starts with."""

    size: int  # numbers per row that come out

    @abc.abstractmethod
    def empty(self, rows: int) -> tuple[Tensor, ...]:
        """What there is before an episode's first step: zeros, each (layers, rows, units)."""

    @abc.abstractmethod
    def forward(self, x: Tensor, features: Tensor, states: Any, steps: int, dones: Tensor | None) -> tuple[Tensor, tuple[Tensor, ...]]:
        """x (B, I), features (B, F) what `encode` gave, states each (layers, S, units), steps T, dones (B,): 1 where the memory is
        emptied before the row, or None -> (B, size), states after the last step. Must not write into `states`."""


class Recurrent(Memory):
    """torch's LSTM or GRU with the knobs of rl_games' `rnn` section. (B, I) -> (B, units [+ after]).

    beside: F where the features stand beside its input (`concat_input`), after: F where they stand beside its output (`concat_output`).
    """

    def __init__(self, name: str, inputs: int, units: int, layers: int, layer_norm: bool = False, beside: int = 0, after: int = 0) -> None:
        super().__init__()
        kinds = {"lstm": nn.LSTM, "gru": nn.GRU}
        if name not in kinds:
            raise UserError(f"train.params.network.rnn.name is '{name}'. Valid here: lstm, gru")
        self.rnn = kinds[name](inputs + beside, units, layers)
        self.tensors = 2 if name == "lstm" else 1
        self.norm = nn.LayerNorm(units) if layer_norm else nn.Identity()
        self.beside, self.after, self.size = beside, after, units + after

    def empty(self, rows: int) -> tuple[Tensor, ...]:
        return tuple(torch.zeros(self.rnn.num_layers, rows, self.rnn.hidden_size) for _ in range(self.tensors))

    def forward(self, x: Tensor, features: Tensor, states: Any, steps: int, dones: Tensor | None) -> tuple[Tensor, tuple[Tensor, ...]]:
        if self.beside:
            x = torch.cat([x, features], dim=1)
        x = rearrange(x, "(s t) i -> t s i", t=steps)
        cuts, keep = [0, steps], None
        if dones is not None:
            keep = 1.0 - rearrange(dones, "(s t) -> t 1 s 1", t=steps).to(x.dtype)
            cuts[1:1] = [t for t in range(1, steps) if bool((keep[t] == 0).any())]  # torch's layers know no resets: a call from each on
        parts = []
        for start, end in itertools.pairwise(cuts):
            if keep is not None:
                states = [state * keep[start] for state in states]
            part, states = self.rnn(x[start:end], tuple(states) if self.tensors == 2 else states[0])
            states = states if self.tensors == 2 else (states,)
            parts.append(part)
        out = self.norm(rearrange(torch.cat(parts), "t s u -> (s t) u"))
        return torch.cat([out, features], dim=1) if self.after else out, tuple(states)
