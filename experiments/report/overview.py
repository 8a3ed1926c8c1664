"""The suite as a whole: who is ahead, by how much, how sure that is, and how fast they get there."""

from __future__ import annotations

import functools
import itertools

import numpy as np

from experiments import stats
from experiments.report import words
from experiments.report.panels import Intervals, Lines, Panel, Row
from experiments.report.sections import Section
from experiments.report.selection import Selection
from experiments.report.tables import Cell, Table, text

MEANINGS = {
    "IQM": "mean of the middle half of all runs; higher is better",
    "median": "median over tasks of the mean over runs; higher is better",
    "mean": "mean over all runs; higher is better",
    "optimality gap": "how far runs are below the reference on average; lower is better",
}
INTERVAL = "Intervals are 95% stratified bootstrap intervals."


def about(chosen: Selection) -> str:
    """Score, tasks and budgets in a line."""
    budgets = sorted({run.budget for runs in chosen.results.runs.values() for run in runs})
    frames = words.count(budgets[0]) + (f" to {words.count(budgets[-1])}" if len(budgets) > 1 else "")
    episodes = sorted({e for e in (_episodes(chosen, run) for runs in chosen.results.runs.values() for run in runs) if e})
    counted = f" over {words.span(episodes, 'episode')}" if episodes else ""
    actions = "the most likely action" if chosen.options.mode == "deterministic" else "sampled actions"
    return (
        f"{words.plural(len(chosen.algos), 'algorithm')}, {words.plural(len(chosen.tasks), 'task')}, {frames} frames a run. "
        f"A run's score is the mean return of its {chosen.options.checkpoint} checkpoint{counted}, {actions}."
    )


def headline(chosen: Selection) -> str:
    """The finding in words."""
    tasks = chosen.shared
    if len(chosen.algos) > 1 and tasks:
        return words.headline(improvements(chosen), {algo: len(chosen.matrix(algo, tasks, False)) for algo in chosen.algos}, len(tasks))
    if len(chosen.algos) > 1:
        return f"No task has finished runs of all of {words.join(chosen.algos)} yet: nothing can be compared."
    (algo,) = chosen.algos
    counts = words.span([len(chosen.scores(algo, task)) for task in tasks], "seed")
    if not chosen.normalised:
        return f"{algo} on {words.plural(len(tasks), 'task')}, {counts}; no reference scores to measure it by."
    found = aggregates(chosen)[algo]["IQM"]
    return f"{algo} reaches an IQM of {words.estimate(found)} of the reference; {counts}, {words.plural(len(chosen.normalised), 'task')}."


def warnings(chosen: Selection) -> list[str]:
    """What concerns the report as a whole: tasks and algorithms that its comparisons leave out, runs that did not end."""
    found = []
    for task in chosen.tasks:
        absent = [algo for algo in chosen.algos if not chosen.scores(algo, task)]
        if absent:
            found.append(f"{task} is left out of all comparisons: no finished run of {words.join(absent)}.")
    bare = [task for task in chosen.shared if task not in chosen.normalised]
    if bare:
        them = "it is" if len(bare) == 1 else "they are"
        found.append(f"{words.join(bare)}: no reference scores, so {them} left out where scores are normalised. Raw returns are shown.")
    runs = [run for members in chosen.results.runs.values() for run in members]
    left = [run for run in runs if not run.done]
    if left:
        found.append(f"{len(left)} of {words.plural(len(runs), 'run')} unfinished and not counted.")
    return found


def sections(chosen: Selection) -> list[Section]:
    found = []
    if len(chosen.algos) > 1 and chosen.shared:
        found.append(_improvement(chosen))
    if chosen.normalised:
        found += [_aggregates(chosen), _profiles(chosen), _efficiency(chosen)]
    if found:
        found[0].group = "Overview"
    return found


