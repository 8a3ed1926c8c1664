"""`python -m experiments.bench`: ours against stock rl_games, interleaved. docs/speed.md says what is measured and how."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any, NoReturn

from core.cli import main_guard
from core.errors import UserError, unknown
from experiments.bench import measure, report
from experiments.bench.sides import ROOT, Side, sides
from experiments.bench.stats import summary
from experiments.bench.workloads import WORKLOADS


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}. See python -m experiments.bench --help")


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The options, checked. Raises UserError for one that is unknown or has a value that cannot be."""
    parser = _Parser(prog="python -m experiments.bench", description="Speed of this repository against stock rl_games.", allow_abbrev=False)
    parser.add_argument("--workloads", default=",".join(WORKLOADS), help=f"comma-separated; of {', '.join(WORKLOADS)} (default: all)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds, in each of which every side runs once (default 5)")
    parser.add_argument("--epochs", type=int, help="measured epochs of every run (default: chosen per workload)")
    parser.add_argument("--ours", action="append", default=[], metavar="[NAME=]DIR", help="checkout to measure; may be given again")
    parser.add_argument("--variant", action="append", default=[], metavar="NAME:KEY=VALUE,...", help="our side again, with these overrides")
    parser.add_argument("--no-stock", action="store_true", help="leave stock rl_games out; ratios are then to the first side")
    parser.add_argument("--out", type=Path, help="folder for the results (default: runs/bench_<time>)")
    options = parser.parse_args(argv)
    options.workloads = [name.strip() for name in options.workloads.split(",") if name.strip()]
    for name in options.workloads:
        if name not in WORKLOADS:
            raise unknown("workload", name, WORKLOADS, "--workloads")
    for name in ("rounds", "epochs"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} is {value}, but must be at least 1")
    options.sides = sides(options.ours, options.variant)[int(options.no_stock) :]
    options.out = options.out or ROOT / "runs" / time.strftime("bench_%Y-%m-%d_%H-%M-%S")
    if options.out.exists() and any(options.out.iterdir()):
        raise UserError(f"--out: '{options.out}' is not empty")
    return options


def measure_workload(name: str, members: list[Side], options: argparse.Namespace) -> dict[str, Any]:
    """All rounds of one workload: {"title", "rounds", "summary"}."""
    workload = WORKLOADS[name]
    rounds = []
    for number in range(options.rounds):
        figures: dict[str, dict[str, Any]] = {}
        for side in members:
            folder = options.out / "logs" / f"{name}_{number}_{side.name.replace('/', '-')}"
            figures[side.name] = measure.run(side, workload, number + 1, folder, options.epochs)
            print(f"{name} round {number + 1}: {side.name} {figures[side.name]['fps']:,.0f} frames/s", flush=True)
        if workload.raw:
            figures["raw"] = {"fps": measure.raw(workload)}
        rounds.append(figures)
    return {"title": workload.title, "rounds": rounds, "summary": summary(rounds, members[0].name)}


def main(argv: list[str] | None = None) -> None:
    options = parse(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {**report.about(), "workloads": {}}
    for name in options.workloads:
        result["workloads"][name] = measure_workload(name, options.sides, options)
        (options.out / "bench.json").write_text(json.dumps(result, indent=1))
    text = report.table(result)
    (options.out / "bench.md").write_text(text)
    print(f"\n{text}\n{options.out}")


if __name__ == "__main__":
    with main_guard():
        main()
