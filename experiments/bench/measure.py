"""Runs the sides, each in a process of its own, and reads what its meter wrote."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from core.errors import UserError
from experiments.bench import meter
from experiments.bench.load import Strangers
from experiments.bench.sides import ROOT, Side
from experiments.bench.workloads import Workload, seeded

TIMEOUT = 900  # seconds for one run


def run(side: Side, workload: Workload, seed: int, folder: Path, epochs: int | None = None) -> dict[str, Any]:
    """One run of one side: `read`'s figures, and "strangers": the share of the machine that other processes took, null where unknown.

    Raises UserError with the end of its log where it fails.
    """
    folder.mkdir(parents=True)
    measured = epochs or workload.measured(side.ours)
    params = seeded(workload, seed, side.ours, measured)
    command, cwd = side.command(workload, params, folder)
    strangers = Strangers()
    figures = read(execute(command, cwd, folder), workload.rows(side.ours), workload.warmup)
    figures["strangers"] = strangers.share() if workload.own_processes else None
    return figures


def round_of(workload: Workload, members: list[Side], number: int, folder: Path, epochs: int | None = None) -> dict[str, dict[str, Any]]:
    """Every side once, then the environment alone as "raw" where it can be: {side: figures}. The round's number is the seed."""
    figures = {}
    for side in members:
        figures[side.name] = run(side, workload, number, folder / side.name.replace("/", "-"), epochs)
    if workload.in_envpool:
        figures["raw"] = {"fps": raw(workload)}
    return figures


def execute(command: list[str], cwd: Path, folder: Path) -> dict[str, Any]:
    """Starts `command`, waits for it, and returns its meter's data. Its output goes to `folder/log.txt`."""
    out, log = folder / "meter.json", folder / "log.txt"
    environment = {**os.environ, meter.OUT: str(out), "PYTHONUNBUFFERED": "1"}
    with log.open("w") as file:
        environment[meter.STARTED] = repr(time.monotonic())
        try:
            code = subprocess.run(command, cwd=cwd, env=environment, stdout=file, stderr=file, timeout=TIMEOUT, check=False).returncode
        except subprocess.TimeoutExpired:
            raise UserError(f"a run took more than {TIMEOUT} s and was stopped: {' '.join(command)}") from None
    if code or not out.exists():
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        raise UserError(f"a run ended with status {code}: {' '.join(command)}\n{tail}\nIts whole output: {log}")
    return json.loads(out.read_text())


def read(data: dict[str, Any], rows: int, warmup: int) -> dict[str, Any]:
    """From a meter's data to figures, warm-up epochs left out.

    fps: rows (environment steps, reset rows included) per second. start, first_epoch, peak_mib: as the meter has them.
    seconds: {"environment", "policy", "update", "bookkeeping"} per epoch; null where the side does not say.
    """
    ends = data["ends"]
    if len(ends) <= warmup:
        raise UserError(f"a run made {len(ends)} epochs, but its warm-up alone takes {warmup}")
    begin = ends[warmup - 1] if warmup else data["start"]
    wall = ends[-1] - begin
    epochs = len(ends) - warmup
    mean = {name: _mean(data[name][warmup:]) for name in ("step", "play", "prepare", "update")}
    return {
        "fps": rows * epochs / wall,
        "epochs": epochs,
        "start": data["start"],
        "first_epoch": ends[0],
        "peak_mib": data["peak_mib"],
        "gpu_peak_mib": data.get("gpu_peak_mib"),
        "seconds": split(wall / epochs, **mean),
    }


def split(epoch: float, step: float | None, play: float | None, prepare: float | None, update: float | None) -> dict[str, float] | None:
    """An epoch's seconds by kind of work. The preparation of the batch belongs to the update; what nobody claims is bookkeeping."""
    if step is None or play is None or update is None:
        return None
    learning = update + (prepare or 0.0)
    return {"environment": step, "policy": play - step, "update": learning, "bookkeeping": max(0.0, epoch - play - learning)}


def raw(workload: Workload, seconds: float = 2.0) -> float:
    """Frames per second of the workload's environment alone, random actions, in a process of its own."""
    arguments = [workload.env_id, str(workload.config["num_actors"]), str(seconds), json.dumps(workload.env_options)]
    command = [sys.executable, "-m", "experiments.bench.raw", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    if done.returncode:
        raise UserError(f"{' '.join(command)} ended with status {done.returncode}:\n{done.stderr[-2000:]}")
    return float(json.loads(done.stdout.splitlines()[-1]))


def _mean(values: list[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None
