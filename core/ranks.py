"""Several processes, one run: what `torchrun --nproc_per_node=K train.py ...` starts. docs/scale.md says what is kept equal.

`Ranks` is one process alone: every method gives back what it was given, and costs nothing. `ProcessRanks` are K processes.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from core.errors import UserError
from core.rank_watch import RankWatch

JOIN_SECONDS = 300  # how long a rank waits for the others to start
CALL_SECONDS = 1800  # how long a rank waits for living others; the first rank may be playing an evaluation


class RankLost(UserError):
    """Another rank ended, so this one cannot go on."""


class Ranks:
    """The processes of a run, seen from one of them. This class: the only one.

    `rank` counts from 0 over all machines, `local_rank` on this machine, `world` is how many there are. Every method but `close`
    must be called on all ranks, in the same order: a rank that calls alone waits for the others.
    """

    rank = 0
    local_rank = 0
    world = 1

    @property
    def is_main(self) -> bool:
        """Whether this rank writes files, prints, draws and evaluates."""
        return self.rank == 0

    def sum(self, value: Any) -> Any:
        """The sum of a number over the ranks."""
        return value

    def mean(self, values: Tensor) -> Tensor:
        """The mean of a tensor of equal shape over the ranks, any shape."""
        return values

    def mean_(self, values: Tensor) -> Tensor:
        """`mean` in place."""
        return values

    def moments(self, x: Tensor, axis: Iterable[int] = (0,)) -> tuple[Tensor, Tensor, Tensor | int]:
        """Mean and biased variance over `axis` of all ranks' rows as if they were one tensor, and the number of rows x.shape[0] of all
        ranks together. x: (L, ...) floats; L may differ between ranks and may be 0."""
        axis = list(axis)
        if not len(x):  # their mean would be NaN, and stay NaN times zero
            return x.sum(axis), x.sum(axis), 0
        return x.mean(axis), x.var(axis, unbiased=False), x.shape[0]

    def average_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Each gradient becomes its mean over the ranks, in one message. A parameter without gradient counts as zero where
        another rank has one."""

    def broadcast_(self, tensors: Iterable[Tensor]) -> None:
        """Every tensor becomes rank 0's."""

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value (anything that pickles; tensors on the CPU), by rank."""
        return [value]

    def of_main(self, value: Any) -> Any:
        """Rank 0's value."""
        return value

    def any(self, flag: bool) -> bool:
        """Whether it is true on any rank."""
        return bool(flag)

    def first(self, value: Any) -> Any:
        """The value of the first rank that has one, or None."""
        return value

    def agree(self, cfg: dict[str, Any]) -> None:
        """Raises UserError on every rank, naming key and values, where a rank's config is not rank 0's."""

    def explain(self, error: BaseException) -> BaseException:
        """What ended this rank: the error itself, or RankLost naming the rank that ended first. Tells the others."""
        return error

    def on_lost(self, told: Callable[[str], None]) -> None:
        """Called with the reason, from another thread, before a rank is ended that hangs in a call to one that is gone."""

    def close(self) -> None:
        """Waits until every rank has come here, and leaves."""

    def abandon(self) -> None:
        """Leaves without waiting, after an error."""

    def __deepcopy__(self, memo: Any) -> Ranks:
        return self  # a copied normalizer still belongs to the same run


ALONE = Ranks()


