"""The runs of a suite as plain data: what was reached, how it was evaluated, and the learning curve on an even grid of frames.

Read from `<runs_dir>/<suite>/<task>/<algo>/seed<seed>-<key>/`; what lies in such a directory: docs/runs.md and docs/report.md.
"""

from __future__ import annotations

import collections
import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from core.errors import UserError, nearest, unknown
from experiments import suites
from experiments.suites import Reference

ENDED = ("max_frames", "max_epochs", "score_to_win", "should_stop")  # training that came to its own end
MEASURES = [(checkpoint, mode) for checkpoint in ("final", "best") for mode in ("deterministic", "sampled")]  # of every run's eval.json

Curve = tuple[np.ndarray, np.ndarray, np.ndarray]  # frames (G,), returns (G,), seconds (G,)


@dataclasses.dataclass(kw_only=True)
class RunResult:
    """One run. `final` and `best` are {"deterministic": {"mean", "std", ..., "episodes"}, "sampled": {...}}; None where that
    checkpoint was not evaluated."""

    algo: str
    task: str
    seed: int
    path: Path
    key: str
    budget: int
    """Frames that it may take."""
    done: bool
    """Trained to its end and evaluated."""
    frames: int
    """Frames that it took."""
    seconds: float
    """Of training."""
    fps: float
    final: dict[str, dict[str, Any]] | None
    best: dict[str, dict[str, Any]] | None
    curve: Curve
    config: dict[str, Any]
    run: dict[str, Any]
    notes: list[str]
    """What a reader of its numbers must know: "metrics.jsonl is cut off at line 12"."""

    def score(self, checkpoint: str, mode: str) -> float | None:
        """Mean return over the evaluation episodes; None where that was not measured, or the run has not come to its end."""
        played = getattr(self, checkpoint) if self.done else None
        return (played or {}).get(mode, {}).get("mean")


@dataclasses.dataclass
class Results:
    """Every run of the chosen tasks and algorithms, by seed. A pair without any run is an empty list."""

    suite: str
    tasks: list[str]
    algos: list[str]
    runs: dict[tuple[str, str], list[RunResult]]
    references: dict[str, Reference]

    def of(self, algo: str, task: str) -> list[RunResult]:
        return self.runs.get((algo, task), [])


def load(suite: str, runs_dir: Path, algos: list[str] | None = None, tasks: list[str] | None = None, frames: int | None = None) -> Results:
    """The runs of `suite`, a name or the path of a suite's YAML. None: every algorithm, task and budget that is there.

    Raises UserError where there is no such suite, algorithm or task, where no run is found, and where one name stands for more
    than one budget or config.
    """
    name, known = _suite(suite, runs_dir)
    folder = runs_dir / name
    cells = [(_json(path), path.parent) for path in sorted(folder.glob("*/*/seed*/cell.json"))]
    cells = [(cell, path) for cell, path in cells if frames is None or cell["frames"] == frames]
    make = f"python -m experiments.suite suite={suite} algos=[{','.join(algos or ['PPO', 'MyAlgo'])}]"
    if not cells:
        budget = f" with frames={frames}" if frames is not None else ""
        raise UserError(f"no runs{budget} in '{folder}'. This makes them: {make}")
    algos = _chosen("algorithm", "algos", algos, (cell["algo"] for cell, _ in cells), folder, make)
    # tasks in the order of the suite's YAML, then what else is there
    there = {cell["task"] for cell, _ in cells}
    ordered = [*(label for label in known.tasks if label in there), *sorted(there - set(known.tasks))]
    tasks = _chosen("task", "tasks", tasks, ordered, folder, make)
    grouped: dict[tuple[str, str], list[tuple[dict[str, Any], Path]]] = collections.defaultdict(list)
    for cell, path in cells:
        if cell["algo"] in algos and cell["task"] in tasks:
            grouped[cell["algo"], cell["task"]].append((cell, path))
    for (algo, task), members in grouped.items():
        _one_meaning(algo, task, members)
    runs = {pair: sorted((_run(c, p, known.grid) for c, p in members), key=lambda r: r.seed) for pair, members in grouped.items()}
    by_label = {label: known.references.get(known.tasks[label].task if label in known.tasks else label) for label in tasks}
    return Results(name, tasks, algos, runs, {label: one for label, one in by_label.items() if one is not None})


def read_metrics(path: Path) -> tuple[list[dict[str, Any]], str | None]:
    """The epochs of a metrics.jsonl up to the last whole line, and what was lost, if anything."""
    if not path.exists():
        return [], "no metrics.jsonl"
    lines: list[dict[str, Any]] = []
    *whole, rest = path.read_text(encoding="utf-8", errors="replace").split("\n")  # every whole line ends in a newline
    for number, line in enumerate(whole, 1):
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            return lines, f"metrics.jsonl is damaged at line {number}, the curve ends there"
    return lines, f"metrics.jsonl is cut off at line {len(lines) + 1}, the curve ends there" if rest else None


