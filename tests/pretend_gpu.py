"""GPUs for machines without one: tensors remember on which device a real run would have them, and are held to CUDA's rules.

Their numbers lie on the CPU. Two devices in one operation are an error as on a GPU, so are NumPy's view of a tensor there, a generator of another device and, where
deterministic kernels are asked for, an operation that has none; what makes the host wait for the device is counted. What it cannot tell: whether a kernel exists
and what it computes, streams, memory.
"""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
import torch._dynamo  # which a mode would import in its first operation
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten
CPU = torch.device("cpu")
MOVES = (aten.copy_, aten._to_copy, aten._copy_from)
INDEXED = (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_, aten._unsafe_index)  # whose indices may lie on the CPU
WAITS = (
    aten._local_scalar_dense,
    aten.nonzero,
    aten.masked_select,
    aten.equal,
    aten.unique_dim,
    aten._unique2,
)  # whose result the host must know
UNSTEADY = (  # what raises on a GPU where deterministic kernels are asked for, unless of integers
    aten.cumsum,
    aten.put_,
    aten.histc,
    aten.kthvalue,
    aten.nll_loss2d_forward,
    aten._adaptive_avg_pool2d_backward,
    aten.adaptive_max_pool2d_backward,
    aten.upsample_bilinear2d_backward,
    aten.reflection_pad2d_backward,
    aten.grid_sampler_2d_backward,
)


def device_of(name: Any) -> torch.device:
    device = torch.device(name)
    return torch.device("cuda:0") if device.type == "cuda" and device.index is None else device


class PretendGpu:
    """`with PretendGpu() as gpu:` torch has `count` CUDA devices. `gpu.waits` counts by operation what the host waited for, `gpu.places` by line
    of code."""

    def __init__(self, count: int = 1) -> None:
        self.count = count
        self.held: dict[int, tuple[StorageWeakRef, torch.device]] = {}  # storages; a weak reference keeps an address from being used again
        self.waits: Counter[str] = Counter()
        self.places: Counter[str] = Counter()
        self.within = CPU  # where a function's tensors lie: what it makes of nothing, in C++, lies there too

    def __enter__(self) -> PretendGpu:
        self.stack = contextlib.ExitStack()
        for change in patches(self):
            self.stack.enter_context(change)
        self.stack.enter_context(Operations(self))
        self.stack.enter_context(Functions(self))
        return self

    def __exit__(self, *error: Any) -> None:
        self.stack.__exit__(*error)

    def where(self, x: Tensor) -> torch.device:
        with torch._C.DisableTorchFunction():
            ref, device = self.held.get(x.untyped_storage()._cdata, (None, CPU))
        return CPU if ref is None or ref.expired() else device

    def put(self, x: Tensor, device: Any = "cuda") -> Tensor:
        """Declares where `x`, and every view of it, lies."""
        device = device_of(device)
        with torch._C.DisableTorchFunction():
            storage = x.untyped_storage()
            self.held.pop(storage._cdata, None)
            if device != CPU:
                self.held[storage._cdata] = StorageWeakRef(storage), device
                if len(self.held) > 100_000:
                    self.held = {key: (ref, place) for key, (ref, place) in self.held.items() if not ref.expired()}
        return x

    def moved(self, x: Tensor, device: Any, dtype: Any = None, copy: bool = False) -> Tensor:
        device = device_of(device)
        if device == self.where(x):
            return x.to(dtype or x.dtype, copy=copy)
        if device == CPU:
            self.wait("to('cpu')")
        return self.put(x.to(dtype, copy=True) if dtype is not None and dtype != x.dtype else x.clone(), device)

    def wait(self, what: str) -> None:
        self.waits[what] += 1
        frame = sys._getframe()
        while frame.f_back and ("site-packages" in (file := frame.f_code.co_filename) or file == __file__):
            frame = frame.f_back
        self.places[f"{what} {frame.f_code.co_filename}:{frame.f_lineno}"] += 1


class Operations(TorchDispatchMode):
    """Every operation, those of a backward pass too: that its tensors lie together, and where its results lie."""

    def __init__(self, gpu: PretendGpu) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        places = [self.gpu.where(x) for x in given]
        there = [place for place in places if place != CPU]
        if there:
            self.check(func, given, places)
        with torch._C.DisableTorchFunction():
            old = {x.untyped_storage()._cdata for x in given}
        result = func(*args, **kwargs)
        for x in tree_leaves(result):
            if isinstance(x, Tensor):
                with torch._C.DisableTorchFunction():
                    new = x.untyped_storage()._cdata not in old
                if new:
                    self.gpu.put(x, (there or [CPU])[0] if given else self.gpu.within)
        return result

    def check(self, func: Any, given: list[Tensor], places: list[torch.device]) -> None:
        packet, gpu = func.overloadpacket, self.gpu
        if packet in UNSTEADY and torch.are_deterministic_algorithms_enabled() and given[0].is_floating_point():
            raise RuntimeError(
                f"{packet} does not have a deterministic implementation, but you set torch.use_deterministic_algorithms(True)"
            )
        if packet in MOVES:
            if places[0] == CPU:
                gpu.wait("copy_ to the CPU")
            return
        first = next(place for place in places if place != CPU)
        strays = [x for x, place in zip(given, places, strict=True) if place != first and (x.dim() > 0 or place != CPU)]
        if packet in INDEXED and places[0] != CPU:
            strays = [x for x in strays if gpu.where(x) != CPU or x.dtype not in (torch.int64, torch.int32, torch.bool, torch.uint8)]
        if strays:
            shapes = ", ".join(f"{tuple(x.shape)} on {place}" for x, place in zip(given, places, strict=True))
            raise RuntimeError(f"Expected all tensors to be on the same device: {func}({shapes})")
        masks = packet in INDEXED and any(
            place != CPU and x.dtype in (torch.bool, torch.uint8) for x, place in zip(given[1:], places[1:], strict=True)
        )
        if packet in WAITS or masks:  # a boolean index gives as many rows as are true
            gpu.wait(packet.__name__)


