"""What a run says in the terminal: the resolved run at its start, the progress, the evaluation's table, where the files lie."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from core.errors import unknown
from core.observers import Observer, Run
from core.registry import register_observer
from core.run_dir import RunDir

PLAIN_INTERVAL = 5.0  # seconds between lines where stdout is no terminal
PROGRESS_MODES = ("auto", "bar", "lines")
STATISTICS = ("mean", "std", "median", "iqm", "min", "max")


def print_run_table(sections: dict[str, dict[str, str]], title: str = "run", console: Console | None = None) -> None:
    """The resolved run: {section: {name: value}}, e.g. {"policy": {"network": "actor_critic", "parameters": "5,381"}}."""
    table = Table(title=title, title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for section, rows in sections.items():
        for index, (name, value) in enumerate(rows.items()):
            table.add_row(escape(section) if index == 0 else "", escape(name), escape(str(value)))
    (console or Console()).print(table)


def batch_arithmetic(num_envs: int, num_agents: int, horizon_length: int, minibatch_size: int, mini_epochs: int) -> str:
    """'64 envs x 32 steps = 2048 rows = 4 minibatches x 512, 4 mini-epochs'."""
    agents = f" x {num_agents} agents" if num_agents > 1 else ""
    rows = num_envs * num_agents * horizon_length
    return (
        f"{num_envs} envs{agents} x {horizon_length} steps = {rows} rows = "
        f"{rows // minibatch_size} minibatches x {minibatch_size}, {mini_epochs} mini-epochs"
    )


def print_eval_table(result: dict[str, Any], console: Console | None = None) -> None:
    """eval.json's content as a table of returns and lengths."""
    console = console or Console()
    how = "deterministic" if result["deterministic"] else "sampled"
    table = Table(title=f"{result['episodes']} episodes, {how} actions", title_justify="left")
    table.add_column("", no_wrap=True)
    for name in STATISTICS:
        table.add_column(name, justify="right", no_wrap=True)
    for row in ("return", "length"):
        table.add_row(row, *(number(result[row][name], limit=1e5) for name in STATISTICS))
    console.print(table)
    for key, label in (("success_rate", "success rate"), ("scores_mean", "mean score")):
        if key in result:
            console.print(f"{label} {number(result[key])}", highlight=False)


def print_result(result: dict[str, Any], run_dir: RunDir, eval_command: str, console: Console | None = None) -> None:
    """The end of training: how it went, where the files lie, and the command that evaluates it, on a line of its own."""
    console = console or Console()
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    returns = f"{number(result.get('return_mean'))} at the end, best {number(result.get('return_best'))}"
    table.add_row("ended", escape(str(result["exit_reason"])))
    table.add_row("return", returns)
    table.add_row("frames", f"{result['frames']:,} in {duration(result['seconds'])}, {result['epochs']:,} epochs")
    for label, path in _files(run_dir):
        table.add_row(label, escape(str(path)))
    console.print(table)
    console.print("\nevaluate it:")
    console.print(eval_command, soft_wrap=True, markup=False, highlight=False)  # soft: a wrapped command cannot be pasted


