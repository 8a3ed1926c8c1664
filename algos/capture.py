"""A function recorded as a CUDA graph: a whole rollout or update becomes one launch. Which ones may be is for algos/graphs.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
# What waits for the device or makes a result whose size only the device knows, and what to write instead.
WAITS = {
    aten._local_scalar_dense: "the host reads a number (item, float, bool)",
    aten.is_nonzero: "the host asks whether a tensor is true",
    aten.equal: "the host asks whether tensors are equal",
    aten.nonzero: "the size of the result depends on the numbers (nonzero, a boolean index): use torch.where",
    aten.masked_select: "the size of the result depends on the numbers: use torch.where",
    aten._unique2: "the size of the result depends on the numbers",
    aten.unique_consecutive: "the size of the result depends on the numbers",
    aten.unique_dim: "the size of the result depends on the numbers",
    aten.lift_fresh: "a tensor is made from Python numbers: make it once, before",
}
COPIES = (aten._to_copy, aten.copy_)  # elsewhere a number without dimensions is handed over with the launch, wherever it lies
INDEXED = (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_)


class NotCapturable(RuntimeError):
    """An operation that a CUDA graph cannot hold."""


class Watch(TorchDispatchMode):
    """Raises NotCapturable, with the operation's name, before an operation runs that a graph cannot hold; CUDA's own error names none and
    spoils the recording. Keeps alive what the recorded operations read and write: a replay does so at the same addresses."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device
        self.last = ""  # the operation that ran last
        self.kept: dict[int, Tensor] = {}
        self._made: set[int] = set()  # addresses of what the recorded operations allocate: the graph keeps those itself

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kind, self.last = func.overloadpacket, str(func.overloadpacket)
        given = [x for x in tree_leaves((args, kwargs or {})) if isinstance(x, Tensor)]
        harmless = kind is aten.lift_fresh and not given[0].dim()  # x[i] = 1.0: the number goes with the launch
        if kind in WAITS and not harmless:
            raise NotCapturable(f"{kind}: {WAITS[kind]}")
        if kind in INDEXED and any(x is not None and x.dtype in (torch.bool, torch.uint8) for x in args[1]):
            raise NotCapturable(f"{kind}: {WAITS[aten.nonzero]}")
        to = [device] if kind is aten._to_copy and (device := (kwargs or {}).get("device")) else []
        self._check_devices(kind, to + [x.device for x in given if x.dim() or kind in COPIES])
        result = func(*args, **(kwargs or {}))
        made = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
        self._check_devices(kind, [x.device for x in made if x.dim()])
        for x in given:
            if (place := _place(x)) not in self._made:
                self.kept[place] = x
        self._made.update(place for x in made if (place := _place(x)) not in self.kept)
        return result

    def _check_devices(self, kind: Any, devices: list[torch.device]) -> None:
        for device in devices:
            if device.type != self.device.type:
                raise NotCapturable(f"{kind}: a tensor lies on {device}, not on {self.device}")


class Slot(NamedTuple):
    """A tensor that the function replaces rather than writes into: where it is read from, where the new one is put."""

    get: Callable[[], Tensor]
    put: Callable[[Tensor], None]


def attribute(holder: Any, name: str) -> Slot:
    return Slot(lambda: getattr(holder, name), lambda value: setattr(holder, name, value))


class CudaGraph:
    """torch's CUDA graph on a stream of its own.

    Args:
        generators: returns the random generators, beside the device's default one, that the function draws from.
    """

    def __init__(self, device: torch.device, generators: Callable[[], list[torch.Generator]]) -> None:
        self.device, self.generators = device, generators
        self.stream = torch.cuda.Stream(device)
        self.graph: Any = None

    def aside(self, function: Callable[[], Any]) -> Any:
        """Runs the function as it will be recorded: on the graph's stream, so that what libraries allocate per stream is there."""
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            result = function()
        current.wait_stream(self.stream)
        return result

    def capture(self, function: Callable[[], Any]) -> Any:
        """Records the function without running its kernels; returns its result, whose numbers a replay writes."""
        self.graph = torch.cuda.CUDAGraph()
        default = torch.cuda.default_generators[torch.cuda.current_device() if self.device.index is None else self.device.index]
        own = self.generators()
        before = [(generator, generator.clone_state()) for generator in (default, *own)]
        for generator in own:
            self.graph.register_generator_state(generator)
        # thread_local: another thread (a logger's) may call CUDA meanwhile
        recording = torch.cuda.graph(self.graph, stream=self.stream, capture_error_mode="thread_local")
        try:  # the outer stream context: torch's own stays on the graph's stream where a recording is spoilt
            with torch.cuda.device(self.device), torch.cuda.stream(torch.cuda.current_stream(self.device)), recording:
                return function()
        except BaseException:
            for generator, state in before:  # of a recording that CUDA itself broke off they would think that it goes on
                generator.graphsafe_set_state(state)
            raise

    def replay(self) -> None:
        self.graph.replay()


