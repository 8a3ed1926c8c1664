"""One line per task and algorithm over the seeds that were evaluated: `python -m experiments.summary runs/Pendulum_*`.

Each run directory must hold result.json and eval.json (train, then `python train.py test=True checkpoint=...`). What is averaged
over seeds is each run's mean return over its evaluation episodes; the spread is the standard deviation between seeds.
"""

from __future__ import annotations

import argparse
import collections
import json
import statistics
from pathlib import Path
from typing import Any

from core.cli import main_guard
from core.errors import UserError


def read(run: Path) -> dict[str, Any]:
    """Task, algorithm, seed, frames, seconds and evaluation of a run. Raises UserError naming the file that is missing."""
    for name in ("result.json", "eval.json", "run.json"):
        if not (run / name).is_file():
            raise UserError(f"'{run}' has no {name}: " + ("evaluate it first" if name == "eval.json" else "is it a run directory?"))
    result, played, about = (json.loads((run / name).read_text()) for name in ("result.json", "eval.json", "run.json"))
    if "return" not in played:
        raise UserError(f"'{run}' is a suite's run, which has several evaluations: use python -m experiments.report")
    return {
        "task": result["task"],
        "algo": result["algo"],
        "seed": result["seed"],
        "frames": result["frames"],
        "seconds": result["seconds"],
        "return": played["return"]["mean"],
        "train_return": result["return_mean"],
        "episodes": played["episodes"],
        "deterministic": played["deterministic"],
        "checkpoint": Path(played["checkpoint"]).name,
        "commit": (about.get("git") or {}).get("commit"),
    }


def table(runs: list[dict[str, Any]]) -> str:
    """A Markdown table: task, algorithm, frames, seeds, evaluation return (mean ± std between seeds; each), training return."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = collections.defaultdict(list)
    for run in runs:
        groups[run["task"], run["algo"], run["checkpoint"]].append(run)
    lines = [
        "| task | algorithm | frames | seeds | evaluation return | each seed | return at the end of training | minutes |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (task, algo, checkpoint), members in sorted(groups.items()):
        members = sorted(members, key=lambda r: r["seed"])
        each = ", ".join(f"{r['return']:.1f}" for r in members)
        lines.append(
            f"| {task} | {algo} ({checkpoint}) | {max(r['frames'] for r in members):,} | {', '.join(str(r['seed']) for r in members)} "
            f"| {spread([r['return'] for r in members])} | {each} | {spread([r['train_return'] for r in members])} "
            f"| {statistics.mean(r['seconds'] for r in members) / 60:.1f} |"
        )
    return "\n".join(lines)


def spread(values: list[float]) -> str:
    """'-151.1 ± 3.7': mean and standard deviation between seeds; no deviation for a single one."""
    mean = statistics.mean(values)
    return f"{mean:.1f} ± {statistics.stdev(values):.1f}" if len(values) > 1 else f"{mean:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.summary", description="Evaluation returns over seeds, as a Markdown table."
    )
    parser.add_argument("runs", nargs="+", type=Path, help="run directories")
    arguments = parser.parse_args()
    with main_guard():
        print(table([read(run) for run in arguments.runs]))


if __name__ == "__main__":
    main()