def on_grid(lines: list[dict[str, Any]], budget: int, points: int, ended: bool) -> Curve:
    """The training return (`return_mean`) and training seconds at `points` frame counts, evenly spaced, the last at `budget`.

    Each is the last value at or before; nan before the first. Beyond its last epoch a run that ended keeps its last return, one
    that did not has none.
    """
    grid = np.linspace(budget / points, budget, points)
    columns = []
    for name in ("return_mean", "seconds"):
        known = [(line["frames"], line[name]) for line in lines if line.get(name) is not None]
        at, values = np.array(known, dtype=float).reshape(-1, 2).T
        index = np.searchsorted(at, grid, side="right") - 1
        column = np.where(index >= 0, np.append(values, np.nan)[index], np.nan)
        if not ended and lines:
            column[grid > lines[-1]["frames"]] = np.nan
        columns.append(column)
    return grid, columns[0], columns[1]


def _suite(suite: str, runs_dir: Path) -> tuple[str, suites.Suite]:
    """Its name, and what its YAML says; of a suite whose YAML is not at hand, what `Suite` says by itself."""
    there = {path.parents[3].name for path in runs_dir.glob("*/*/*/seed*/cell.json")}
    if suite in there and suite not in suites.names():
        return suite, suites.Suite.model_construct(name=suite, tasks={}, references=suites.references())
    if suite not in there and suite not in suites.names() and "/" not in suite and not suite.endswith((".yaml", ".yml")):
        raise unknown("suite", suite, {*suites.names(), *there}, "suite=")
    known = suites.load(suite)
    return known.name, known


def _chosen(what: str, key: str, asked: list[str] | None, there: Iterable[str], folder: Path, make: str) -> list[str]:
    valid = list(dict.fromkeys(there))
    if asked is None:
        return valid
    for name in asked:
        if name not in valid:
            guess = nearest(name, valid)
            hint = f"Did you mean '{guess}'?" if guess else f"This makes them: {make}"
            raise UserError(f"no runs of {what} '{name}' ({key}=) in '{folder}'. There are: {', '.join(valid)}. {hint}")
    return list(dict.fromkeys(asked))


def _one_meaning(algo: str, task: str, members: list[tuple[dict[str, Any], Path]]) -> None:
    """A name must stand for one budget, and a seed for one run."""
    by_budget = {cell["frames"]: path for cell, path in members}
    if len(by_budget) > 1:
        (one, path), (other, other_path), *_ = sorted(by_budget.items())
        raise UserError(
            f"{algo} on {task} has runs of different budgets: {one:,} frames ('{path}') and {other:,} frames ('{other_path}'). "
            f"Choose one: frames={one} or frames={other}"
        )
    by_seed: dict[int, Path] = {}
    for cell, path in members:
        if cell["seed"] in by_seed:
            raise UserError(
                f"{algo} on {task} has two runs of seed {cell['seed']} whose configs differ: '{by_seed[cell['seed']]}' and '{path}'. "
                "Move one away, or give it a name of its own below `variants` in the suite's YAML"
            )
        by_seed[cell["seed"]] = path


def _run(cell: dict[str, Any], path: Path, points: int) -> RunResult:
    result, played = _json(path / "result.json"), _json(path / "eval.json")
    lines, lost = read_metrics(path / "metrics.jsonl")
    ended = result.get("exit_reason") in ENDED
    by_checkpoint = {name: _played(modes) for name, modes in played.get("checkpoints", {}).items()}
    done = ended and "final" in by_checkpoint
    last = lines[-1] if lines else {}
    frames = result.get("frames") or last.get("frames", 0)
    notes = [lost] if lost else []
    if not done:
        notes.append(f"unfinished: {frames:,} of {cell['frames']:,} frames" if not ended else "trained, but not evaluated")
        if cell.get("errors"):
            notes.append(f"failed: {cell['errors'][-1]}")
    return RunResult(
        algo=cell["algo"],
        task=cell["task"],
        seed=cell["seed"],
        path=path,
        key=cell["key"],
        budget=cell["frames"],
        done=done,
        frames=frames,
        seconds=result.get("seconds") or last.get("seconds", 0.0),
        fps=result.get("fps") or last.get("fps", 0.0),
        final=by_checkpoint.get("final"),
        best=by_checkpoint.get("best"),
        curve=on_grid(lines, cell["frames"], points, ended and not lost),
        config=_yaml(path / "config.yaml"),
        run=_json(path / "run.json"),
        notes=notes,
    )


def _played(modes: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {mode: {**played["return"], "episodes": played["episodes"]} for mode, played in modes.items()}


def _json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"'{path}' is not valid JSON: {error}") from error


def _yaml(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        with path.open(encoding="utf-8") as file:
            return yaml.load(file, getattr(yaml, "CSafeLoader", yaml.SafeLoader)) or {}
    except yaml.YAMLError as error:
        raise UserError(f"'{path}' is not valid YAML: {error}") from error