@functools.lru_cache(maxsize=1)
def improvements(chosen: Selection) -> dict[tuple[str, str], stats.Estimate]:
    """{(X, Y): probability that X scores above Y}, X being named after Y on the command line."""
    scores = {algo: chosen.matrix(algo, chosen.shared, False) for algo in chosen.algos}
    options = chosen.options
    return {(x, y): stats.improvement(scores[x], scores[y], options.reps, options.seed) for y, x in itertools.combinations(chosen.algos, 2)}


@functools.lru_cache(maxsize=1)
def aggregates(chosen: Selection) -> dict[str, dict[str, stats.Estimate]]:
    matrices = {algo: chosen.matrix(algo, chosen.normalised, True) for algo in chosen.algos}
    return {algo: stats.aggregates(scores, chosen.options.reps, chosen.options.seed) for algo, scores in matrices.items()}


def estimate_values(found: stats.Estimate) -> dict[str, float | None]:
    return {"": found.value, "low": found.low, "high": found.high}


def _improvement(chosen: Selection) -> Section:
    pairs = improvements(chosen)
    rows = [Row(f"{x} > {y}", found, chosen.looks[x], None) for (x, y), found in pairs.items()]
    panel = Intervals(
        "improvement",
        "P(X > Y)",
        "Probability that a run of X scores above a run of Y, averaged over tasks. The dotted line is a coin's toss.",
        "probability",
        mark=0.5,
        rows=rows,
        span=(0, 1),
    )
    said = said_of_scores(chosen, chosen.shared)
    table = Table(
        "improvement",
        "Probability of improvement with 95% intervals",
        ["X", "Y", "P(X > Y)", "seeds of X", "seeds of Y", "tasks"],
        [
            [
                text(x),
                text(y),
                Cell(
                    words.estimate(found),
                    estimate_values(found),
                    [warning for warning in said if warning.startswith((f"{x}: ", f"{y}: "))],
                ),
                *(Cell(str(n), {"": n}) for n in (*(len(chosen.matrix(a, chosen.shared, False)) for a in (x, y)), len(chosen.shared))),
            ]
            for (x, y), found in pairs.items()
        ],
    )
    note = f"{panel.note} It needs no reference scores. {INTERVAL}"
    return Section("improvement", "Probability of improvement", note, [panel], [table], warnings=said)


def said_of_scores(chosen: Selection, tasks: list[str]) -> list[str]:
    return chosen.by_algo(lambda algo: chosen.warnings(algo, tasks))


def _aggregates(chosen: Selection) -> Section:
    found = aggregates(chosen)
    panels = [
        Intervals(
            f"aggregates-{name.replace(' ', '-')}",
            name,
            f"{name}: {meaning}.",
            "normalised score" if name != "optimality gap" else "below the reference",
            rows=[Row(algo, found[algo][name], chosen.looks[algo], algo) for algo in chosen.algos],
        )
        for name, meaning in MEANINGS.items()
    ]
    rows = []
    for algo in chosen.algos:
        said = chosen.warnings(algo, chosen.normalised)
        cells = [Cell(words.estimate(e), estimate_values(e), said if name == "IQM" else []) for name, e in found[algo].items()]
        runs = len(chosen.matrix(algo, chosen.normalised, True))
        rows.append([text(algo), *cells, Cell(str(runs), {"": runs}), Cell(str(len(chosen.normalised)), {"": len(chosen.normalised)})])
    table = Table("aggregates", "Aggregate scores with 95% intervals", ["algorithm", *MEANINGS, "seeds", "tasks"], rows)
    explained = "; ".join(f"{name}: {meaning.partition(';')[0]}" for name, meaning in MEANINGS.items())
    text_ = f"Normalised scores: 0 is random actions, 1 the task's reference. {explained}. {INTERVAL}"
    return Section("aggregates", "Aggregate scores", text_, panels, [table], warnings=said_of_scores(chosen, chosen.normalised))


