"""Stands in for a CUDA graph where there is no GPU: records the operations that a function dispatches, and replays those alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Tape(TorchDispatchMode):
    """Runs every operation, notes it, and can undo them all."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, Any]] = []
        self.before: dict[int, tuple[Tensor, Tensor]] = {}  # written storages, as bytes: themselves, and what they held

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for x in written(func, args, kwargs):
            place = x.untyped_storage().data_ptr()
            if place not in self.before:
                storage = torch.empty(0, dtype=torch.uint8).set_(x.untyped_storage())
                self.before[place] = (storage, storage.clone())
        result = func(*args, **kwargs)
        self.operations.append((func, args, kwargs, result))
        return result

    def undo(self) -> None:
        for storage, held in self.before.values():
            storage.copy_(held)


class RecordedGraph:
    """What algos.capture.CudaGraph is to the agent. As there, recording computes nothing: what it wrote is undone, what it made is spoilt.
    As there, a replay runs no Python of the recorded function, and reads and writes the very tensors of the recording."""

    def __init__(self, device: torch.device, generators: Any) -> None:
        self.generators = generators
        self.warm_ups = self.captures = self.replays = 0
        self.tape: Any = None

    def aside(self, function: Any) -> Any:
        self.warm_ups += 1
        return function()

    def capture(self, function: Any) -> Any:
        self.captures += 1
        default, drawn = torch.get_rng_state(), [(generator, generator.get_state()) for generator in self.generators()]
        self.tape = Tape()
        try:
            with self.tape:
                result = function()
        finally:
            self.tape.undo()
            for generator, state in drawn:  # those of a generator that the graph is not told of would now differ
                generator.set_state(state)
        assert torch.equal(torch.get_rng_state(), default), "the default generator was drawn from"
        for func, args, kwargs, made in self.tape.operations:
            if not is_view(func) and not written(func, args, kwargs):
                for x in tree_leaves(made):
                    x.fill_(float("nan") if x.is_floating_point() else 77)
        self.tape.undo()  # a made tensor may share memory with a written one
        self.places = [[x.data_ptr() for x in tensors(args, kwargs)] for _, args, kwargs, _ in self.tape.operations]
        return result

    @torch.no_grad()
    def replay(self) -> None:
        self.replays += 1
        for (func, args, kwargs, made), places in zip(self.tape.operations, self.places, strict=True):
            assert [x.data_ptr() for x in tensors(args, kwargs)] == places, func
            if is_view(func) or func.overloadpacket in (torch.ops.aten.empty, torch.ops.aten.new_empty):
                continue
            result = func(*args, **kwargs)
            if not written(func, args, kwargs):
                for x, y in zip(tree_leaves(made), tree_leaves(result), strict=True):
                    x.copy_(y)

    def outside(self) -> set[int]:
        """Storages that the recording reads or writes and did not make."""
        made: set[int] = set()
        found: set[int] = set()
        for _, args, kwargs, result in self.tape.operations:
            found |= {x.untyped_storage().data_ptr() for x in tensors(args, kwargs)} - made
            made |= {x.untyped_storage().data_ptr() for x in tree_leaves(result) if isinstance(x, Tensor)} - found
        return found


def tensors(*trees: Any) -> list[Tensor]:
    return [x for x in tree_leaves(trees) if isinstance(x, Tensor)]


def written(func: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """The tensors that an operation writes into, by its schema."""
    found = []
    for i, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            found += tensors(args[i] if i < len(args) else kwargs.get(argument.name))
    return found


def is_view(func: Any) -> bool:
    returns = func._schema.returns
    return bool(returns) and all(r.alias_info is not None and not r.alias_info.is_write for r in returns)
