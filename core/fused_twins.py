"""Actor and critic of a `separate` network at once: their trunks have the same layers, so that each layer is one batched product.

Two products of 512 rows by 64 units are each too small for two threads; both together are not, and take half the calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.fused import FusedNet, linear_gradients

KEPT_SIZES = 8  # numbers of rows whose views are kept: reset rows make minibatches differ by a few
CHUNK = 256  # rows; of so many a GPU makes one product of its own where the rows are summed over
GPU_ROWS = 2**17  # of a minibatch; with more, one trunk alone keeps a GPU busy, and batched products are slower than single ones


class TwinLayer(NamedTuple):
    """A layer of both trunks, as views of the parameters, which lie side by side."""

    weight: Tensor  # (2, out, in)
    transposed: Tensor  # (2, in, out)
    bias: Tensor  # (2, 1, out)
    forward: Any
    backward: Any


class TwinWork:
    """What a forward pass over B rows keeps for its backward pass: (2, B, units) by layer."""

    def __init__(self, layers: Sequence[TwinLayer], storage: list[list[Tensor]], rows: int) -> None:
        widths = [layer.bias.shape[2] for layer in layers]
        self.hidden, self.grads = (
            [flat[: 2 * rows * width].view(2, rows, width) for flat, width in zip(flats, widths, strict=True)] for flats in storage
        )
        self.tops = self.hidden[-1].unbind(0)
        self.of_tops = self.grads[-1].unbind(0)


class TwinNet:
    """The minibatches of a `FusedNet` with two trunks, for an optimizer whose parameters stay where they are (`algos.flat_adam`).

    `order` is how the parameters have to lie before `tie` takes their views; `parameters` is the order of the gradients.
    """

    def __init__(self, net: FusedNet) -> None:
        self.net = net
        self.parameters = net.parameters
        half = net.counts[0]
        self._pairs = list(zip(range(half), range(half, 2 * half), strict=True))  # places in `parameters`
        paired = [self.parameters[i] for pair in self._pairs for i in pair]
        self.order: list[nn.Parameter] = [*paired, *self.parameters[2 * half :]]
        self.layers: list[TwinLayer] = []
        self._storage: list[list[Tensor]] = []
        self._works: dict[int, TwinWork] = {}
        self._capacity = 0

    @staticmethod
    def of(net: FusedNet, rows: int) -> TwinNet | None:
        """None for a network whose trunk is shared, or has memory, and on a GPU for minibatches of very many rows."""
        much = net.policy_head.weight.is_cuda and rows > GPU_ROWS
        return TwinNet(net) if type(net) is FusedNet and net.separate and not much else None

    def tie(self) -> None:
        """Takes the views; the parameters lie in `order`."""
        tied = self._stacked([p.detach() for p in self.parameters])
        for i, (layer, other) in enumerate(zip(*self.net.trunks, strict=True)):
            assert layer.forward is other.forward, "rl_games gives both trunks the same activation"
            weight, bias = tied[2 * i], tied[2 * i + 1]
            self.layers.append(TwinLayer(weight, weight.transpose(1, 2), bias.unsqueeze(1), layer.forward, layer.backward))

    def stack(self, into: Sequence[Tensor]) -> list[Tensor]:
        """Of tensors for the gradients of `parameters`, which lie as those do: the trunks' in pairs, then the heads'."""
        return [*self._stacked(into), *into[2 * len(self._pairs) :]]

    def _stacked(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        found = []
        for a, b in ((tensors[i], tensors[j]) for i, j in self._pairs):
            assert b.data_ptr() == a.data_ptr() + a.nbytes, "the pair lies side by side"
            assert a.is_contiguous()
            found.append(a.as_strided((2, *a.shape), (a.numel(), *a.stride())))
        return found

    # ---- a minibatch --------------------------------------------------------------------------------------------------

    def take_work(self, obs: Tensor, sequences: Any = None) -> TwinWork:
        """Room for a forward pass over a minibatch and its backward pass, until the next one."""
        rows = obs.shape[0]
        work = self._works.get(rows)
        if work is not None:
            return work
        if rows > self._capacity or len(self._works) >= KEPT_SIZES:
            self._works.clear()
        if rows > self._capacity:
            self._capacity = rows
            sizes = [2 * rows * layer.bias.shape[2] for layer in self.layers]
            self._storage = [[obs.new_empty(size) for size in sizes] for _ in range(2)]
        work = self._works[rows] = TwinWork(self.layers, self._storage, rows)
        return work

    def give_back(self, work: TwinWork) -> None:
        """Nothing waits: forward and backward pass follow each other."""

    def forward_by_hand(self, obs: Tensor, work: TwinWork) -> tuple[Tensor, Tensor]:
        """(B, O) normalized -> the policy head's output (B, A), values (B, V)."""
        hidden = obs.expand(2, *obs.shape)
        for layer, out, room in zip(self.layers, work.hidden, work.grads, strict=True):
            torch.baddbmm(layer.bias, hidden, layer.transposed, out=out)
            layer.forward(out, room)
            hidden = out
        policy, value = self.net.policy_head, self.net.value_head
        return F.linear(work.tops[0], policy.weight, policy.bias), F.linear(work.tops[1], value.weight, value.bias)

    def backward_into(self, obs: Tensor, work: TwinWork, head: Tensor, values: Tensor, into: Sequence[Tensor]) -> None:
        """Writes the gradients into what `stack` made of their tensors."""
        for grad, above, top, of_top, place in (
            (head, self.net.policy_head, work.tops[0], work.of_tops[0], -4),
            (values, self.net.value_head, work.tops[1], work.of_tops[1], -2),
        ):
            torch.mm(grad, above.weight, out=of_top)
            linear_gradients(grad, top, into[place], into[place + 1])
        for i in reversed(range(len(self.layers))):
            layer, grad = self.layers[i], work.grads[i]
            layer.backward(grad, work.hidden[i])
            below = work.hidden[i - 1] if i else obs.expand(2, *obs.shape)
            weight_gradients(grad, below, into[2 * i])
            torch.sum(grad, 1, out=into[2 * i + 1])
            if i:
                torch.bmm(grad, layer.weight, out=work.grads[i - 1])


def weight_gradients(grad: Tensor, below: Tensor, out: Tensor) -> None:
    """grad (2, B, out), below (2, B, in) -> (2, out, in), summed over the rows.

    A GPU's batched product has one of its processors go through all rows alone: of 32,768 rows that took 0.8 ms, and in chunks 0.04 ms
    (H200).
    """
    if in_chunks(grad):
        parts = torch.matmul(_chunks(grad).transpose(2, 3), _chunks(below))  # (2, B / CHUNK, out, in)
        torch.sum(parts, 1, out=out)
    elif below.shape[2] < grad.shape[2]:  # the narrower one stands left, as in linear_gradients
        out.copy_(torch.bmm(below.transpose(1, 2), grad).transpose(1, 2))
    else:
        torch.bmm(grad.transpose(1, 2), below, out=out)


def in_chunks(grad: Tensor) -> bool:
    """Whether the rows of (2, B, out) are summed chunk by chunk."""
    return grad.is_cuda and grad.shape[1] % CHUNK == 0


def _chunks(x: Tensor) -> Tensor:
    """(2, B, n) -> (2, B / CHUNK, CHUNK, n)"""
    return x.unflatten(1, (-1, CHUNK))
