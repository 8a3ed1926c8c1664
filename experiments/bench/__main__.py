"""`python -m experiments.bench`: ours against stock rl_games, interleaved. docs/speed.md says what is measured and how."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from core.cli import main_guard
from experiments.bench import load, measure, report, scaling
from experiments.bench.options import parse
from experiments.bench.sides import members
from experiments.bench.stats import summary
from experiments.bench.workloads import WORKLOADS


def measure_workload(name: str, options: Namespace) -> dict[str, Any]:
    """All rounds of one workload: {"title", "base", "rounds", "summary", "disturbed"}."""
    workload = WORKLOADS[name]
    sides = members(workload, options.sides)
    rounds = []
    for number in range(options.rounds):
        rounds.append(measure.round_of(workload, sides, number + 1, options.out / "logs" / f"{name}_{number}", options.epochs))
        said = ", ".join(f"{side} {figures['fps']:,.0f}" for side, figures in rounds[-1].items())
        print(f"{name}, round {number + 1} of {options.rounds}, frames/s: {said}", flush=True)
    disturbed = load.warnings(name, rounds)
    print("".join(f"warning: {line}\n" for line in disturbed), end="", flush=True)
    result: dict[str, Any] = {"rounds": rounds, "summary": summary(rounds, {side.name: side.base for side in sides})}
    result["disturbed"] = disturbed
    return {"title": workload.title, "base": "PPO of the same code" if workload.algos else sides[0].base, **result}


def main(argv: list[str] | None = None) -> None:
    """Measures what the options ask for and writes bench.json, bench.md and pictures into `--out`, after every workload anew."""
    options = parse(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {**report.about(options.sides), "not_measured": options.not_measured, "workloads": {}}
    for line in options.not_measured:
        print(f"not measured: {line}", flush=True)
    if options.scaling:
        result["scaling"] = scaling.measure_all(options.sides, options.rounds, options.counts, options.device, options.out, options.epochs)
        report.write(result, options.out)
    for name in options.workloads:
        result["workloads"][name] = measure_workload(name, options)
        report.write(result, options.out)
    print(f"\n{(options.out / 'bench.md').read_text()}\nin {options.out}: {', '.join(sorted(p.name for p in options.out.iterdir()))}")


if __name__ == "__main__":
    with main_guard():
        main()
