"""Runs cells on Ray: one task per cell, which a worker carries through (experiments/worker.py). Ray schedules, and starts a cell again
elsewhere when its worker or node died; the cell then goes on from its checkpoint."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

from core import ray_local
from core.errors import UserError
from experiments import worker
from experiments.cells import Cell

TICK_SECONDS = 1.0


@dataclasses.dataclass(frozen=True)
class Resources:
    """Of one run; fractions are allowed, so that several share a CPU or GPU."""

    cpus: float = 1.0
    gpus: float = 0.0

    @property
    def threads(self) -> int:
        return max(1, int(self.cpus))


def run(
    cells: Sequence[Cell],
    resources: Resources,
    *,
    retries: int = 2,
    address: str | None = None,
    num_cpus: int | None = None,
    on_tick: Callable[[int], None] = lambda parallel: None,
    on_stop: Callable[[str], None] = print,
) -> dict[str, str]:
    """Runs what is given, in its order, and returns {path: 'done' | 'failed' | 'stopped' | 'taken'}.

    `on_tick(parallel)` is called every second with the number of runs that fit at a time. A failing run is tried `retries` times more; so
    often, too, is one whose worker died. On KeyboardInterrupt (Ctrl-C, SIGTERM) `on_stop` is told, the runs finish their epoch and save,
    then it goes on to the caller; a second one leaves at once. Raises UserError where `address` does not answer or no machine is large
    enough for a run.
    """
    given = {"address": address, "num_cpus": num_cpus}
    ray = ray_local.start({key: value for key, value in given.items() if value is not None})
    try:
        return _run(ray, cells, resources, retries, on_tick, on_stop)
    finally:
        ray_local.stop()


def _run(
    ray: Any, cells: Sequence[Cell], resources: Resources, retries: int, on_tick: Callable[[int], None], on_stop: Callable[[str], None]
) -> dict[str, str]:
    parallel = _parallel(ray, resources)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # after Ray's own handler, which exits at once
    task = ray.remote(num_cpus=resources.cpus, num_gpus=resources.gpus, max_retries=retries)(_portable())
    waiting = {task.options(name=cell.name).remote(_job(cell, resources, retries)): cell for cell in cells}
    ended: dict[str, str] = {}
    try:
        while waiting:
            on_tick(parallel)
            ready, _ = ray.wait(list(waiting), timeout=TICK_SECONDS)
            for ref in ready:
                cell = waiting.pop(ref)
                ended[str(cell.path)] = _outcome(ray, ref, cell)
        on_tick(parallel)
    except KeyboardInterrupt:
        on_stop("stopping: every run ends its epoch and saves (Ctrl-C once more: leave at once)")
        for ref in waiting:
            ray.cancel(ref)  # a KeyboardInterrupt in its worker
        while waiting:
            on_tick(parallel)
            ready, _ = ray.wait(list(waiting), timeout=TICK_SECONDS)
            for ref in ready:
                del waiting[ref]
        raise
    return ended


def _portable() -> Callable[[worker.Job], str]:
    """The task, as a function that carries this repository's place with it: a worker need not find our modules by itself."""
    root = str(worker.ROOT)

    def work(job: Any) -> str:
        if root not in sys.path:
            sys.path.insert(0, root)
        from experiments import worker

        return worker.run(worker.Job(**job))

    return work


def _job(cell: Cell, resources: Resources, retries: int) -> dict[str, Any]:
    passing = [f"++train.params.torch_threads={resources.threads}"]
    if cell.config["task"]["kind"] == "envpool":
        passing.append(f"++task.num_threads={resources.threads}")
    job = worker.Job(str(cell.path), cell.record(), (*passing, *cell.passing), retries, resources.threads, os.getcwd())
    return dataclasses.asdict(job)


def _outcome(ray: Any, ref: Any, cell: Cell) -> str:
    try:
        return ray.get(ref)
    except ray.exceptions.TaskCancelledError:
        return "stopped"
    except ray.exceptions.RayError as error:  # its worker died more often than it may, or could not be started
        worker.note(cell.path, cell.record(), error=f"{type(error).__name__}: {str(error).strip().splitlines()[0]}")
        return "failed"


def _parallel(ray: Any, resources: Resources) -> int:
    """How many runs fit at a time. Ray would wait for ever for a machine that is not there."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    asked = {"CPU": resources.cpus, "GPU": resources.gpus}
    fits = [min([int(node.get(name, 0) / need + 1e-9) for name, need in asked.items() if need] or [len(nodes)]) for node in nodes]
    if not any(fits):
        largest = ", ".join(f"{max(node.get(name, 0) for node in nodes):g} {name}s" for name in asked)
        raise UserError(
            f"a run asks for cpus_per_run={resources.cpus:g} and gpus_per_run={resources.gpus:g}, but the largest machine has {largest}"
        )
    return sum(fits)