class ProcessRanks(Ranks):
    """One of K processes, as torchrun's variables (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT) say.

    CPU tensors travel by gloo, CUDA tensors by nccl. Raises UserError where the others do not come within `JOIN_SECONDS`.
    """

    def __init__(self) -> None:
        self.rank, self.world = number("RANK"), number("WORLD_SIZE", least=1)
        self.local_rank = number("LOCAL_RANK", default=self.rank)
        if self.rank >= self.world:
            raise UserError(f"RANK is {self.rank}, but WORLD_SIZE is {self.world}: ranks count from 0. Start with torchrun (docs/scale.md)")
        patience = datetime.timedelta(seconds=JOIN_SECONDS)
        nccl = torch.cuda.is_available() and dist.is_nccl_available()
        try:
            store = next(iter(dist.rendezvous("env://", self.rank, self.world, timeout=patience)))[0]
            self.watch = RankWatch(store.clone(), self.rank, self.world)
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if nccl else "gloo",
                store=dist.PrefixStore(self.watch.prefix, store),
                rank=self.rank,
                world_size=self.world,
                timeout=datetime.timedelta(seconds=CALL_SECONDS),
            )
            # what is decided or told goes over gloo: it must not wait for a GPU
            self.control: Any = dist.new_group(backend="gloo") if nccl else dist.group.WORLD
        except (RuntimeError, ValueError) as error:
            place = f"{os.environ.get('MASTER_ADDR', '(MASTER_ADDR is not set)')}:{os.environ.get('MASTER_PORT', '?')}"
            raise UserError(f"rank {self.rank} of {self.world} could not join the others at {place}: {_first_line(error)}") from error
        self.watch.start()
        self.fate: BaseException | None = None

    def sum(self, value: Any) -> Any:
        total = torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else torch.int64)
        dist.all_reduce(total, group=self.control)
        return type(value)(total.item())

    def mean(self, values: Tensor) -> Tensor:
        return self.mean_(values.detach().clone())

    def mean_(self, values: Tensor) -> Tensor:
        dist.all_reduce(values)
        return values.div_(self.world)

    def moments(self, x: Tensor, axis: Iterable[int] = (0,)) -> tuple[Tensor, Tensor, Tensor | int]:
        mean, var, count = super().moments(x, axis)
        parts = (torch.full((1,), float(count), device=x.device), mean.flatten(), var.flatten())
        own = torch.cat([part.double() for part in parts])
        every = [torch.empty_like(own) for _ in range(self.world)]
        dist.all_gather(every, own)
        counts, means, variances = torch.stack(every).split([1, mean.numel(), mean.numel()], dim=1)
        total = counts.sum()
        whole = (counts * means).sum(0) / total
        spread = (counts * (variances + (means - whole) ** 2)).sum(0) / total
        return whole.view_as(mean), spread.view_as(mean), total

    def average_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        parameters = list(parameters)
        if not parameters:
            return
        here = [p.grad is not None for p in parameters]
        parts = [p.grad.flatten() if p.grad is not None else torch.zeros_like(p).flatten() for p in parameters]
        # the flags say which parameters have a gradient anywhere: without one anywhere, the optimizer must go on skipping it
        flags = torch.tensor(here, dtype=parts[0].dtype).to(parts[0].device, non_blocking=True)
        flat = self.mean_(torch.cat([*parts, flags]))
        averaged = flat.split([*(p.numel() for p in parameters), len(parameters)])
        anywhere = [True] * len(here) if all(here) else (averaged[-1] > 0).tolist()
        for parameter, gradient, has in zip(parameters, averaged, anywhere, strict=False):
            if parameter.grad is not None:
                parameter.grad.copy_(gradient.view_as(parameter))
            elif has:
                parameter.grad = gradient.view_as(parameter).clone()

    def broadcast_(self, tensors: Iterable[Tensor]) -> None:
        with torch.no_grad():
            for tensor in tensors:
                whole = tensor.contiguous()
                dist.broadcast(whole, 0)
                if whole is not tensor:
                    tensor.copy_(whole)

    def gather(self, value: Any) -> list[Any]:
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value, group=self.control)
        return values

    def of_main(self, value: Any) -> Any:
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.control)
        return box[0]

    def any(self, flag: bool) -> bool:
        found = torch.tensor(int(flag))
        dist.all_reduce(found, dist.ReduceOp.MAX, group=self.control)
        return bool(found.item())

    def first(self, value: Any) -> Any:
        return next((one for one in self.gather(value) if one is not None), None)

    def agree(self, cfg: dict[str, Any]) -> None:
        configs = self.gather(dict(_leaves(cfg)))
        missing = object()
        told = []
        for rank, config in enumerate(configs):
            for key in sorted({*configs[0], *config}):
                ours, theirs = configs[0].get(key, missing), config.get(key, missing)
                if ours != theirs:
                    values = ["not there" if value is missing else repr(value) for value in (ours, theirs)]
                    told.append(f"{key} is {values[0]} on rank 0 and {values[1]} on rank {rank}")
        if told:
            more = f"\n  and {len(told) - 8} more" if len(told) > 8 else ""
            raise UserError("the ranks disagree on the config. Start all of them with the same one:\n  " + "\n  ".join(told[:8]) + more)

    def explain(self, error: BaseException) -> BaseException:
        if self.fate is None:
            self.watch.leaving = True
            ended = self.watch.who_ended() if _is_lost_connection(error) else None
            if ended is None:
                text, kind = _first_line(error), type(error).__name__
                self.watch.tell_failure(text if isinstance(error, UserError) or not str(error) else f"{kind}: {text}")
                self.fate = error
            else:
                self.fate = RankLost(f"rank {self.rank} stops: {ended}")
        return self.fate

    def on_lost(self, told: Callable[[str], None]) -> None:
        self.watch.on_lost = told

    def close(self) -> None:
        dist.barrier(group=self.control)
        self.watch.leaving = True
        self.watch.stop()
        dist.destroy_process_group()

    def abandon(self) -> None:
        if self.control is dist.group.WORLD:  # gloo alone: the others notice at once. nccl may wait here for those who are gone
            self.watch.stop()
            self.control = None  # the last hold on the connections, which close now
            dist.destroy_process_group()


