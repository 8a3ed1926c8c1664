"""A child process that cannot outlive its parent: the child reads a pipe that only the parent holds open, and ends when it closes.

A parent killed with SIGKILL cleans up nothing, and its children go on; here the kernel closes the pipe, and the child ends itself and
everything that it started.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from typing import IO


def start(argv: Sequence[str], log: IO[bytes], env: Mapping[str, str], cwd: str | None = None) -> subprocess.Popen[bytes]:
    """Starts a program that calls `hold` first, in a process group of its own (so that a Ctrl-C of the terminal does not reach it); stdout
    and stderr go to `log`."""
    return subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, env=env, cwd=cwd, start_new_session=True)


def end(process: subprocess.Popen[bytes]) -> None:
    """Ends the child and what it started, if it has not ended."""
    if process.stdin is not None:
        process.stdin.close()
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def hold() -> None:
    """In the child: ends this process group with SIGKILL as soon as the parent is gone. Ctrl-C works from here on, even where the parent
    had it blocked, as Ray's workers have."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
    pipe = os.dup(0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)  # what the program starts must not read the pipe
    os.close(nothing)
    threading.Thread(target=_wait, args=(pipe,), name="leash", daemon=True).start()


def _wait(pipe: int) -> None:
    while os.read(pipe, 1):
        pass
    os.killpg(os.getpgid(0), signal.SIGKILL)
