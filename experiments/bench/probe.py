"""Measures our own runs: `modules=[.../probe.py] observers=[bench_probe]`, in any checkout of this repository.

It overrides only what is called once per epoch: a method that is called in every step could keep the agent from its fast path.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

from core.observers import Observer, Run
from core.registry import register_observer

Meter = importlib.import_module("meter").Meter  # the file beside this one, also where another checkout runs


@register_observer("bench_probe")
class Probe(Observer):
    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self.meter: Any = Meter() if os.environ.get("RANK", "0") == "0" else None

    def on_epoch(self, metrics: dict[str, float]) -> None:
        if self.meter is None:
            return
        if metrics["epoch"] == 1:
            self.meter.first_step(ago=metrics["frames"] / metrics["fps"])
        step, play, prepare, update = (metrics.get(f"time/{name}") for name in ("step", "play", "prepare", "update"))
        self.meter.epoch(step, play, update, prepare)
