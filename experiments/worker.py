"""What a Ray worker does for one cell: attempts, each in a process of its own, until it is done, failed too often or stopped.

Imports nothing large: a worker only waits, and there is one for every run at a time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.files import write_text
from experiments import claims, leash, progress

ROOT = Path(__file__).resolve().parents[1]
STOPPED = 130  # exit status of an attempt that was asked to stop, as after Ctrl-C
TAKEN = 75  # and of one that found the cell claimed
BEAT_SECONDS = 5.0
GRACE_SECONDS = 600.0  # for an epoch to end and to be saved, when asked to stop
DYING_SECONDS = 10.0  # at most, for a process whose parent was killed
ERROR_LINES = 12  # of the log, kept of an attempt that failed


@dataclasses.dataclass(frozen=True)
class Job:
    """A cell as it travels to a worker.

    record: cell.json without attempts and errors; passing: train.py's words that change no result; retries: further attempts after the
    first that failed, over all invocations; threads: of a run; cwd: where modules are looked for.
    """

    path: str
    record: dict[str, Any]
    passing: tuple[str, ...]
    retries: int
    threads: int
    cwd: str


def run(job: Job) -> str:
    """'done', 'failed', 'stopped' or 'taken' (by another process). KeyboardInterrupt lets the run save and end."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # inherited from a command in a shell's background: Ray could not interrupt
        signal.signal(signal.SIGINT, signal.default_int_handler)
    folder = Path(job.path)
    while True:
        _outlast(folder)
        state = progress.look(folder, job.record["evaluation"], job.retries).state
        if state in ("done", "failed"):
            return state
        if state == "running":
            return "taken"
        status, error = _attempt(job, folder)
        if status in (STOPPED, TAKEN):
            return "stopped" if status == STOPPED else "taken"
        if status != 0:
            note(folder, job.record, error=error, refused=status == UserError.exit_status)


def _outlast(folder: Path) -> None:
    """Where this cell's last worker or node has just died, its claim may not be cold yet."""
    started = time.monotonic()
    while (other := claims.holder(folder)) is not None:
        here = other["host"] == socket.gethostname()
        if time.monotonic() - started > (DYING_SECONDS if here else claims.STALE_SECONDS + DYING_SECONDS):
            return
        time.sleep(0.2)


def note(folder: Path, record: dict[str, Any], *, attempt: int = 0, error: str | None = None, refused: bool = False) -> None:
    """Writes cell.json with so many more attempts and, where one failed, its last lines. `refused`: by a UserError, which another attempt
    would meet again."""
    old = progress.read(folder / "cell.json") or {}
    errors = [*old.get("errors", []), *([] if error is None else [error])]
    _write(folder, {**record, "attempts": old.get("attempts", 0) + attempt, "errors": errors, "refused": refused})


def forgive(folder: Path) -> None:
    """Forgets the errors in cell.json, so that the cell is tried again."""
    _write(folder, {**(progress.read(folder / "cell.json") or {}), "errors": [], "refused": False})


def _write(folder: Path, cell: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "cell.json", json.dumps(cell, indent=2) + "\n")


def _attempt(job: Job, folder: Path) -> tuple[int, str]:
    """Exit status and last lines of one attempt. Negative: the signal that ended it."""
    note(folder, job.record, attempt=1)
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    env = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": str(job.threads)}
    argv = [sys.executable, "-m", "experiments.attempt", str(folder), *job.passing]
    with (folder / "train.log").open("ab") as log:
        before = log.tell()
        process = leash.start(argv, log, env, job.cwd if Path(job.cwd).is_dir() else None)
        try:
            _wait(process, folder)
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_SECONDS)
            return STOPPED, ""
        finally:
            leash.end(process)
    with (folder / "train.log").open("rb") as written:
        written.seek(before)
        return process.returncode, _last_lines(written.read(), process.returncode)


def _wait(process: subprocess.Popen[bytes], folder: Path) -> None:
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(BEAT_SECONDS)
            return
        claims.keep(folder)


def _last_lines(log: bytes, status: int) -> str:
    lines = [line.rstrip() for line in log.decode(errors="replace").splitlines() if line.strip()][-ERROR_LINES:]
    if status < 0:
        lines.append(f"killed by {signal.Signals(-status).name}")
    return "\n".join(lines) or f"exit status {status}"
