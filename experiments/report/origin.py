"""Where the numbers come from: configs, references, code, packages, machines, commands, and every run by itself."""

from __future__ import annotations

import dataclasses
import shlex
from typing import Any

from experiments import progress
from experiments.report import words
from experiments.report.differences import between
from experiments.report.sections import Section
from experiments.report.selection import Selection
from experiments.report.tables import Cell, Table, text
from experiments.results import MEASURES, RunResult

SHOWN_PACKAGES = ("python", "gamesmith", "torch", "numpy", "rl_games", "gymnasium", "envpool", "ray")


def sections(chosen: Selection) -> list[Section]:
    found = [*([_differences(chosen)] if len(chosen.algos) > 1 else []), _versions(chosen), _references(chosen), _runs(chosen)]
    found[0].group = "Origin"
    return found


def _differences(chosen: Selection) -> Section:
    configs = {
        algo: {task: runs[0].config for task in chosen.tasks if (runs := chosen.results.of(algo, task)) and runs[0].config}
        for algo in chosen.algos
    }
    found = between(configs)
    rows = [[text(key), *(text(values[algo]) for algo in chosen.algos)] for key, values in found.items()]
    note = "Every key in which the resolved configs differ; what does not change results (names, logging, seeds) is left out."
    if not rows:
        note = "The resolved configs are the same in every key that changes results."
    tables = [Table("configs", "What differs between the configs", ["key", *chosen.algos], rows)] if rows else []
    return Section("configs", "What differs between the configs", note, tables=tables)


def _versions(chosen: Selection) -> Section:
    rows = []
    for algo in chosen.algos:
        runs = [run.run for task in chosen.tasks for run in chosen.results.of(algo, task) if run.run]
        commits = _distinct(commit for run in runs for commit in _commits(run))
        packages = _distinct(_packages(run) for run in runs)
        machines = _distinct(_machine(run) for run in runs)
        when = sorted(run["start"][:10] for run in runs if run.get("start"))
        dates = " to ".join(dict.fromkeys([when[0], when[-1]])) if when else ""
        rows.append(
            [
                text(algo),
                Cell("; ".join(commits), {}, _code_warnings(commits)),
                Cell("; ".join(packages), {}, [f"{len(packages)} sets of packages"] if len(packages) > 1 else []),
                Cell("; ".join(machines), {}, [f"{len(machines)} kinds of machine"] if len(machines) > 1 else []),
                text(dates),
            ]
        )
    options = dataclasses.replace(chosen.options, algos=chosen.algos)
    commands = (
        f"python -m experiments.suite {options.words('suite', 'algos', 'tasks', 'runs_dir', 'frames')} seeds={_seeds(chosen)}",
        f"python -m experiments.report {options.words()}",
    )
    table = Table("versions", "Code, packages and machines", ["algorithm", "commit", "packages", "hardware", "dates"], rows)
    return Section("versions", "Code, packages and machines", "", tables=[table], commands=commands)


def _references(chosen: Selection) -> Section:
    known = {task: chosen.results.references.get(task) for task in chosen.tasks}
    rows = [
        [text(task), Cell(words.number(r.random), {"": r.random}), Cell(words.number(r.reference), {"": r.reference}), text(r.source)]
        if r
        else [text(task), Cell("—", {"": None}), Cell("—", {"": None}), text("none: scores are not normalised")]
        for task, r in known.items()
    ]
    note = "Normalised score = (return - random) / (reference - random)."
    return Section(
        "references",
        "Reference scores",
        note,
        tables=[Table("references", "Reference scores", ["task", "random", "reference", "source"], rows)],
    )


def _runs(chosen: Selection) -> Section:
    head = ["task", "algorithm", "seed", "state", "frames", "seconds", "frames/s", *(f"{c}, {m}" for c, m in MEASURES), "commit", "key"]
    runs = [run for task in chosen.tasks for algo in chosen.algos for run in chosen.results.of(algo, task)]
    extra = [{"command": shlex.join(_command(run)), "directory": run.path.name} for run in runs]
    table = Table("runs", "Every run", head, [_run_row(run) for run in runs], extra)
    return Section("runs", "Every run", "", tables=[table], folded=True)


def _run_row(run: RunResult) -> list[Cell]:
    scores = []
    for checkpoint, mode in MEASURES:
        score = run.score(checkpoint, mode)
        scores.append(Cell("—" if score is None else words.number(score), {"": score}))
    return [
        text(run.task),
        text(run.algo),
        Cell(str(run.seed), {"": run.seed}),
        Cell("done" if run.done else "unfinished", {}, run.notes),
        Cell(f"{run.frames:,}", {"": run.frames}),
        Cell(f"{run.seconds:.1f}", {"": run.seconds}),
        Cell(f"{run.fps:,.0f}", {"": run.fps}),
        *scores,
        text("; ".join(_commits(run.run))),
        text(run.key),
    ]


def _commits(run: dict[str, Any]) -> list[str]:
    """Short hashes of every session of a run, and of the paper's own repository beside this code's."""
    found = []
    for session in run.get("sessions") or [run]:
        states = [state for state in (session.get("git"), session.get("git_here")) if state]
        said = " + ".join(
            f"{(s.get('commit') or 'no commit')[:9]}{' with uncommitted changes' if s.get('differs') else ''}" for s in states
        )
        found.append(said or "unknown")
    return _distinct(found)


def _code_warnings(commits: list[str]) -> list[str]:
    found = [f"{len(commits)} states of the code"] if len(commits) > 1 else []
    return found + (["not all of the code is in a commit"] if any("uncommitted" in commit for commit in commits) else [])


def _packages(run: dict[str, Any]) -> str:
    packages = run.get("packages") or {}
    return ", ".join(f"{name} {packages[name]}" for name in SHOWN_PACKAGES if packages.get(name))


def _machine(run: dict[str, Any]) -> str:
    found = run.get("hardware") or {}
    parts = [str(found["cpu"])] if found.get("cpu") else []
    if found.get("cores"):
        parts.append(words.plural(found["cores"], "core"))
    if found.get("memory_gib"):
        parts.append(f"{found['memory_gib']:.0f} GiB")
    return ", ".join([*parts, *found.get("gpus", [])])


def _command(run: RunResult) -> list[str]:
    """What makes it again: train.py with the cell's words; without those, what started it (what resumed it says less)."""
    if overrides := (progress.read(run.path / "cell.json") or {}).get("overrides"):
        return ["python", "train.py", *overrides]
    sessions = run.run.get("sessions") or [run.run]
    return [str(word) for word in sessions[0].get("command", [])]


def _seeds(chosen: Selection) -> str:
    seeds = sorted({run.seed for runs in chosen.results.runs.values() for run in runs})
    return str(len(seeds)) if seeds == list(range(len(seeds))) else f"[{','.join(map(str, seeds))}]"


def _distinct(values) -> list[str]:
    return list(dict.fromkeys(value for value in values if value))
