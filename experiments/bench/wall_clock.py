"""How long a user waits: from the start of the process to a return in training, ours against Stable-Baselines3 with the Zoo's settings.

    python -m experiments.bench.wall_clock --seeds 0,1,2

Both write a line per rollout; a mark is reached at the first line whose mean over the last episodes (100 for CartPole, 10 for HalfCheetah)
is at or above it, once so many have ended. The time is that at which the line was seen, looked for twenty times a second.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from core.cli import main_guard
from core.errors import UserError
from experiments import leash
from experiments.bench import chart, peers, report
from experiments.bench.options import Parser, names
from experiments.bench.sides import ROOT, Side

LOOK_SECONDS = 0.05
SIDES = ("ours", "sb3")


@dataclasses.dataclass(frozen=True)
class Wait:
    """words: of our train.py; marks: returns to wait for; episodes: that the return is the mean of."""

    words: tuple[str, ...]
    marks: tuple[int, ...]
    episodes: int


TASKS = {
    "CartPole": Wait(("task=CartPole", "tuned=CartPole-quick"), (475,), 100),
    "HalfCheetah": Wait(("task=HalfCheetah", "tuned=HalfCheetah-quick"), (1000, 2000, 3000, 4000, 5000), 10),
}


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The options: `tasks`, `sides`, `seeds` as lists. Raises UserError for what cannot be."""
    parser = Parser(prog="python -m experiments.bench.wall_clock", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--tasks", default=",".join(TASKS), help=f"of {', '.join(TASKS)} (default: all)")
    parser.add_argument("--sides", default=",".join(SIDES), help=f"of {', '.join(SIDES)} (default: both)")
    parser.add_argument("--seeds", default="0,1,2", help="(default: 0,1,2)")
    parser.add_argument("--limit", type=float, default=900.0, help="seconds after which a run is stopped (default: 900)")
    parser.add_argument("--out", type=Path, help="folder for the results (default: runs/wall_clock_<time>)")
    options = parser.parse_args(argv)
    for name, valid in (("tasks", TASKS), ("sides", SIDES)):
        setattr(options, name, names(f"--{name}", getattr(options, name), valid, name[:-1]))
    if not all(seed.isdigit() for seed in options.seeds.split(",")):
        raise UserError(f"--seeds is '{options.seeds}', but must be whole numbers, e.g. 0,1,2")
    options.seeds = [int(seed) for seed in options.seeds.split(",")]
    if not options.limit > 0:
        raise UserError(f"--limit is {options.limit:g}, but must be above 0 seconds")
    if "sb3" in options.sides and peers.version("sb3") is None:
        raise UserError("--sides sb3: stable-baselines3 is not installed (pip install '.[bench]'), or ask for --sides ours")
    options.out = (options.out or ROOT / "runs" / time.strftime("wall_clock_%Y-%m-%d_%H-%M-%S")).resolve()
    if options.out.exists():
        raise UserError(f"--out: '{options.out}' is there already")
    return options


def command(side: str, task: str, seed: int, folder: Path) -> tuple[list[str], Path]:
    """The command of one run, and the file in which its lines appear."""
    if side == "sb3":
        file = folder / "curve.jsonl"
        return [sys.executable, "-m", "experiments.bench.sb3_zoo", task, str(seed), str(file)], file
    wait = TASKS[task]
    run = folder / "run"
    words = [*wait.words, "train=PPO", f"seed={seed}", f"train.params.config.games_to_track={wait.episodes}", f"run_dir={run}"]
    return [sys.executable, "-m", "experiments.leashed", str(ROOT / "train.py"), *words], run / "metrics.jsonl"


def measure(side: str, task: str, seed: int, folder: Path, limit: float) -> dict[str, Any]:
    """One run: {"marks": {mark: {"seconds", "frames"}} as far as they were reached, "seconds", "frames", "return_mean" at its end}. Ends
    the run at its last mark, or after `limit` seconds. Raises UserError with the end of its log where it fails."""
    folder.mkdir(parents=True)
    argv, file = command(side, task, seed, folder)
    with (folder / "log.txt").open("wb") as log:
        started = time.monotonic()
        process = leash.start(argv, log, os.environ, str(ROOT))
        try:
            reached = watch(process, file, TASKS[task], started, limit)
            status = process.poll()  # None: it is to be ended now
        finally:
            leash.end(process)
    if status:  # a negative one is a signal's: killed for memory, say
        raise UserError(f"a run failed: {' '.join(argv)}\n{(folder / 'log.txt').read_text(errors='replace')[-2000:]}")
    return reached


def watch(process: subprocess.Popen[bytes], file: Path, wait: Wait, started: float, limit: float) -> dict[str, Any]:
    """Reads the lines as they come, until the last mark, the process's end or the limit."""
    seen, position = Marks(wait), 0
    while True:
        ended = process.poll() is not None
        now = time.monotonic() - started
        if file.exists():
            with file.open("rb") as lines:
                lines.seek(position)
                whole, newline, _ = lines.read().rpartition(b"\n")
            position += len(whole) + len(newline)
            for line in whole.splitlines():
                seen.take(json.loads(line), now)
        if ended or seen.all_reached or now > limit:
            return {"marks": seen.reached, "seconds": now, **seen.last}
        time.sleep(LOOK_SECONDS)


class Marks:
    """Which marks were reached when."""

    def __init__(self, wait: Wait) -> None:
        self.wait = wait
        self.reached: dict[str, dict[str, float]] = {}
        self.last: dict[str, float] = {}

    @property
    def all_reached(self) -> bool:
        return len(self.reached) == len(self.wait.marks)

    def take(self, line: dict[str, Any], seconds: float) -> None:
        """A line with "frames", "episodes" and "return_mean", seen `seconds` after the start."""
        if line.get("return_mean") is None or line["episodes"] < self.wait.episodes:
            return
        self.last = {"frames": line["frames"], "return_mean": line["return_mean"]}
        for mark in self.wait.marks:
            if line["return_mean"] >= mark and str(mark) not in self.reached:
                self.reached[str(mark)] = {"seconds": seconds, "frames": line["frames"]}


def table(result: dict[str, Any]) -> str:
    """Markdown: seconds to each mark, the median over seeds with every seed's, and the ratio of the medians."""
    lines = [
        "| task | return | ours: seconds (each seed) | SB3 with the Zoo's settings: seconds (each seed) | ours / SB3 |",
        "|---|---|---|---|---|",
    ]
    for task, sides in result["tasks"].items():
        for mark in map(str, TASKS[task].marks):
            cells, medians = [], {}
            for side in SIDES:
                times = [run["marks"].get(mark, {}).get("seconds") for run in sides.get(side, {}).values()]
                known = [seconds for seconds in times if seconds is not None]
                each = ", ".join("-" if seconds is None else f"{seconds:.1f}" for seconds in times)
                if times and len(known) == len(times):
                    medians[side] = statistics.median(known)
                    cells.append(f"{medians[side]:.1f} ({each})")
                else:
                    cells.append(f"not by all ({each})" if times else "")
            ratio = f"{medians['ours'] / medians['sb3']:.2f}" if len(medians) == 2 else ""
            lines.append(f"| {task} | {mark} | {' | '.join(cells)} | {ratio} |")
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> None:
    """Measures every task, seed and side in turn, and writes wall_clock.json and .md into `--out` after each."""
    options = parse(argv)
    options.out.mkdir(parents=True)
    sides = [Side("ours", ROOT)] + [Side("sb3", peer="sb3")] * ("sb3" in options.sides)
    result: dict[str, Any] = {**report.about(sides), "limit": options.limit, "tasks": {}}
    for task in options.tasks:
        for seed in options.seeds:
            for side in options.sides:
                run = measure(side, task, seed, options.out / "logs" / f"{task}_{side}_{seed}", options.limit)
                result["tasks"].setdefault(task, {}).setdefault(side, {})[str(seed)] = run
                told = ", ".join(f"{mark} in {reached['seconds']:.1f} s" for mark, reached in run["marks"].items())
                print(f"{task}, seed {seed}, {side}: {told or 'no mark'}; ended after {run['seconds']:.0f} s", flush=True)
                (options.out / "wall_clock.json").write_text(json.dumps(result, indent=1) + "\n")
                (options.out / "wall_clock.md").write_text(f"{chart.footer(result)}\n\n{table(result)}")
    print(f"\n{table(result)}\nin {options.out}")


if __name__ == "__main__":
    with main_guard():
        main()
