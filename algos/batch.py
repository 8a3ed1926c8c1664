"""A rollout's rows as one flat batch with named fields, and the minibatches drawn from it."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from core.errors import UserError
from core.vecenv import tree_map

SEQUENCE_FIELDS = ("rnn_states",)  # list of (layers, sequences, units): one entry per sequence, not per row
LARGE = 2**25  # bytes of a field (pictures) of which no second copy is made


class Cut(NamedTuple):
    """A field that has not been read yet: how to get it out of the batch that it belongs to."""

    source: Batch
    function: Callable[[Any], Any]


class Batch:
    """Named tensors with L rows each, read as attributes: `batch.advantages` (L,), `batch.obs` (L, ...).

    Always there: obs, actions (L, A) or (L,) or (L, k), old_neglogp (L,), old_values and returns (L, V, normalized where
    `normalize_value`), advantages (L,), mask (L,) or None. Continuous: old_mus, old_sigmas (L, A).
    With memory: rnn_states, rnn_dones (L,). With a central value: states. With action masks: action_masks.
    Beside them, by their own names, the fields of `Agent.rollout_fields`. Rows are ordered row-major by environment:
    L = N * T, index = n * T + t, unless reset rows were dropped (`steps_together` keeps them) or `transform_batch` changed it.

    Where `normalize_input`: normalized_obs (L, ...), what the network sees, unless it is too large to keep (pictures).
    A minibatch is a Batch too, with `index`: which rows of the batch it holds. Its fields are cut out when they are first read.
    """

    def __init__(self, fields: dict[str, Any], seq_length: int = 1, index: Any = None) -> None:
        self._fields = fields
        self.seq_length = seq_length  # successive rows that stay together, in their order: whole sequences are drawn where there are any
        self.index = index

    @property
    def fields(self) -> dict[str, Any]:
        """All fields by name."""
        for name in self._fields:
            self._read(name)
        return self._fields

    def _read(self, name: str) -> Any:
        value = self._fields[name]
        if isinstance(value, Cut):
            value = self._fields[name] = value.function(value.source._read(name))
        return value

    def __getattr__(self, name: str) -> Any:
        try:
            return self._read(name)
        except KeyError:
            raise AttributeError(f"batch has no field '{name}'; it has {', '.join(self.__dict__.get('_fields', {}))}") from None

    def __len__(self) -> int:
        return self._read("actions").shape[0]

    def __contains__(self, name: str) -> bool:
        return self._fields.get(name) is not None

    def replace(self, **fields: Any) -> Batch:
        """A copy with some fields replaced or added; what `transform_batch` returns."""
        return Batch({**self._fields, **fields}, self.seq_length, self.index)

    def take(self, index: Any) -> Batch:
        """Rows by index, mask or slice. Where `seq_length` rows stay together (memory), `index` counts those sequences instead."""
        select = self._sequences(index) if self._in_sequences else _rows_of(index)
        rows = Cut(self, lambda value: tree_map(select, value))
        states = Cut(self, lambda value: [state[:, index, :].contiguous() for state in value])
        fields = {name: None if value is None else states if name in SEQUENCE_FIELDS else rows for name, value in self._fields.items()}
        return Batch(fields, self.seq_length, self._rows(index) if self._in_sequences else index)

    def write(self, minibatch: Batch, **fields: Tensor) -> None:
        """Writes new values of fields into the rows that a minibatch came from."""
        index = minibatch.index
        by_number = isinstance(index, Tensor) and index.dtype == torch.int64
        for name, value in fields.items():
            field = self._read(name)
            if by_number and value.shape == (len(index), *field.shape[1:]):
                field.index_copy_(0, index, value)  # half the time of the line below
            else:
                field[index] = value

    def draw_order(self) -> Tensor:
        """A random order (L,) of the rows (with memory: of the sequences)."""
        return torch.randperm(self._total(), device=self.actions.device)

    def minibatches(self, count: int, shuffle: bool, order: Tensor | None = None) -> Iterator[Batch]:
        """Yields `count` minibatches that together hold every row (or sequence) once: in the given order, or in one that is drawn here
        if `shuffle`, or as they lie.

        Sizes differ by at most one where the rows do not divide evenly (dropped reset rows, a changed batch).
        """
        total = self._total()
        if total < count:
            what = "sequences" if self._in_sequences else "rows"
            raise UserError(f"{count} minibatches of a batch of {total} {what}, rows that only reset left out: make the minibatches larger")
        if order is None and shuffle:
            order = self.draw_order()
        if order is None:
            edges = [total * i // count for i in range(count + 1)]
            for start, end in itertools.pairwise(edges):
                yield self.take(slice(start, end))
            return
        orders = torch.tensor_split(order, count)
        pieces = self.take(order)._pieces([len(rows) for rows in orders])
        large = {name for name, value in self._fields.items() if isinstance(value, Tensor) and value.nbytes > LARGE}
        for i, rows in enumerate(orders):
            part = Cut(pieces, operator.itemgetter(i))
            fields: dict[str, Any] = {name: None if value is None else part for name, value in self._fields.items()}
            if large:
                direct = self.take(rows)._fields
                fields.update({name: direct[name] for name in large})
            yield Batch(fields, self.seq_length, self._rows(rows) if self._in_sequences else rows)

    def _pieces(self, sizes: list[int]) -> Batch:
        """A batch whose fields are tuples: the parts of `sizes` rows (with memory: sequences), all cut when the first of them is read."""
        rows = [size * self.seq_length for size in sizes] if self._in_sequences else sizes
        cut = Cut(self, lambda value: _split(value, rows))
        states = Cut(self, lambda value: [[part.contiguous() for part in parts] for parts in _by_piece(value, sizes)])
        fields = {name: None if value is None else states if name in SEQUENCE_FIELDS else cut for name, value in self._fields.items()}
        return Batch(fields)

    @property
    def _in_sequences(self) -> bool:
        return self.seq_length > 1 or self._fields.get("rnn_states") is not None

    def _total(self) -> int:
        return len(self) // self.seq_length if self._in_sequences else len(self)

    def _sequences(self, index: Any) -> Any:
        if isinstance(index, slice):
            rows = self._rows(index)
            return lambda x: x[rows]
        return lambda x: x.unflatten(0, (-1, self.seq_length))[index].flatten(0, 1)

    def _rows(self, index: Any) -> Any:
        if isinstance(index, slice):
            return slice(index.start * self.seq_length, index.stop * self.seq_length)
        steps = torch.arange(self.seq_length, device=index.device)
        return (index.unsqueeze(1) * self.seq_length + steps).flatten()


def _split(value: Any, sizes: list[int]) -> Any:
    """A tensor, or a dict of them, in parts."""
    if isinstance(value, dict):
        parts = {key: _split(sub, sizes) for key, sub in value.items()}
        return [{key: parts[key][i] for key in parts} for i in range(len(sizes))]
    return value.split(sizes)


def _by_piece(states: list[Tensor], sizes: list[int]) -> Iterator[tuple[Tensor, ...]]:
    return zip(*[state.split(sizes, dim=1) for state in states], strict=True)


def _rows_of(index: Any) -> Callable[[Tensor], Tensor]:
    if isinstance(index, Tensor) and index.dtype == torch.int64:
        return lambda x: x.index_select(0, index)
    return lambda x: x[index]


def flat(field: Tensor) -> Tensor:
    """(T, N, ...) -> (N * T, ...), environment by environment, so that sequences of one environment are contiguous."""
    return field.transpose(0, 1).reshape(field.shape[0] * field.shape[1], *field.shape[2:])
