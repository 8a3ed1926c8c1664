"""What a suite's runs are doing: a live table in a terminal, plain lines elsewhere, and the summary of `--status`."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from core.console import count, duration, number
from experiments.cells import Cell
from experiments.pace import Pace
from experiments.progress import STATES, Progress

Row = tuple[Cell, Progress]
STYLES = {"done": "green", "running": "cyan", "interrupted": "yellow", "failed": "red", "left": "dim"}
ORDER = ("running", "failed", "interrupted", "done", "left")  # what a table that is too long shows first
LINES_SECONDS = 60.0  # between two plain lines of one run


class Board:
    """Shows cells while they run: call `show(parallel)` as often as once a second, and close it (`with`).

    Args:
        cells: all of the suite's, also those that are done.
        retries: as the engine's.
        console: where to.
    """

    def __init__(self, cells: Sequence[Cell], retries: int, console: Console | None = None) -> None:
        self.cells, self.retries = cells, retries
        self.console = console or Console()
        self.live = Live(console=self.console, refresh_per_second=2) if self.console.is_terminal else None
        self.finished: dict[str, Progress] = {}  # read once
        self.told: dict[str, tuple[str, float]] = {}  # path: the state last printed, and when

    def __enter__(self) -> Board:
        if self.live is not None:
            self.live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.live is not None:
            self.live.stop()

    def show(self, parallel: int) -> None:
        rows = self._rows()
        if self.live is not None:
            self.live.update(view(rows, parallel, self.console.height))
        else:
            self._lines(rows)

    def say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _rows(self) -> list[Row]:
        rows = []
        for cell in self.cells:
            seen = self.finished.get(str(cell.path)) or cell.look(self.retries)
            if seen.state == "done":
                self.finished[str(cell.path)] = seen
            rows.append((cell, seen))
        return rows

    def _lines(self, rows: list[Row]) -> None:
        pace = Pace(rows)
        now = time.monotonic()
        for cell, seen in rows:
            state, when = self.told.get(str(cell.path), ("left", now))
            due = seen.state == "running" and now - when >= LINES_SECONDS
            if seen.state != state or due:
                self.told[str(cell.path)] = (seen.state, now)
                self.say("  ".join([cell.name, _phase(cell, seen), *_fields(cell, seen, pace)]))


def view(rows: Sequence[Row], parallel: int, height: int) -> Group:
    """The live table, cut to a terminal of that height, over a line with the counts."""
    pace = Pace(rows)
    table = Table(*("task", "algo", "seed", "state"), box=None, pad_edge=False, header_style="bold")
    for name in ("frames", "return", "fps", "time left"):
        table.add_column(name, justify="right")
    shown = sorted(rows, key=lambda row: ORDER.index(row[1].state))[: max(height - 4, 3)]
    for cell, seen in shown:
        state = Text(_phase(cell, seen), STYLES[seen.state])
        table.add_row(cell.task, cell.algo, str(cell.seed), state, *_cells(cell, seen, pace))
    hidden = f"   ({len(rows) - len(shown)} more rows)" if len(shown) < len(rows) else ""
    return Group(table, Text(totals(rows, pace, parallel) + hidden, "bold"))


def status(rows: Sequence[Row], parallel: int | None = None) -> Group:
    """What `--status` shows: counts by task and algorithm, the runs that are running, and why others failed. `parallel`: runs at a time;
    None: as many as run now, or one for each CPU."""
    pace = Pace(rows)
    table = Table(*("task", "algo"), box=None, pad_edge=False, header_style="bold")
    for name in (*STATES, "time left"):
        table.add_column(name, justify="right")
    for task, algo in dict.fromkeys((cell.task, cell.algo) for cell, _ in rows):
        group = [row for row in rows if (row[0].task, row[0].algo) == (task, algo)]
        counts = [sum(seen.state == state for _, seen in group) for state in STATES]
        table.add_row(task, algo, *(str(n or "-") for n in counts), duration(pace.total(group, 1) or None))
    parts: list[Table | Text] = [table]
    for cell, seen in rows:
        if seen.state == "running":
            where = f"on {seen.holder['host']}, process {seen.holder['pid']}" if seen.holder else ""
            parts.append(Text("  ".join(["running:", cell.name, *_fields(cell, seen, pace), where])))
        if seen.state == "failed":
            parts.append(Text(f"{times(len(seen.errors))}: {cell.name}: {last_line(seen)}  ({cell.path / 'train.log'})", "red"))
        if seen.state == "interrupted" and seen.errors:
            parts.append(Text(f"interrupted after an error: {cell.name}: {last_line(seen)}  ({cell.path / 'train.log'})", "yellow"))
    now = sum(seen.state == "running" for _, seen in rows)
    parts.append(Text(totals(rows, pace, parallel or now or os.cpu_count() or 1), "bold"))
    return Group(*parts)


def totals(rows: Sequence[Row], pace: Pace, parallel: int) -> str:
    """'12 done, 2 running, 1 failed, 5 left; 0:20:00 to go with 2 at a time'."""
    counts = {state: sum(seen.state == state for _, seen in rows) for state in STATES}
    text = ", ".join(f"{n} {state}" for state, n in counts.items() if n)
    left = pace.total(rows, parallel)
    if left is None:
        return f"{text}; time left: not known before a first run"
    return f"{text}; about {duration(left)} to go with {parallel} at a time" if left else text


def times(errors: int) -> str:
    return "failed once" if errors == 1 else f"failed {errors} times"


def last_line(seen: Progress) -> str:
    return seen.errors[-1].splitlines()[-1] if seen.errors else ""


def _phase(cell: Cell, seen: Progress) -> str:
    return "evaluating" if seen.state == "running" and seen.frames >= cell.frames else seen.state


def _cells(cell: Cell, seen: Progress, pace: Pace) -> list[str]:
    if seen.state == "failed":
        return [escape(last_line(seen)), "", "", ""]
    left = "-" if seen.state == "done" else duration(pace.left(cell, seen))
    frames = f"{count(seen.frames)}/{count(cell.frames)}" if seen.frames else f"-/{count(cell.frames)}"
    return [frames, number(seen.return_mean), count(seen.fps) if seen.fps else "-", left]


def _fields(cell: Cell, seen: Progress, pace: Pace) -> list[str]:
    if seen.state == "failed":
        return [last_line(seen)]
    frames, value, fps, left = _cells(cell, seen, pace)
    return [f"{frames} frames", f"return {value}", f"{fps} fps", *([f"left {left}"] if left != "-" else [])]
