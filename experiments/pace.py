"""How long runs will take, from how long others took."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from typing import TYPE_CHECKING

from experiments.progress import Progress

if TYPE_CHECKING:
    from experiments.cells import Cell


class Pace:
    """Frames per second of whole runs, evaluation included once it is there: of the same task and algorithm where one was seen, else of the
    same task, else of any."""

    def __init__(self, rows: Sequence[tuple[Cell, Progress]]) -> None:
        self.seen: dict[tuple[str, ...], list[float]] = collections.defaultdict(list)
        finished = [row for row in rows if row[1].state == "done"]
        for cell, seen in [*finished, *(row for row in rows if row[1].state != "done")]:
            if not seen.frames or not seen.seconds:
                continue
            for group in _groups(cell):
                # a run that is done tells more than one that has just begun
                if seen.state == "done" or not any(one.state == "done" and group in _groups(other) for other, one in finished):
                    self.seen[group].append(seen.seconds / seen.frames)

    def left(self, cell: Cell, seen: Progress) -> float | None:
        """Seconds that this run still needs; None where nothing was measured. 0 for one that is done or failed too often."""
        if seen.state in ("done", "failed"):
            return 0.0
        for group in _groups(cell):
            if self.seen[group]:
                return max(cell.frames - seen.frames, 0) * sum(self.seen[group]) / len(self.seen[group])
        return None

    def total(self, rows: Sequence[tuple[Cell, Progress]], parallel: int) -> float | None:
        """Seconds for all of them, so many at a time."""
        left = [self.left(cell, seen) for cell, seen in rows]
        if any(one is None for one in left):
            return None
        known = [one for one in left if one]
        return max(sum(known) / max(parallel, 1), max(known)) if known else 0.0


def _groups(cell: Cell) -> list[tuple[str, ...]]:
    return [(cell.task, cell.algo), (cell.task,), ()]
