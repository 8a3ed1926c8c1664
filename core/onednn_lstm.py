"""torch's own LSTM layer on a CPU, oneDNN's, called without autograd.

It makes one pass over the gates where core/fused_rnn.py makes a call for each of their operations, and takes some three quarters of the
time. But it knows no resets: here a sequence is cut at them, and what follows one becomes a row of its own, with memory 0. Every cut is
another row of T steps, so where there are many the layer is the written-out one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from core.fused_rnn import LSTM, Grads, Resets, Room

FEW = 8  # at most one row more for so many sequences; at a reset in 50 steps of sequences of 16, one in 3, both ways take as long

AVAILABLE = torch.backends.mkldnn.is_available() and hasattr(torch.ops.aten, "mkldnn_rnn_layer_backward")
_MODE = 2  # LSTM, in torch's numbering of recurrent layers


class LayerRoom:
    """What a pass keeps for its backward pass."""

    kept: tuple[Any, ...] | None  # by torch's layer; None: the written-out layer ran, in `written_out`

    def __init__(self, cell: OneDNNLSTM, steps: int, rows: int, like: Tensor) -> None:
        self._make = lambda: Room(cell, steps, rows, like)
        self._written_out: Room | None = None

    @property
    def written_out(self) -> Room:
        if self._written_out is None:
            with torch.inference_mode(False):  # the next to use it may be autograd
                self._written_out = self._make()
        return self._written_out


class OneDNNLSTM(LSTM):
    """An LSTM in float32 is torch's layer where resets are few, any other the written-out one."""

    def room(self, steps: int, rows: int, like: Tensor) -> Any:
        return LayerRoom(self, steps, rows, like)

    def forward(self, x: Tensor, states: list[Tensor], resets: Resets | None, room: Any) -> Tensor:
        hidden, cell = states
        rows, room.kept = len(hidden), None
        if not AVAILABLE or x.dtype != torch.float32 or (resets is not None and resets.inside * FEW > rows):
            return super().forward(x, states, resets, room.written_out)
        if resets is not None:
            hidden, cell = (resets.first(state) for state in (hidden, cell))
            x = resets.cut(x)
        weights = [p.detach() for p in self.parameters]
        x = x.detach().view(-1, len(hidden), x.shape[1])
        with torch.enable_grad():  # or it keeps nothing for the backward pass; no input requires a gradient, so there is no graph
            done = torch.ops.aten.mkldnn_rnn_layer(x, *weights, hidden, cell, False, [], _MODE, self.units, 1, True, False, False, True)
        room.kept = (x, weights, hidden, cell, done)
        out = done[0].flatten(0, 1)
        return out if resets is None else resets.joined(out)

    def backward(self, grad: Tensor, x: Tensor, resets: Resets | None, room: Any, input_wanted: bool) -> tuple[Tensor | None, Grads]:
        if room.kept is None:
            return super().backward(grad, x, resets, room.written_out, input_wanted)
        x, weights, hidden, cell, (out, last_hidden, last_cell, workspace) = room.kept
        if resets is not None:
            grad = resets.cut(grad)
        d_x, *grads = torch.ops.aten.mkldnn_rnn_layer_backward(
            *(x, *weights, hidden, cell, out, last_hidden, last_cell, grad.reshape(out.shape), None, None),
            *(False, _MODE, self.units, 1, True, True, False, [], False, workspace),
        )[:5]
        d_x = d_x.flatten(0, 1)
        return d_x if resets is None else resets.joined(d_x), grads