class Captured:
    """A function that runs as it is for a few calls, which count as any other, is then recorded, and from then on replayed.

    `function(inputs)` takes a dict of tensors and returns a tree of tensors. What it replaces (`slots`) it finds, at each replay, where
    it lay when it was recorded, and its last values are copied back there. Whenever `settings` (numbers that a recording fixes) or
    shapes change, it is recorded anew; where they do so too often, or an operation cannot be recorded, `reason` says so and the function
    runs as it is from then on. Recording runs no kernel: a failed attempt changes only what the slots hold, and that is put back.
    """

    WARM_UP = 2  # calls before a recording
    CHANGES = 8  # of what a recording fixes, after which no other is made

    def __init__(self, function: Callable[[dict[str, Tensor]], Any], device: torch.device, graph: Any) -> None:
        self.function, self.device, self.graph = function, device, graph
        self.reason: str | None = None
        self.recorded = False
        self.inputs: dict[str, Tensor] = {}
        self.result: Any = None
        self.kept: dict[int, Tensor] = {}  # what the recorded operations reach outside the graph's own memory
        self._places: dict[str, Tensor] = {}
        self._signature: dict[str, Any] = {}
        self._warm, self._changes = 0, -1  # the first call is no change

    def __call__(self, inputs: dict[str, Tensor], slots: dict[str, Slot], settings: dict[str, Any]) -> Any:
        if self.reason is None:
            self._compare({**settings, **{name: _form(x) for name, x in (*inputs.items(), *((n, s.get()) for n, s in slots.items()))}})
        if self.reason is not None:
            return self.function(inputs)
        if not self.recorded and self._warm < self.WARM_UP:
            self._warm += 1
            return self.graph.aside(lambda: self.function(inputs))
        if not self.recorded:
            self._record(inputs, slots)
            if self.reason is not None:
                return self.function(inputs)
        for name, x in inputs.items():
            self.inputs[name].copy_(x)
        for name, slot in slots.items():
            if (value := slot.get()) is not self._places[name]:  # an environment was reset, a state loaded
                self._places[name].copy_(value)
                slot.put(self._places[name])
        self.graph.replay()
        return self.result

    def _compare(self, signature: dict[str, Any]) -> None:
        changed = [name for name in {**self._signature, **signature} if self._signature.get(name) != signature.get(name)]
        if not changed:
            return
        self._forget()
        self._changes += 1
        if self._changes >= self.CHANGES:
            seen = ", ".join(f"{name} is {signature.get(name)}, was {self._signature.get(name)}" for name in changed[:3])
            self.reason = f"what a graph fixes changes again and again: {seen}"
        self._signature, self._warm = signature, 0

    def _forget(self) -> None:
        self.recorded, self.result, self.inputs, self.kept = False, None, {}, {}

    def _record(self, inputs: dict[str, Tensor], slots: dict[str, Slot]) -> None:
        self.inputs = {name: x.clone() for name, x in inputs.items()}
        self._places = {name: slot.get().clone() for name, slot in slots.items()}
        self._put_back(slots)
        watch = Watch(self.device)

        def recorded() -> Any:
            with watch:
                result = self.function(self.inputs)
                self._carry(slots)
            return result

        try:
            self.result = self.graph.capture(recorded)
        except Exception as error:  # whatever it is: what is no matter of graphs is raised again when the function runs as it is
            said = str(error).strip().split("\n")[0]
            self.reason = said if isinstance(error, NotCapturable) else f"{type(error).__name__} at {watch.last or 'the start'}: {said}"
            self._forget()
        else:
            self.recorded, self.kept = True, watch.kept
        self._put_back(slots)

    def _carry(self, slots: dict[str, Slot]) -> None:
        """The last part of a recording: what the function left in the slots goes where it will be looked for."""
        places = {_place(x) for x in self._places.values()}
        values = {name: slot.get() for name, slot in slots.items()}
        values = {name: x for name, x in values.items() if x is not self._places[name]}
        # one slot's new value may be another's place, which is about to be written
        values = {name: x.clone() if _place(x) in places else x for name, x in values.items()}
        for name, x in values.items():
            if _form(x) != _form(self._places[name]):
                raise NotCapturable(f"'{name}' is {_form(self._places[name])} before and {_form(x)} after")
            self._places[name].copy_(x)

    def _put_back(self, slots: dict[str, Slot]) -> None:
        for name, slot in slots.items():
            slot.put(self._places[name])


def _place(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()


def _form(x: Tensor) -> tuple[Any, ...]:
    return tuple(x.shape), x.dtype
