"""LSTM and GRU layers written out: forward and backward over T steps of S sequences, each step a matrix product and arithmetic in place.

torch's own layers know no resets inside a sequence; rl_games therefore calls them anew from every step at which any row of a minibatch
resets, which on a task with short episodes is every step. Here a reset is a product with 0, and a minibatch costs the same whatever its
resets. What does not need the step before it (input projections, derivatives of the gates, weight gradients) is one call for all steps.

Formulas and the order of the gates are those of torch.nn.LSTM and torch.nn.GRU; rows are ordered step by step: index = t * S + s.
"""

from __future__ import annotations

import abc
import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

Grads = list[Tensor]


ONE, TWO = torch.tensor(1.0), torch.tensor(2.0)  # a Python number is made a tensor at every call, which costs as much as the call


def _tanh(x: Tensor, out: Tensor) -> Tensor:
    """tanh(x) = 2 sigmoid(2x) - 1: on some CPUs torch's tanh takes five times as long as its sigmoid."""
    return torch.mul(x, TWO, out=out).sigmoid_().mul_(TWO).sub_(ONE)


class Resets:
    """Where the memory of S sequences of T steps is zeroed: dones (T, S), 1 before such a row."""

    def __init__(self, dones: Tensor, dtype: torch.dtype) -> None:
        self.keep = (1.0 - dones.to(dtype)).unsqueeze(2).unbind(0)  # (S, 1) by step: 0 where it is zeroed
        self._dones = dones.bool()
        self.inside = int(self._dones[1:].sum())  # how many do not begin a sequence

    @functools.cached_property
    def _places(self) -> Tensor:
        """(T * S,) Of every row t * S + s its place among T steps of S + inside rows: the sequences, cut at their resets."""
        steps, rows = self._dones.shape
        dones = self._dones.clone()
        dones[0] = False  # a reset there cuts nothing
        t = torch.arange(steps).unsqueeze(1)
        start = torch.where(dones, t, 0).cummax(0).values  # the step of the last reset
        follows = (rows - 1 + dones.flatten().cumsum(0)).view_as(start)  # of a reset: the row behind it
        row = torch.where(start > 0, follows.gather(0, start), torch.arange(rows))
        return ((t - start) * (rows + self.inside) + row).flatten()

    def first(self, state: Tensor) -> Tensor:
        """Memory (S, units) that the sequences begin with -> (S + inside, units) that the cut ones begin with."""
        return torch.cat([state * self.keep[0], state.new_zeros(self.inside, state.shape[1])])

    def cut(self, x: Tensor) -> Tensor:
        """(T * S, ...) -> (T * (S + inside), ...), 0 behind the end of a sequence."""
        steps, rows = self._dones.shape
        return x.new_zeros(steps * (rows + self.inside), *x.shape[1:]).index_copy_(0, self._places, x)

    def joined(self, x: Tensor) -> Tensor:
        """The way back."""
        return x.index_select(0, self._places)


class Room:
    """What one pass of a layer keeps for its backward pass, with views by step, cut once."""

    def __init__(self, cell: Cell, steps: int, rows: int, like: Tensor) -> None:
        units = cell.units
        self.steps = steps
        self.gates = like.new_empty(steps, rows, cell.blocks * units)
        self.slopes = like.new_empty(steps, rows, 4 * units)  # derivatives of the gates' inputs, then their gradients
        self.hidden = like.new_empty(steps + 1, rows, units)  # [0] is the memory that the sequences begin with
        self.before = self.hidden[:-1]  # (T, S, units) what each step remembers: another tensor where rows are reset
        self.rows, self.out = self.gates.flatten(0, 1), self.hidden[1:].flatten(0, 1)  # (T * S, ...)
        self.whole, self.hiddens = self.gates.unbind(0), self.hidden.unbind(0)
        self.gates_at = [gates.split(units, dim=1) for gates in self.whole]
        self.more: Any = cell.more_room(self, rows)

    def begin(self, hidden: Tensor, resets: Resets | None) -> Sequence[Tensor]:
        """Takes the first memory. Returns, by step, where what it remembers stands or, with resets, has to be written."""
        self.hiddens[0].copy_(hidden)
        self.before = self.hidden[:-1] if resets is None else torch.empty_like(self.hidden[1:])
        return self.hiddens if resets is None else self.before.unbind(0)