@contextlib.contextmanager
def joined() -> Iterator[Ranks]:
    """The ranks of this run, from torchrun's variables; one alone without them. An error that leaves the block ends every rank:
    where it is another rank's doing, RankLost says whose."""
    ranks = ProcessRanks() if world_size() > 1 else Ranks()
    try:
        yield ranks
        ranks.close()
    except BaseException as error:
        told = ranks.explain(error)
        ranks.abandon()
        if told is not error:
            raise told from error
        raise


# ---- before the ranks have met ------------------------------------------------------------------------------------------------


def world_size() -> int:
    """How many processes train together: WORLD_SIZE, or 1."""
    return number("WORLD_SIZE", default=1, least=1)


def local_world_size() -> int:
    """How many of them run on this machine: LOCAL_WORLD_SIZE, else all."""
    world = world_size()
    return number("LOCAL_WORLD_SIZE", default=world, least=1) if world > 1 else 1


def local_device(asked: str, in_train: str | None, gpus: int) -> str | None:
    """The device of this rank where several run on this machine: cuda:LOCAL_RANK, or the CPU. None: only one runs here.

    Raises UserError where there are more ranks than GPUs, or a single GPU is named for all.
    """
    here = local_world_size()
    if here == 1 or asked == "cpu" or (asked == "auto" and (in_train == "cpu" or not gpus)):
        return None if here == 1 else "cpu"
    if asked not in ("auto", "cuda"):
        raise UserError(f"device is '{asked}', but {here} ranks run on this machine, each on a GPU of its own: use device=cuda or cpu")
    if gpus < here:
        names = ", ".join(f"cuda:{n}" for n in range(gpus)) or "no CUDA device"
        raise UserError(
            f"{here} ranks run on this machine, which has {names}: "
            + (f"start at most {gpus} here (--nproc_per_node={gpus}), or use device=cpu" if gpus else "use device=cpu")
        )
    return f"cuda:{number('LOCAL_RANK', default=0)}"


def number(variable: str, default: int | None = None, least: int = 0) -> int:
    """An environment variable as an integer. Raises UserError naming it where it is missing (and has no default) or is none."""
    text = os.environ.get(variable, "")
    if not text and default is not None:
        return default
    if not text.isdecimal() or int(text) < least:
        raise UserError(f"environment variable {variable} is '{text}', not a number from {least} up: start several ranks with torchrun")
    return int(text)


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def _is_lost_connection(error: BaseException) -> bool:
    """Whether a collective call failed, rather than anything of this rank's own."""
    if isinstance(error, dist.DistError):
        return True
    text = str(error).lower()
    signs = ("gloo", "nccl", "connection closed by peer", "connection reset by peer", "broken pipe")
    return isinstance(error, RuntimeError) and any(sign in text for sign in signs)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:400] if lines else type(error).__name__
