"""What the operating system knows of this process: how long it has lived, and the most memory that it has had."""

from __future__ import annotations

import ctypes
import functools
import os
import sys
import time
from pathlib import Path
from typing import Any

import psutil


def age() -> float:
    """Seconds since this process was started: the interpreter and every import are in it."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        try:
            fields = Path("/proc/self/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
        except (OSError, IndexError, ValueError):
            pass
    return max(0.0, time.time() - psutil.Process().create_time())  # elsewhere; may be off by a second


def peak_memory_mb() -> float | None:
    """The largest resident memory so far, in units of 2**20 bytes. None where the system does not tell."""
    try:  # not getrusage first: that also counts what the process had before it became this program
        for line in Path("/proc/self/status").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    try:
        import resource  # not on Windows
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)


class FirstStep:
    """Notes when an environment takes its first step: `seconds` of the process's life, None before, and in a process that has
    trained before, whose life says nothing about the start. Costs nothing afterwards."""

    seconds: float | None = None

    def __init__(self, env: Any) -> None:
        if not _another_run():
            step = env.step

            @functools.wraps(step)
            def first(*args: Any, **kwargs: Any) -> Any:
                if env.__dict__.pop("step", None) is not None:
                    self.seconds = age()
                return step(*args, **kwargs)

            env.step = first


_runs = 0


def _another_run() -> bool:
    global _runs
    _runs += 1
    return _runs > 1


M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def keep_freed_memory() -> bool:
    """Asks glibc to keep large blocks that were freed. By default it hands every block above 32 MB back to the system, and the next one
    comes as pages that must be zeroed first: with pictures that was a quarter of an epoch. False where there is no glibc."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, 2**31 - 1))