@register_observer("console")
class Progress(Observer):
    """Frames, frames per second, return, best return and time left: two live lines in a terminal, else a plain line at most
    every few seconds, and always the first and the last.

    Args:
        mode: bar, lines, or auto: a bar in a terminal only.
    """

    console: Console
    live: Live | None = None

    def __init__(self, run: Run, *, mode: str = "auto") -> None:
        """Raises UserError for an unknown mode."""
        super().__init__(run)
        if mode not in PROGRESS_MODES:
            raise unknown("mode", mode, PROGRESS_MODES, "progress")
        self.mode = mode

    def on_train_start(self, agent: Any) -> None:
        self.console = Console(file=sys.stdout, force_terminal=True if self.mode == "bar" else None)
        self.started = time.monotonic()
        self.start: dict[str, float] | None = None  # counters after the first epoch: speed is measured from there on
        self.last: dict[str, float] = {}
        self.printed = -PLAIN_INTERVAL
        if self.console.is_terminal and self.mode != "lines":
            self.live = Live(console=self.console, refresh_per_second=4)
            self.live.start()

    def on_epoch(self, metrics: dict[str, float]) -> None:
        now = time.monotonic() - self.started
        if self.start is None:
            self.start = {**metrics, "now": now}
        self.last = {**metrics, "now": now}
        if self.live is not None:
            self.live.update(_live_view(self.run, self.last, self._seconds_left()))
        elif now - self.printed >= PLAIN_INTERVAL:
            self._print_line()

    def close(self) -> None:
        """Gives the terminal back. The last epoch's line is printed if it was not yet."""
        if self.live is not None:
            self.live.stop()
            self.live = None
        elif getattr(self, "last", None) and self.last["now"] != self.printed:
            self._print_line()

    def _print_line(self) -> None:
        self.printed = self.last["now"]
        line = "  ".join(_fields(self.run, self.last, self._seconds_left()))
        self.console.print(line, soft_wrap=True, markup=False, highlight=False)

    def _seconds_left(self) -> float | None:
        assert self.start is not None
        elapsed = self.last["now"] - self.start["now"]
        left = []
        for key, limit in (("frames", self.run.max_frames), ("epoch", self.run.max_epochs)):
            done = self.last[key] - self.start[key]
            if limit is not None and done > 0:
                left.append(max(limit - self.last[key], 0) * elapsed / done)
        return min(left, default=None)


def fraction_done(run: Run, metrics: dict[str, float]) -> float | None:
    """Of the budget that ends first; None without a budget."""
    limits = (("frames", run.max_frames), ("epoch", run.max_epochs))
    return max((min(metrics[key] / limit, 1.0) for key, limit in limits if limit), default=None)


def number(value: float | None, limit: float = 1e4) -> str:
    """'-151.2', '0.012', '12.3k' from `limit` on (at most seven characters with the default one); '-' for none."""
    if value is None:
        return "-"
    if value == 0 or 1 <= abs(value) < limit - 0.05:  # what would be rounded up to the limit has one digit too many
        return f"{value:.1f}"
    return f"{value:.2g}" if abs(value) < 1 else count(value)


def count(value: float) -> str:
    """'980', '12.3k', '8.00M', '1.20B': three digits and a unit."""
    value = float(f"{value:.3g}")  # first, so that 999,999 is 1.00M and not 1000k
    for limit, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:#.3g}".rstrip(".") + unit
    return f"{value:.0f}"


def duration(seconds: float | None) -> str:
    """'0:12:34', from a hundred hours on '4d 04h'; '-' for none."""
    if seconds is None:
        return "-"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours < 100 else f"{hours // 24}d {hours % 24:02d}h"


def _fields(run: Run, metrics: dict[str, float], seconds_left: float | None) -> list[str]:
    """Fits into 80 columns when joined by two blanks, whatever the values."""
    done = fraction_done(run, metrics)
    total = f"/{count(run.max_frames)}" if run.max_frames else ""
    fields = [f"{count(metrics['frames'])}{total} frames"]
    if done is not None:
        fields.append(f"{done:4.0%}")
    fields.append(f"{count(metrics.get('fps', 0))} fps")
    fields.append(f"return {number(metrics.get('return_mean'))}")
    fields.append(f"best {number(metrics.get('best_return'))}")
    if done is not None:
        fields.append(f"left {duration(seconds_left)}")
    return fields


def _live_view(run: Run, metrics: dict[str, float], seconds_left: float | None) -> Table:
    view = Table.grid(expand=True)
    done = fraction_done(run, metrics)
    if done is not None:
        view.add_row(ProgressBar(total=1.0, completed=done))
    view.add_row(Text("  ".join(_fields(run, metrics, seconds_left)), no_wrap=True, overflow="ellipsis"))
    return view


def _files(run_dir: RunDir) -> list[tuple[str, Path]]:
    """The files that a reader will open, as far as they are there."""
    picture = run_dir.path / "learning_curve.png"
    named = [("run", run_dir.path), ("best", run_dir.best), ("last", run_dir.last), ("curve", picture)]
    return [(label, path) for label, path in named if path.exists()]
