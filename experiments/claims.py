"""Who runs a cell: claim.json in its directory names host, process and the process's start, so that nothing runs twice."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from core.files import write_text

FILE = "claim.json"
STALE_SECONDS = 60.0  # a claim of another host counts for so long after it was last touched: its processes cannot be asked for
TOLERANCE = 2.0  # seconds between two readings of one process's start


def holder(folder: Path) -> dict[str, Any] | None:
    """{"host", "pid", "started"} of the live process that runs this cell; None where there is none."""
    file = folder / FILE
    try:
        claim = json.loads(file.read_text(encoding="utf-8"))
        alive = _lives(claim["pid"], claim["started"]) if claim["host"] == socket.gethostname() else _age(file) < STALE_SECONDS
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return claim if alive else None


def take(folder: Path) -> dict[str, Any] | None:
    """Claims the cell for this process. Returns None, or, where another live process has it, that one's claim."""
    with _alone(folder):
        other = holder(folder)
        if other is None:
            me = psutil.Process()
            claim = {"host": socket.gethostname(), "pid": me.pid, "started": me.create_time()}
            write_text(folder / FILE, json.dumps(claim) + "\n")
    return other


def keep(folder: Path) -> None:
    """Says that the claim still holds, to those on other hosts. At least twice in `STALE_SECONDS`."""
    with contextlib.suppress(OSError):
        os.utime(folder / FILE)


def drop(folder: Path) -> None:
    """Gives the cell free."""
    (folder / FILE).unlink(missing_ok=True)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time looks and takes."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network filesystems lock no directories
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _lives(pid: int, started: float) -> bool:
    try:
        process = psutil.Process(pid)
        return abs(process.create_time() - started) < TOLERANCE and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _age(file: Path) -> float:
    return time.time() - file.stat().st_mtime
