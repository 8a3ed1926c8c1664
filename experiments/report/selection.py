"""Which runs a figure stands on, as matrices for the statistics, and what must be said beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from core.errors import UserError
from experiments import stats
from experiments.report.differences import differing
from experiments.report.options import Options
from experiments.report.panels import Look
from experiments.report.words import ENOUGH, count, join, plural
from experiments.results import Reference, Results, RunResult


class Selection:
    """Results as the options want them looked at."""

    def __init__(self, results: Results, options: Options) -> None:
        self.results, self.options = results, options
        self.algos, self.tasks = results.algos, results.tasks
        self.looks = {algo: Look(number) for number, algo in enumerate(self.algos)}
        self.shared = [task for task in self.tasks if all(self.scores(algo, task) for algo in self.algos)]
        """Tasks on which every algorithm has a score: what aggregates and comparisons are over."""
        self.normalised = [task for task in self.shared if task in results.references]
        """Those of them that have reference scores."""

    def check(self) -> None:
        """Raises UserError where there is no score at all."""
        runs = [run for members in self.results.runs.values() for run in members]
        if not any(self.score(run) is not None for run in runs):
            raise UserError(
                f"no run of suite '{self.results.suite}' ({plural(len(runs), 'run')}) is finished and has a score '{self.options.score}'. "
                f"How far they are: python -m experiments.suite suite={self.options.suite} algos=[{','.join(self.algos)}] --status"
            )

    # ---- runs --------------------------------------------------------------------------------------------------------

    def score(self, run: RunResult) -> float | None:
        return run.score(self.options.checkpoint, self.options.mode)

    def scores(self, algo: str, task: str) -> list[float]:
        """Of the runs that have one, by seed."""
        found = [self.score(run) for run in self.results.of(algo, task)]
        return [score for score in found if score is not None]

    def matrix(self, algo: str, tasks: Sequence[str], normalised: bool) -> np.ndarray:
        """(runs, tasks): as many runs of each task as the one with the fewest has, the first by seed."""
        columns = []
        for task in tasks:
            column = np.array(self.scores(algo, task))
            columns.append(self.reference(task).normalise(column) if normalised else column)
        runs = min(len(column) for column in columns)
        return np.stack([column[:runs] for column in columns], axis=1)

    def reference(self, task: str) -> Reference:
        return self.results.references[task]

    # ---- curves ------------------------------------------------------------------------------------------------------

    def finished(self, algo: str, task: str) -> list[RunResult]:
        return [run for run in self.results.of(algo, task) if run.done]

    def over_frames(self, algo: str, tasks: Sequence[str], normalised: bool, share: bool = False) -> stats.Band | None:
        """The training return over frames, or over the share of the budget in percent."""
        grid = self.finished(algo, tasks[0])[0].curve[0] if self.finished(algo, tasks[0]) else np.zeros(0)
        x = 100 * (np.arange(len(grid)) + 1) / len(grid) if share else grid
        return self._band(algo, tasks, normalised, x, lambda run: run.curve[1])

    def over_seconds(self, algo: str, tasks: Sequence[str], normalised: bool, unit: float) -> stats.Band | None:
        """The training return over training time, in units of `unit` seconds. A run that is over keeps its last return."""
        ends = [run.seconds for task in tasks for run in self.finished(algo, task)]
        points = len(self.finished(algo, tasks[0])[0].curve[0]) if ends and self.finished(algo, tasks[0]) else 0
        x = np.linspace(max(ends) / points, max(ends), points) if points else np.zeros(0)
        band = self._band(algo, tasks, normalised, x, lambda run: at_times(run, x))
        return band and stats.Band(band.x / unit, band.value, band.low, band.high, band.runs)

    def _band(self, algo, tasks, normalised, x, values) -> stats.Band | None:
        by_task = []
        for task in tasks:
            curves = [values(run) for run in self.finished(algo, task)]
            by_task.append([self.reference(task).normalise(curve) if normalised else curve for curve in curves])
        runs = min(len(curves) for curves in by_task)
        if not runs or not len(x):
            return None
        stacked = np.stack([np.stack(curves[:runs]) for curves in by_task], axis=1)  # (runs, tasks, G)
        return stats.curve(x, stacked, "mean" if len(tasks) == 1 and not normalised else "IQM", self.options.reps, self.options.seed)

    # ---- what must be said -------------------------------------------------------------------------------------------

    def warnings(self, algo: str, tasks: Sequence[str]) -> list[str]:
        """Beside a figure made from an algorithm's scores on these tasks."""
        runs = [run for task in tasks for run in self.results.of(algo, task)]
        return [
            *self._seeds(algo, tasks, lambda other, task: len(self.scores(other, task))),
            *_unfinished(runs),
            *_unscored(runs, [run for run in runs if run.done and self.score(run) is None]),
            *self._budgets(algo, tasks),
            *dict.fromkeys(warning for task in tasks for warning in _configs(self.results.of(algo, task))),
        ]

    def curve_warnings(self, algo: str, tasks: Sequence[str]) -> list[str]:
        """Beside an algorithm's learning curve over these tasks."""
        runs = [run for task in tasks for run in self.results.of(algo, task)]
        where = (lambda run: f"{run.task}, seed {run.seed}") if len(tasks) > 1 else (lambda run: f"seed {run.seed}")
        return [
            *self._seeds(algo, tasks, lambda other, task: len(self.finished(other, task))),
            *_unfinished(runs),
            *self._budgets(algo, tasks),
            *(f"{where(run)}: {note}" for run in runs if run.done for note in run.notes),
        ]

    def by_algo(self, warnings: Callable[[str], list[str]]) -> list[str]:
        """One sentence for each algorithm that has warnings."""
        return [f"{algo}: {'; '.join(found)}" for algo in self.algos if (found := warnings(algo))]

    def _seeds(self, algo: str, tasks: Sequence[str], count_of: Callable[[str, str], int]) -> list[str]:
        """Too few seeds, not as many on each task, fewer than others have."""
        counts = {other: [count_of(other, task) for task in tasks] for other in self.algos}
        seeds = min(counts[algo])
        if not seeds:
            return []
        uneven = [f"{seeds} to {max(counts[algo])} seeds by task, {seeds} of each used"] if max(counts[algo]) > seeds else []
        more = [f"{other} {min(n)}" for other, n in counts.items() if min(n) > seeds]
        fewer = f"{plural(seeds, 'seed')} only" if seeds < ENOUGH else plural(seeds, "seed") if more else ""
        return [*uneven, *([", ".join([fewer, *([f"but {join(more)}"] if more else [])])] if fewer else [])]

    def _budgets(self, algo: str, tasks: Sequence[str]) -> list[str]:
        """Where others had another budget."""
        found = []
        for task in tasks:
            budgets = {other: runs[0].budget for other in self.algos if (runs := self.results.of(other, task))}
            others = [f"{other} {count(b)}" for other, b in budgets.items() if b != budgets.get(algo, b)]
            if others:
                found.append(f"unequal budgets{f' on {task}' if len(tasks) > 1 else ''}: {count(budgets[algo])} frames, {join(others)}")
        return found


def at_times(run: RunResult, times: np.ndarray) -> np.ndarray:
    """The run's return at training times (T,) in seconds: the last at or before, nan before the first; after its end its last one,
    where the record reaches that far."""
    _, returns, seconds = run.curve
    known = ~np.isnan(seconds)
    index = np.searchsorted(seconds[known], times, side="right") - 1
    found = np.where(index >= 0, np.append(returns[known], np.nan)[index], np.nan)
    if not known.all():  # its record is cut off
        found[times > (seconds[known][-1] if known.any() else 0.0)] = np.nan
    return found


def _unfinished(runs: list[RunResult]) -> list[str]:
    left = [run for run in runs if not run.done]
    return [f"{len(left)} of {plural(len(runs), 'run')} unfinished"] if left else []


def _unscored(runs: list[RunResult], without: list[RunResult]) -> list[str]:
    return [f"{len(without)} of {plural(len(runs), 'run')} without this score"] if without else []


def _configs(runs: list[RunResult]) -> list[str]:
    keys = differing([run.config for run in runs if run.config])
    shown = [*keys[:3], *(["..."] if len(keys) > 3 else [])]
    return [f"seeds with different configs ({', '.join(shown)})"] if keys else []
