"""A quick start: imports torch and rl_games without what they pull in and a run does not use. train.py imports this first.

rl_games 1.6.5 decorates a test network with `torch.compile` and its SAC with torch's TensorBoard writer; torch loads its compiler,
torch._dynamo, when the first optimizer is made. That is two seconds and 150 MB, for nothing unless `torch_compile: true`.
Nothing is taken away: what is put off here is loaded at its first use. Where torch or rl_games look different from what this module
knows, it leaves them alone, and the start is merely slower.

The garbage collector rests meanwhile and then leaves what was imported alone (`gc.freeze`): modules live as long as the process.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

was_enabled = gc.isenabled()
gc.disable()

import torch  # noqa: E402  after the collector is off
from torch import optim  # noqa: E402  likewise

COMPILER = "torch._dynamo"


def put_off_compiler() -> None:
    """Lets optimizers work without torch's compiler until somebody else loads it (`torch.compile` does); from then on they are
    torch's own again. Safe to call twice."""
    for name in ("add_param_group", "zero_grad", "state_dict", "load_state_dict"):
        _put_off_disabling(getattr(optim.Optimizer, name))
    for cls in vars(optim).values():
        if isinstance(cls, type) and issubclass(cls, optim.Optimizer) and "step" in vars(cls):
            cls.step = _put_off_graph_breaks(cls.step)  # type: ignore[method-assign]  # that is what putting off means


def _put_off_disabling(method: Any) -> None:
    """`torch._disable_dynamo` hides a function from the compiler. It asks the function for `__dynamo_disable`, the hidden
    version, before it loads the compiler to make one: here it finds one that does so only where there is a compiler."""
    function = getattr(method, "__wrapped__", None)
    if function is None or hasattr(function, "__dynamo_disable"):
        return

    def plain(*args: Any, **kwargs: Any) -> Any:
        if COMPILER in sys.modules:
            delattr(function, "__dynamo_disable")
            return method(*args, **kwargs)
        return function(*args, **kwargs)

    setattr(function, "__dynamo_disable", plain)


def _put_off_graph_breaks(step: Any) -> Any:
    """Torch wraps `step` to set the gradient mode and to tell the compiler about it. Without a compiler the mode is enough."""
    inner = getattr(step, "__wrapped__", None)
    if inner is None or getattr(step, "__code__", None) is None or step.__code__.co_name != "_use_grad":
        return step

    @functools.wraps(step)
    def lean_step(self: optim.Optimizer, *args: Any, **kwargs: Any) -> Any:
        if COMPILER in sys.modules:
            return step(self, *args, **kwargs)
        with torch.set_grad_enabled(self.defaults["differentiable"]):
            return inner(self, *args, **kwargs)

    return lean_step


def compile_at_first_call(function: Callable[..., Any] | None = None, **options: Any) -> Any:
    """`torch.compile` as a decorator that compiles when the function is first called."""
    if function is None:
        return functools.partial(compile_at_first_call, **options)
    compiled: list[Any] = []

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not compiled:
            compiled.append(torch.compile(function, **options))
        return compiled[0](*args, **kwargs)

    return call


@contextlib.contextmanager
def late(module: str, *names: str) -> Iterator[None]:
    """While the block imports: `from module import name` gives a function that imports the module when it is called."""
    if module in sys.modules:
        yield
        return
    standin = types.ModuleType(module)
    for name in names:
        setattr(standin, name, _late_call(module, name))
    sys.modules[module] = standin
    try:
        yield
    finally:
        if sys.modules.get(module) is standin:
            del sys.modules[module]


def _late_call(module: str, name: str) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        return getattr(importlib.import_module(module), name)(*args, **kwargs)

    return call


def import_rl_games() -> None:
    """The modules of rl_games that would pull in much. Whoever imports them later, stock rl_games included, gets these."""
    real = torch.compile
    torch.compile = compile_at_first_call  # type: ignore[assignment]  # torch's has overloads
    try:
        importlib.import_module("rl_games.envs.test_network")
    finally:
        torch.compile = real
    with late("torch.utils.tensorboard", "SummaryWriter"):
        importlib.import_module("rl_games.algos_torch.sac_agent")


put_off_compiler()
import_rl_games()
gc.freeze()
if was_enabled:
    gc.enable()