def _profiles(chosen: Selection) -> Section:
    scores = {algo: chosen.matrix(algo, chosen.normalised, True) for algo in chosen.algos}
    everything = np.concatenate([s.ravel() for s in scores.values()])
    taus = np.linspace(min(0.0, everything.min()), max(1.0, everything.max()) * 1.02, 101)
    panel = Lines(
        "profiles",
        "Share of runs above each score",
        "The share of runs that score above each threshold; the curve that lies higher is better.",
        "normalised score τ",
        ylabel="share of runs with score > τ",
        series=[
            (algo, stats.profile(scores[algo], taus, chosen.options.reps, chosen.options.seed), chosen.looks[algo]) for algo in chosen.algos
        ],
    )
    note = f"{panel.note} Bands are pointwise 95% intervals."
    return Section("profiles", "Performance profiles", note, [panel], warnings=said_of_scores(chosen, chosen.normalised))


def _efficiency(chosen: Selection) -> Section:
    tasks = chosen.normalised
    budgets = {run.budget for algo in chosen.algos for task in tasks for run in chosen.results.of(algo, task)}
    share = len(budgets) > 1  # tasks of different length meet at the same part of their budget
    found = curves(chosen, tasks, "efficiency", True, share)
    note = (
        "IQM over runs and tasks of the normalised return during training (sampled actions), "
        f"over {'the share of the budget' if share else 'frames'} and over the training time of a run. "
        "A curve begins where every run has finished an episode; a run that is over keeps its last value. "
        "Bands are pointwise 95% intervals."
    )
    return Section("efficiency", "Sample efficiency and wall-clock", note, found, warnings=said_of_curves(chosen, tasks))


def said_of_curves(chosen: Selection, tasks: list[str]) -> list[str]:
    return chosen.by_algo(lambda algo: chosen.curve_warnings(algo, tasks))


def curves(chosen: Selection, tasks: list[str], name: str, normalised: bool, share: bool = False) -> list[Panel]:
    """Two panels: return over frames and over training time. Beside the second stands what makes times hard to compare."""
    ylabel = "IQM of normalised return" if normalised else "mean return"
    seconds = max((run.seconds for algo in chosen.algos for task in tasks for run in chosen.finished(algo, task)), default=0.0)
    unit, unit_name = (1.0, "seconds") if seconds < 180 else (60.0, "minutes") if seconds < 3 * 3600 else (3600.0, "hours")
    over_frames = [(a, chosen.over_frames(a, tasks, normalised, share), chosen.looks[a]) for a in chosen.algos]
    over_seconds = [(a, chosen.over_seconds(a, tasks, normalised, unit), chosen.looks[a]) for a in chosen.algos]
    machines = {(h.get("cpu"), h.get("cores"), tuple(h.get("gpus", []))) for h in _hardware(chosen, tasks)}
    without = [algo for algo, band, _ in over_frames if band is None and all(chosen.finished(algo, task) for task in tasks)]
    said = [f"{algo}: no curve, as not every run has finished an episode" for algo in without]
    note = "The line is the mean over seeds" if not normalised else "The line is the IQM over runs and tasks"
    return [
        Lines(
            f"{name}-frames",
            "Return over frames",
            f"{note}, the band its 95% interval.",
            "share of the budget, %" if share else "frames",
            said,
            ylabel=ylabel,
            series=[(algo, band, look) for algo, band, look in over_frames if band],
            frames=not share,
        ),
        Lines(
            f"{name}-time",
            "Return over wall-clock",
            f"{note}, the band its 95% interval.",
            f"{unit_name} of training",
            [*said, *([f"run on {len(machines)} kinds of machine: times do not compare"] if len(machines) > 1 else [])],
            ylabel=ylabel,
            series=[(algo, band, look) for algo, band, look in over_seconds if band],
        ),
    ]


def _hardware(chosen: Selection, tasks: list[str]) -> list[dict]:
    return [run.run.get("hardware") or {} for algo in chosen.algos for task in tasks for run in chosen.finished(algo, task)]


def _episodes(chosen: Selection, run) -> int | None:
    played = getattr(run, chosen.options.checkpoint)
    return (played or {}).get(chosen.options.mode, {}).get("episodes")
