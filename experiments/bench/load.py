"""Whether the machine was otherwise idle: two threads of a rollout that must share a core with a stranger can be thirty times slower."""

from __future__ import annotations

import os
import resource
import time

import psutil

TOLERATED = 0.1  # of the machine's cores


class Strangers:
    """Measures, from its making on, the processor time of all processes but our own finished children."""

    def __init__(self) -> None:
        self._before = self._now()

    def share(self) -> float:
        """Of the machine's cores, 0 to 1: what processes other than our finished children and this one took since the start."""
        wall, busy, own = (now - before for now, before in zip(self._now(), self._before, strict=True))
        return max(0.0, (busy - own) / (wall * (os.cpu_count() or 1))) if wall > 0 else 0.0

    @staticmethod
    def _now() -> tuple[float, float, float]:
        """Seconds: wall-clock, all cores' busy time, our children's and our own processor time."""
        times = psutil.cpu_times()
        busy = sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
        used = [resource.getrusage(who) for who in (resource.RUSAGE_CHILDREN, resource.RUSAGE_SELF)]
        return time.monotonic(), busy, sum(u.ru_utime + u.ru_stime for u in used)


def warnings(name: str, rounds: list[dict]) -> list[str]:
    """A sentence per run in which strangers took more than is tolerated."""
    return [
        f"{name}, round {number}, {side}: other processes took {figures['strangers']:.0%} of the machine; its figures cannot be trusted"
        for number, members in enumerate(rounds, 1)
        for side, figures in members.items()
        if (figures.get("strangers") or 0.0) > TOLERATED
    ]
