"""rl_games' `actor_critic` with an LSTM or a GRU, run by hand: core/fused.py's MLP, core/fused_rnn.py's layers before or after it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from rl_games.common.layers.recurrent import RnnWithDones
from torch import Tensor, nn

from core.fused import FusedNet, Layer, Sequences, Work, heads_backward, of_plain_layers
from core.fused_rnn import GRU, Cell, Resets
from core.onednn_lstm import OneDNNLSTM

CELLS: dict[type, type[Cell]] = {nn.LSTM: OneDNNLSTM, nn.GRU: GRU}


class Memory:
    """What stands between the MLP of one trunk and its heads, or before the MLP: recurrent layers, layer norm, skips past them."""

    def __init__(self, net: Any, prefix: str, place: int) -> None:
        rnn = getattr(net, f"{prefix}rnn").rnn
        self.cells = [CELLS[type(rnn)](rnn, layer) for layer in range(rnn.num_layers)]
        self.norm: nn.LayerNorm | None = getattr(net, f"{prefix}layer_norm") if net.rnn_ln else None
        self.concat_input = net.rnn_concat_input and not net.is_rnn_before_mlp
        self.concat_output: bool = net.rnn_concat_output
        states = self.cells[0].states
        self.own_states = slice(place * states, (place + 1) * states)  # where its tensors stand in the network's list
        self.parameters: list[nn.Parameter] = [p for cell in self.cells for p in cell.parameters]
        if self.norm is not None:
            self.parameters += [self.norm.weight, self.norm.bias]

    def forward(self, x: Tensor, obs: Tensor, resets: Resets | None, states: list[Tensor], room: MemoryRoom) -> Tensor:
        """x (T * S, I) -> (T * S, units), each with obs (T * S, O) beside it where the network says so."""
        room.width = x.shape[1]
        if self.concat_input:
            x = torch.cat([x, obs], dim=1)
        room.inputs = [x]
        for i, (cell, own) in enumerate(zip(self.cells, room.layers, strict=True)):
            x = cell.forward(x, [state[i] for state in states[self.own_states]], resets, own)
            room.inputs.append(x)
        if self.norm is not None:
            x, *room.moments = torch.native_layer_norm(x, self.norm.normalized_shape, self.norm.weight, self.norm.bias, self.norm.eps)
        room.output = torch.cat([x, obs], dim=1) if self.concat_output else x
        return room.output

    def backward(self, grad: Tensor, resets: Resets | None, room: MemoryRoom, input_wanted: bool) -> tuple[Any, list[Tensor]]:
        """Gradients at x (None unless wanted) and of `parameters`, from that at the output, which is overwritten."""
        if self.concat_output:
            grad = grad[:, : self.cells[-1].units].contiguous()
        of_norm: list[Tensor] = []
        if self.norm is not None:
            grad, *of_norm = torch.ops.aten.native_layer_norm_backward(
                grad, room.inputs[-1], self.norm.normalized_shape, *room.moments, self.norm.weight, self.norm.bias, [True] * 3
            )
        found: list[Tensor] = []
        into: Any = grad
        for i in reversed(range(len(self.cells))):
            into, own = self.cells[i].backward(into, room.inputs[i], resets, room.layers[i], input_wanted or i > 0)
            found = own + found
        if into is not None and self.concat_input:
            into = into[:, : room.width].contiguous()
        return into, found + of_norm

    def step(self, x: Tensor, obs: Tensor, states: list[Tensor]) -> Tensor:
        """One step of N rows: x (N, I) -> (N, units), without gradients. Writes the memory after it over the one before."""
        if self.concat_input:
            x = torch.cat([x, obs], dim=1)
        for i, cell in enumerate(self.cells):
            x = cell.step(x, [state[i] for state in states[self.own_states]])
        if self.norm is not None:
            x = self.norm(x)
        return torch.cat([x, obs], dim=1) if self.concat_output else x


class MemoryRoom:
    """What a pass through a `Memory` keeps for its backward pass."""

    width: int
    inputs: list[Tensor]  # of each layer, then the output of the last
    moments: list[Tensor]  # of the layer norm
    output: Tensor

    def __init__(self, memory: Memory, steps: int, rows: int, like: Tensor) -> None:
        self.layers = [cell.room(steps, rows, like) for cell in memory.cells]


class RecurrentWork(Work):
    """A `Work` for S sequences of T steps, with its rows ordered step by step."""

    def __init__(self, net: FusedRecurrentNet, rows: int, steps: int, like: Tensor) -> None:
        super().__init__(rows, net.trunks, like)
        self.steps = steps
        self.rooms = [MemoryRoom(memory, steps, rows // steps, like) for memory in net.memories]
        self.obs: Tensor = like
        self.states: list[Tensor] = []
        self.resets: Resets | None = None


class FusedRecurrentNet(FusedNet):
    """`FusedRecurrentNet.of(model)` for models of rl_games' `actor_critic` with an LSTM or a GRU over flat observations, on a CPU; None for
    every other.

    In a step of the rollout rnn_states are (layers, N, units) each; a minibatch's stand in its `Sequences`.
    """

    def __init__(self, net: Any) -> None:
        self.before_mlp: bool = net.is_rnn_before_mlp
        self.memories = [Memory(net, prefix, i) for i, prefix in enumerate(("a_", "c_") if net.separate else ("",))]
        super().__init__(net)

    _states: Any = None  # of the present step
    _look_work: RecurrentWork | None = None

    @staticmethod
    def of(model: nn.Module) -> FusedRecurrentNet | None:
        net: Any = getattr(model, "a2c_network", None)
        if not of_plain_layers(net) or not net.has_rnn:
            return None
        if net.value.weight.device.type != "cpu":
            return None  # cuDNN runs a sequence in few launches; a loop here would take a dozen for every step
        layers = [net.a_rnn, net.c_rnn] if net.separate else [net.rnn]
        return FusedRecurrentNet(net) if all(isinstance(x, RnnWithDones) and type(x.rnn) in CELLS for x in layers) else None

    @property
    def values_later(self) -> bool:
        return False  # a value needs the memory of its step

    # ---- a step of the rollout ----------------------------------------------------------------------------------------

    def act(self, obs: Tensor, head: Tensor, values: Tensor | None, rnn_states: Any = None) -> None:
        """As `FusedNet.act`; writes the memory after the step into `rnn_states`."""
        self._states = rnn_states
        super().act(obs, head, values)

    def refresh(self) -> None:
        super().refresh()
        for memory in self.memories:
            for cell in memory.cells:
                cell.refresh()

    def _step_trunk(self, which: int, obs: Tensor, work: Any) -> Tensor:
        hidden = obs if self.before_mlp else self._step_mlp(which, obs, work)
        hidden = self.memories[which].step(hidden, obs, self._states)
        return self._step_mlp(which, hidden, work) if self.before_mlp else hidden

    def values(self, obs: Tensor, rnn_states: Any = None) -> Tensor:
        """(N, O) normalized -> normalized values (N, V), without gradients; leaves the memory as it is."""
        hidden = self._trunk(len(self.trunks) - 1, obs, self._look(obs, rnn_states))
        return nn.functional.linear(hidden, self.value_head.weight, self.value_head.bias)

    def _look(self, obs: Tensor, rnn_states: list[Tensor]) -> RecurrentWork:
        if self._look_work is None or self._look_work.rows != obs.shape[0]:
            self._look_work = RecurrentWork(self, obs.shape[0], 1, obs)
        self._look_work.states = rnn_states
        return self._look_work

    # ---- a minibatch --------------------------------------------------------------------------------------------------

    def take_work(self, obs: Tensor, sequences: Sequences | None = None) -> RecurrentWork:
        assert sequences is not None
        rows, steps, dones = obs.shape[0], sequences.seq_length, sequences.dones
        found = [i for i, work in enumerate(self._free) if work.rows == rows]
        if found:
            work: Any = self._free.pop(found[0])
        else:
            with torch.inference_mode(False):  # the next to use it may be autograd
                work = RecurrentWork(self, rows, steps, obs)
        work.taken += 1
        work.obs, work.states, work.resets = _by_step(obs, steps), sequences.rnn_states, None
        if dones is not None and bool(dones.any()):
            work.resets = Resets(_by_step(dones, steps).unflatten(0, (steps, -1)), obs.dtype)
        return work

    def forward_by_hand(self, obs: Tensor, work: RecurrentWork) -> tuple[Tensor, Tensor]:
        head, values = super().forward_by_hand(work.obs, work)
        return _by_sequence(head, work.steps), _by_sequence(values, work.steps)

    def backward_by_hand(
        self, obs: Tensor, work: RecurrentWork, head: Tensor | None, values: Tensor | None, into: Sequence[Tensor] | None = None
    ) -> list[Tensor | None]:
        of_head, of_values = (None if grad is None else _by_step(grad, work.steps) for grad in (head, values))
        return super().backward_by_hand(work.obs, work, of_head, of_values, into)

    # ---- a trunk ------------------------------------------------------------------------------------------------------

    def _trunk_parameters(self, which: int) -> list[nn.Parameter]:
        return super()._trunk_parameters(which) + self.memories[which].parameters

    def _trunk(self, which: int, obs: Tensor, work: RecurrentWork) -> Tensor:
        hidden = obs if self.before_mlp else self._mlp(which, obs, work)
        hidden = self.memories[which].forward(hidden, obs, work.resets, work.states, work.rooms[which])
        return self._mlp(which, hidden, work) if self.before_mlp else hidden

    def _trunk_backward(
        self, which: int, obs: Tensor, work: RecurrentWork, above: list[tuple[Tensor, Layer]], into: Sequence[Any]
    ) -> list[Tensor | None]:
        if not above:
            return super()._trunk_backward(which, obs, work, above, into)
        memory, room = self.memories[which], work.rooms[which]
        grad = heads_backward(above, torch.empty_like(work.tops[which]))
        if not self.before_mlp:
            grad, of_memory = memory.backward(grad, work.resets, room, input_wanted=True)
            return [*self._mlp_backward(which, obs, work, grad, into)[0], *of_memory]
        found, grad = self._mlp_backward(which, room.output, work, grad, into)
        grad = grad.mm(self.trunks[which][0].weight)
        _, of_memory = memory.backward(grad, work.resets, room, input_wanted=False)
        return [*found, *of_memory]


def _by_step(x: Tensor, steps: int) -> Tensor:
    """Rows ordered sequence by sequence -> step by step."""
    return x if steps == 1 else x.unflatten(0, (-1, steps)).transpose(0, 1).flatten(0, 1)


def _by_sequence(x: Tensor, steps: int) -> Tensor:
    """Rows ordered step by step -> sequence by sequence."""
    return x if steps == 1 else x.unflatten(0, (steps, -1)).transpose(0, 1).flatten(0, 1)


def fused_net(model: nn.Module) -> FusedNet | None:
    """The network of a model written out, where it is one that can be."""
    return FusedNet.of(model) or FusedRecurrentNet.of(model)