class Cell(abc.ABC):
    """One layer. `forward` and `backward` of its two kinds differ in nothing but the arithmetic.

    forward: x (T * S, I), states (S, units) each, resets or None -> (T * S, units).
    backward: gradient at the output (T * S, units), which is overwritten -> that at the input (None unless wanted), those of `parameters`.
    step: x (N, I), states (N, units) each, which the new ones are written over -> (N, units). Without gradients, by the parameters as they
    were at the last `refresh`.
    """

    blocks: int  # gates
    states: int  # tensors of memory
    _room: tuple[Tensor, ...] = (torch.empty(0),)  # of a step: (N, gates), and its views

    def __init__(self, rnn: Any, layer: int) -> None:
        self.units: int = rnn.hidden_size
        self.parameters: list[nn.Parameter] = [
            getattr(rnn, f"{name}_l{layer}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        ]

    @abc.abstractmethod
    def more_room(self, room: Room, rows: int) -> Any: ...

    def room(self, steps: int, rows: int, like: Tensor) -> Any:
        """What a pass over T steps of S sequences keeps for its backward pass."""
        return Room(self, steps, rows, like)

    @abc.abstractmethod
    def forward(self, x: Tensor, states: list[Tensor], resets: Resets | None, room: Any) -> Tensor: ...

    @abc.abstractmethod
    def backward(self, grad: Tensor, x: Tensor, resets: Resets | None, room: Any, input_wanted: bool) -> tuple[Tensor | None, Grads]: ...

    @abc.abstractmethod
    def refresh(self) -> None: ...

    @abc.abstractmethod
    def step(self, x: Tensor, states: list[Tensor]) -> Tensor: ...


class LSTMRoom:
    def __init__(self, room: Room, rows: int) -> None:
        units = room.hidden.shape[2]
        self.cell = room.hidden.new_empty(room.hidden.shape)
        self.tanh_cell, self.slope = (room.hidden.new_empty(room.steps, rows, units) for _ in range(2))
        self.cells, self.tanh_cells, self.slopes = (x.unbind(0) for x in (self.cell, self.tanh_cell, self.slope))
        blocks = room.slopes.unflatten(2, (4, units))
        self.slopes_ifg, self.slopes_o = blocks[:, :, :3].unbind(0), blocks[:, :, 3].unbind(0)


class LSTM(Cell):
    """i, f, o = sigmoid, g = tanh of x W_ih' + h W_hh' + b; c = f c + i g; h = o tanh(c)."""

    blocks, states = 4, 2

    def more_room(self, room: Room, rows: int) -> LSTMRoom:
        return LSTMRoom(room, rows)

    def forward(self, x: Tensor, states: list[Tensor], resets: Resets | None, room: Room) -> Tensor:
        more, (bias, w_ih, w_hh) = room.more, self._doubled()
        torch.addmm(bias, x, w_ih.t(), out=room.rows)
        before, recurrent = room.begin(states[0], resets), w_hh.t()
        keep = None if resets is None else resets.keep
        more.cells[0].copy_(states[1])
        for t in range(room.steps):
            if keep is not None:
                torch.mul(room.hiddens[t], keep[t], out=before[t])
                more.cells[t].mul_(keep[t])
            i, f, s, o = room.gates_at[t]
            room.whole[t].addmm_(before[t], recurrent).sigmoid_()
            cell = torch.mul(f, more.cells[t], out=more.cells[t + 1]).addcmul_(i, s, value=2.0).sub_(i)  # f c + i g
            torch.mul(o, _tanh(cell, out=more.tanh_cells[t]), out=room.hiddens[t + 1])
        return room.out

    def _doubled(self) -> tuple[Tensor, Tensor, Tensor]:
        """Bias, W_ih and W_hh with g's rows doubled: g = 2 s - 1, s the sigmoid of twice its input, so that one call serves all gates."""
        w_ih, w_hh, b_ih, b_hh = (p.detach() for p in self.parameters)
        made = (b_ih + b_hh, w_ih.clone(), w_hh.clone())
        for x in made:
            x[2 * self.units : 3 * self.units].mul_(TWO)
        return made

    def refresh(self) -> None:
        bias, w_ih, w_hh = self._doubled()
        self._by_step = bias, w_ih.t(), w_hh.t()

    def step(self, x: Tensor, states: list[Tensor]) -> Tensor:
        hidden, cell = states
        bias, w_ih, w_hh = self._by_step
        if len(self._room[0]) != len(x):
            gates = x.new_empty(len(x), 4 * self.units)
            self._room = (gates, *gates.split(self.units, dim=1))
        gates, i, f, s, o = self._room
        torch.addmm(bias, x, w_ih, out=gates).addmm_(hidden, w_hh).sigmoid_()
        cell.mul_(f).addcmul_(i, s, value=2.0).sub_(i)
        return torch.tanh(cell, out=hidden).mul_(o)

    def backward(self, grad: Tensor, x: Tensor, resets: Resets | None, room: Room, input_wanted: bool) -> tuple[Tensor | None, Grads]:
        keep = None if resets is None else resets.keep
        w_ih, w_hh, _, _ = self.parameters
        more, slopes = room.more, room.slopes
        i, _, s, o = room.gates.split(self.units, dim=2)
        slope_i, slope_f, slope_g, slope_o = slopes.split(self.units, dim=2)
        torch.addcmul(room.gates, room.gates, room.gates, value=-1.0, out=slopes)  # of a sigmoid: s - s^2
        slope_i.mul_(s.mul_(TWO).sub_(ONE))  # g
        slope_f.mul_(more.cell[:-1])
        slope_g.mul_(i).mul_(4.0)  # of a tanh: 1 - g^2 = 4 (s - s^2)
        slope_o.mul_(more.tanh_cell)
        torch.addcmul(o, torch.mul(more.tanh_cell, o, out=more.slope), more.tanh_cell, value=-1.0, out=more.slope)  # o (1 - tanh(c)^2)
        d_hidden = grad.view_as(room.hidden[1:]).unbind(0)
        d_cell, whole = torch.zeros_like(d_hidden[0]), slopes.unbind(0)
        for t in reversed(range(room.steps)):
            if t < room.steps - 1:
                _add_recurrent(d_hidden[t], whole[t + 1], w_hh, None if keep is None else keep[t + 1])
            d_cell.addcmul_(d_hidden[t], more.slopes[t])
            more.slopes_ifg[t].mul_(d_cell.unsqueeze(1))
            more.slopes_o[t].mul_(d_hidden[t])
            d_cell.mul_(room.gates_at[t][1])
            if keep is not None:
                d_cell.mul_(keep[t])
        d_gates = slopes.flatten(0, 1)
        transposed, d_bias = d_gates.t(), d_gates.sum(0)
        grads = [transposed.mm(x), transposed.mm(room.before.flatten(0, 1)), d_bias, d_bias.clone()]
        return d_gates.mm(w_ih) if input_wanted else None, grads


class GRURoom:
    def __init__(self, room: Room, rows: int) -> None:
        units = room.hidden.shape[2]
        self.recurrent = room.hidden.new_empty(room.steps, rows, 3 * units)
        self.whole = self.recurrent.unbind(0)
        self.new = [x[:, 2 * units :] for x in self.whole]
        self.both_recurrent, self.both = ([x[:, : 2 * units] for x in y.unbind(0)] for y in (self.recurrent, room.gates))
        self.slopes = room.slopes.unflatten(2, (4, units)).unbind(0)
        self.recurrent_slopes = [x[:, units:] for x in room.slopes.unbind(0)]


class GRU(Cell):
    """r, z = sigmoid of x W_ih' + h W_hh' + b; n = tanh(x W_in' + b_in + r (h W_hn' + b_hn)); h = (1 - z) n + z h."""

    blocks, states = 3, 1

    def more_room(self, room: Room, rows: int) -> GRURoom:
        return GRURoom(room, rows)

    def refresh(self) -> None:
        w_ih, w_hh, b_ih, b_hh = (p.detach() for p in self.parameters)
        self._by_step = b_ih, b_hh, w_ih.t(), w_hh.t()

    def step(self, x: Tensor, states: list[Tensor]) -> Tensor:
        (hidden,), units = states, self.units
        b_ih, b_hh, w_ih, w_hh = self._by_step
        if len(self._room[0]) != len(x):
            gates, recurrent = x.new_empty(2, len(x), 3 * units)
            parts = [both[:, span] for both in (gates, recurrent) for span in (slice(2 * units), slice(2 * units, None))]
            self._room = (gates, recurrent, *parts, *parts[0].split(units, dim=1))
        gates, recurrent, both, n, both_recurrent, n_recurrent, r, z = self._room
        torch.addmm(b_ih, x, w_ih, out=gates)
        torch.addmm(b_hh, hidden, w_hh, out=recurrent)
        both.add_(both_recurrent).sigmoid_()
        return torch.lerp(n.addcmul_(r, n_recurrent).tanh_(), hidden, z, out=hidden)

    def forward(self, x: Tensor, states: list[Tensor], resets: Resets | None, room: Room) -> Tensor:
        w_ih, w_hh, b_ih, b_hh = self.parameters
        more = room.more
        torch.addmm(b_ih, x, w_ih.t(), out=room.rows)
        before, recurrent = room.begin(states[0], resets), w_hh.t()
        keep = None if resets is None else resets.keep
        for t in range(room.steps):
            if keep is not None:
                torch.mul(room.hiddens[t], keep[t], out=before[t])
            r, z, n = room.gates_at[t]
            torch.addmm(b_hh, before[t], recurrent, out=more.whole[t])
            more.both[t].add_(more.both_recurrent[t]).sigmoid_()
            _tanh(n.addcmul_(r, more.new[t]), out=n)
            torch.lerp(n, before[t], z, out=room.hiddens[t + 1])
        return room.out

    def backward(self, grad: Tensor, x: Tensor, resets: Resets | None, room: Room, input_wanted: bool) -> tuple[Tensor | None, Grads]:
        keep = None if resets is None else resets.keep
        w_ih, w_hh, _, _ = self.parameters
        units, more = self.units, room.more
        # n first, its recurrent part last: the first three blocks belong to W_ih (turned by one), the last three to W_hh
        slope_n, slope_r, slope_z, slope_hn = room.slopes.split(units, dim=2)
        r, z, n = room.gates.split(units, dim=2)
        torch.mul(n, n, out=slope_n).neg_().add_(1.0)
        slope_n.addcmul_(slope_n, z, value=-1.0)  # (1 - n^2) (1 - z)
        torch.mul(slope_n, r, out=slope_hn)
        torch.sub(1.0, r, out=slope_r).mul_(slope_hn).mul_(more.recurrent[:, :, 2 * units :])
        torch.sub(room.before, n, out=slope_z)
        slope_z.mul_(z).addcmul_(slope_z, z, value=-1.0)
        d_hidden = grad.view_as(room.hidden[1:]).unbind(0)
        for t in reversed(range(room.steps)):
            if t < room.steps - 1:
                after = None if keep is None else keep[t + 1]
                _add_recurrent(d_hidden[t], more.recurrent_slopes[t + 1], w_hh, after)
                through = d_hidden[t + 1].mul_(room.gates_at[t + 1][1])
                d_hidden[t].add_(through if after is None else through.mul_(after))
            more.slopes[t].mul_(d_hidden[t].unsqueeze(1))
        d_gates = room.slopes.flatten(0, 1)
        d_input, d_recurrent = d_gates[:, : 3 * units], d_gates[:, units:]
        sums = d_gates.sum(0)
        grads = [
            d_input.t().mm(x).roll(-units, 0),
            d_recurrent.t().mm(room.before.flatten(0, 1)),
            sums[: 3 * units].roll(-units, 0),
            sums[units:],
        ]
        return d_input.mm(w_ih.roll(units, 0)) if input_wanted else None, grads


def _add_recurrent(d_hidden: Tensor, d_gates: Tensor, w_hh: Tensor, keep: Tensor | None) -> None:
    """Adds what comes back from the next step, unless the memory was zeroed between the two."""
    if keep is None:
        d_hidden.addmm_(d_gates, w_hh)
    else:
        d_hidden.addcmul_(d_gates.mm(w_hh), keep)
