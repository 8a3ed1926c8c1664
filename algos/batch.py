"""A rollout's rows as one flat batch with named fields, and the minibatches drawn from it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from core.vecenv import tree_map

SEQUENCE_FIELDS = ("rnn_states",)  # list of (layers, sequences, units): one entry per sequence, not per row


class Batch:
    """Named tensors with L rows each, read as attributes: `batch.advantages` (L,), `batch.obs` (L, ...).

    Always there: obs, actions (L, A) or (L,) or (L, k), old_neglogp (L,), old_values and returns (L, V, normalized where
    `normalize_value`), advantages (L,), mask (L,) or None. Continuous: old_mus, old_sigmas (L, A).
    With memory: rnn_states, rnn_dones (L,). With a central value: states. With action masks: action_masks.
    Beside them, by their own names, the fields of `Agent.rollout_fields`. Rows are ordered row-major by environment:
    L = N * T, index = n * T + t, unless reset rows were dropped or `transform_batch` changed it.

    A minibatch is a Batch too, with `index`: which rows of the batch it holds.
    """

    def __init__(self, fields: dict[str, Any], seq_length: int = 1, index: Any = None) -> None:
        self.fields = fields
        self.seq_length = seq_length
        self.index = index

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["fields"][name]
        except KeyError:
            raise AttributeError(f"batch has no field '{name}'; it has {', '.join(self.__dict__.get('fields', {}))}") from None

    def __len__(self) -> int:
        return self.fields["actions"].shape[0]

    def __contains__(self, name: str) -> bool:
        return self.fields.get(name) is not None

    def replace(self, **fields: Any) -> Batch:
        """A copy with some fields replaced or added; what `transform_batch` returns."""
        return Batch({**self.fields, **fields}, self.seq_length, self.index)

    def take(self, index: Any) -> Batch:
        """Rows by index, mask or slice. With memory, `index` counts sequences instead of rows."""
        recurrent = self.fields.get("rnn_states") is not None
        fields: dict[str, Any] = {}
        for name, value in self.fields.items():
            if value is None:
                fields[name] = None
            elif name in SEQUENCE_FIELDS:
                fields[name] = [state[:, index, :].contiguous() for state in value]
            elif recurrent:
                fields[name] = tree_map(self._sequences(index), value)
            else:
                fields[name] = tree_map(lambda x: x[index], value)
        return Batch(fields, self.seq_length, self._rows(index) if recurrent else index)

    def write(self, minibatch: Batch, **fields: Tensor) -> None:
        """Writes new values of fields into the rows that a minibatch came from."""
        for name, value in fields.items():
            self.fields[name][minibatch.index] = value

    def minibatches(self, count: int, shuffle: bool) -> Iterator[Batch]:
        """Yields `count` minibatches that together hold every row (or sequence) once, in random order if `shuffle`.

        Sizes differ by at most one where the rows do not divide evenly (dropped reset rows, a changed batch).
        """
        total = len(self) // self.seq_length if self.fields.get("rnn_states") is not None else len(self)
        if not shuffle:
            edges = [total * i // count for i in range(count + 1)]
            for start, end in itertools.pairwise(edges):
                yield self.take(slice(start, end))
            return
        order = torch.randperm(total, device=self.fields["actions"].device)
        for index in torch.tensor_split(order, count):
            yield self.take(index)

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


def flat(field: Tensor) -> Tensor:
    """(T, N, ...) -> (N * T, ...), environment by environment, so that sequences of one environment are contiguous."""
    return field.transpose(0, 1).reshape(field.shape[0] * field.shape[1], *field.shape[2:])
