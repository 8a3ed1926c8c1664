"""The stop-watch inside every measured process. Standard library only: it must neither slow a side's start nor load another side's code."""

from __future__ import annotations

import atexit
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

OUT, STARTED = "BENCH_OUT", "BENCH_STARTED"  # environment variables: the file to write, and time.monotonic() when the process was started


class Meter:
    """Notes when the first step began and each epoch ended, and writes them at the process's end as JSON:

    {"start": s, "ends": [s per epoch], "step" | "play" | "prepare" | "update": [s per epoch], "peak_mib": MiB, "gpu_peak_mib": MiB}

    Times count from the start of the process; what a side does not say is null. `peak_mib` is the peak resident memory of the whole
    process, imports and end included; `gpu_peak_mib` is what its tensors took at most on a GPU.
    """

    def __init__(self) -> None:
        self.started = float(os.environ[STARTED])
        self.data: dict[str, Any] = {"start": None, "ends": [], "step": [], "play": [], "prepare": [], "update": []}
        atexit.register(self.write)

    def first_step(self, ago: float = 0.0) -> None:
        """The first training step began `ago` seconds before now. Later calls do nothing."""
        if self.data["start"] is None:
            self.data["start"] = time.monotonic() - ago - self.started

    def epoch(
        self, step: float | None = None, play: float | None = None, update: float | None = None, prepare: float | None = None
    ) -> None:
        """An epoch ends now. Seconds: in the environment, of the whole rollout, of the update, of what lies between those two."""
        torch = _torch_on_gpu()
        if torch:
            torch.cuda.synchronize()  # work that was queued in an epoch belongs to it
        self.data["ends"].append(time.monotonic() - self.started)
        for name, value in (("step", step), ("play", play), ("prepare", prepare), ("update", update)):
            self.data[name].append(value)

    def write(self) -> None:
        self.data["peak_mib"] = peak_mib()
        torch = _torch_on_gpu()
        self.data["gpu_peak_mib"] = torch.cuda.max_memory_allocated() / 2**20 if torch else None
        Path(os.environ[OUT]).write_text(json.dumps(self.data))


def _torch_on_gpu() -> Any:
    """torch where the side has loaded it and uses CUDA, else None."""
    torch = sys.modules.get("torch")
    return torch if torch is not None and torch.cuda.is_initialized() else None


def peak_mib() -> float | None:
    """Peak resident memory of this process since it was executed; getrusage would count its parent's before that. None off Linux."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024
