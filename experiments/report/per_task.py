"""Each task by itself: learning curves and every measure of every algorithm."""

from __future__ import annotations

import statistics

from experiments.report import words
from experiments.report.overview import curves, said_of_curves
from experiments.report.sections import Section
from experiments.report.selection import Selection
from experiments.report.tables import Cell, Table, text
from experiments.results import MEASURES


def sections(chosen: Selection) -> list[Section]:
    found = [_section(chosen, task) for task in chosen.tasks]
    found[0].group = "Tasks"
    return found


def table(chosen: Selection, tasks: list[str], name: str, title: str) -> Table:
    """One line per task and algorithm: mean ± standard deviation between seeds of every measure. The task's column is left out
    where there is one task only."""
    head = ["task"] * (len(tasks) > 1) + [
        "algorithm",
        "seeds",
        *(f"{c}, {m}" for c, m in MEASURES),
        "normalised",
        "frames",
        "training time",
        "frames/s",
    ]
    rows = [[text(task)] * (len(tasks) > 1) + _row(chosen, algo, task) for task in tasks for algo in chosen.algos]
    return Table(name, title, head, rows)


def _section(chosen: Selection, task: str) -> Section:
    panels = curves(chosen, [task], f"task-{task}", False)
    reference = chosen.results.references.get(task)
    measured = (
        f"Normalised by random actions at {words.number(reference.random)} and a reference of {words.number(reference.reference)} "
        f"({reference.source})."
        if reference
        else "No reference scores: returns are not normalised."
    )
    note = f"Curves are returns during training (sampled actions), the mean over seeds with a pointwise 95% band. {measured}"
    measures = table(chosen, [task], f"task-{task}", f"Returns on {task}, mean ± standard deviation over seeds")
    return Section(f"task-{task}", task, note, panels, [measures], warnings=said_of_curves(chosen, [task]))


def _row(chosen: Selection, algo: str, task: str) -> list[Cell]:
    runs, warnings = chosen.results.of(algo, task), chosen.warnings(algo, [task])
    ended = chosen.finished(algo, task)
    cells = [text(algo), Cell(str(len(ended)), {"": len(ended)})]
    for checkpoint, mode in MEASURES:
        scores = [score for run in ended if (score := run.score(checkpoint, mode)) is not None]
        ours = f"{checkpoint}-{mode}" == chosen.options.score
        cells.append(_spread(scores, warnings if ours else [], bold=ours))
    reference = chosen.results.references.get(task)
    scores = [reference.normalise(score) for score in chosen.scores(algo, task)] if reference else []
    cells.append(_spread(scores, warnings if scores else []))
    frames = max((run.frames for run in runs), default=0)
    cells.append(Cell(words.count(frames), {"": frames}))
    seconds, fps = (statistics.mean(values) if values else None for values in ([run.seconds for run in ended], [run.fps for run in ended]))
    cells.append(Cell("—" if seconds is None else words.duration(seconds), {"seconds": seconds}))
    cells.append(Cell("—" if fps is None else f"{fps:,.0f}", {"": fps}))
    return cells


def _spread(scores: list[float], warnings: list[str], bold: bool = False) -> Cell:
    """The deviation is the sample's (n - 1), and a single run has none."""
    mean = statistics.mean(scores) if scores else None
    deviation = statistics.stdev(scores) if len(scores) > 1 else None
    shown = "—" if mean is None else words.spread(mean, deviation)
    return Cell(shown, {"mean": mean, "std": deviation, "n": len(scores)}, warnings, bold)