class Functions(TorchFunctionMode):
    """What Python calls: moves between devices, and where new tensors are asked for."""

    def __init__(self, gpu: PretendGpu) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        gpu = self.gpu
        x: Any = args[0] if args and isinstance(args[0], Tensor) else None
        if func == Tensor.device.__get__:
            return gpu.where(x)
        if func == Tensor.is_cuda.__get__:
            return gpu.where(x) != CPU
        if func is Tensor.get_device:
            return -1 if gpu.where(x) == CPU else gpu.where(x).index
        if func is Tensor.pin_memory:
            return x
        if func is Tensor.is_pinned:
            return False
        if func is Tensor.cuda:
            return gpu.moved(x, "cuda")
        if func is Tensor.cpu:
            return gpu.moved(x, CPU)
        if func is Tensor.to:
            return self.to(x, *args[1:], **kwargs)
        if func in (Tensor.numpy, Tensor.__array__, Tensor.tolist) and gpu.where(x) != CPU:
            if func is Tensor.tolist:
                gpu.wait("tolist")
            elif not kwargs.get("force"):
                raise TypeError(
                    f"can't convert {gpu.where(x)} device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory first."
                )
        device = kwargs.pop("device", None)
        if kwargs.get("generator") is not None:
            drawn = device_of(device) if device is not None else CPU if x is None else gpu.where(x)
            if kwargs["generator"].device != drawn:
                raise RuntimeError(f"Expected a '{drawn}' device type for generator but found '{kwargs['generator'].device}'")
        if func in (torch.as_tensor, torch.asarray) and x is not None:
            return gpu.moved(x, gpu.where(x) if device is None else device, kwargs.get("dtype"))
        outer = gpu.within
        gpu.within = next((place for a in tree_leaves((args, kwargs)) if isinstance(a, Tensor) and (place := gpu.where(a)) != CPU), CPU)
        try:
            result = func(*args, **kwargs)
        finally:
            gpu.within = outer
        if device is not None:
            if func is torch.as_tensor and device_of(device) != CPU:  # of an array: a copy
                result = result.clone()
            for leaf in tree_leaves(result):
                if isinstance(leaf, Tensor):
                    gpu.put(leaf, device)
        return result

    def to(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        device, dtype = kwargs.get("device"), kwargs.get("dtype")
        for a in args:
            if isinstance(a, Tensor):
                device, dtype = self.gpu.where(a), a.dtype
            elif isinstance(a, (str, torch.device, int)) and not isinstance(a, bool):
                device = a
            elif isinstance(a, torch.dtype):
                dtype = a
        return self.gpu.moved(x, self.gpu.where(x) if device is None else device, dtype, kwargs.get("copy", False))


def patches(gpu: PretendGpu) -> Iterator[Any]:
    """What of torch.cuda is asked for by those who believe that it is there."""
    real_load = torch.load

    def load(file: Any, map_location: Any = None, **kwargs: Any) -> Any:
        loaded = real_load(file, map_location="cpu", **kwargs)
        if map_location is not None:
            tree_map(lambda x: gpu.put(x, map_location) if isinstance(x, Tensor) else x, loaded)
        return loaded

    for name, value in {
        "is_available": lambda: True,
        "device_count": lambda: gpu.count,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "synchronize": lambda device=None: None,
        "get_device_name": lambda device=None: "pretended",
        "get_rng_state_all": lambda: [torch.get_rng_state()] * gpu.count,
        "set_rng_state_all": lambda states: None,
        "get_rng_state": lambda device=None: torch.get_rng_state(),
        "set_rng_state": lambda state, device=None: None,
        "manual_seed_all": lambda seed: None,
        "empty_cache": lambda: None,
        "max_memory_allocated": lambda device=None: 0,
        "memory_allocated": lambda device=None: 0,
        "reset_peak_memory_stats": lambda device=None: None,
    }.items():
        yield mock.patch.object(torch.cuda, name, value)

    class Autocast(torch.amp.autocast_mode.autocast):
        """That of the CPU, where the numbers lie."""

        def __init__(self, device_type: str, *args: Any, **kwargs: Any) -> None:
            super().__init__("cpu", *args, **kwargs)

    yield mock.patch.object(torch.backends.cudnn, "is_acceptable", return_value=False)
    yield mock.patch.object(torch, "autocast", Autocast)
    yield mock.patch.object(torch, "load", load)
    yield mock.patch.object(torch, "Generator", Generator)


class Generator(torch.Generator):
    """Draws the CPU's numbers, whatever device it is for."""

    device = CPU

    def __new__(cls, device: Any = "cpu") -> Generator:
        generator = super().__new__(cls)
        generator.device = device_of(device)
        return generator

    def get_state(self) -> Tensor:
        """Of a size of its own, as a GPU's is."""
        state = super().get_state()
        return state if self.device == CPU else torch.cat([state, state[:8]])

    def set_state(self, state: Tensor) -> Generator:
        if state.device.type != "cpu" or len(state) != len(self.get_state()):
            raise RuntimeError("RNG state is wrong size")
        return super().set_state(state if self.device == CPU else state[:-8])
