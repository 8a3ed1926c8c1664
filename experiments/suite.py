"""Runs what a suite lacks, and says where it stands.

    python -m experiments.suite suite=mujoco algos=[PPO,RPO] seeds=10             # here, as many at a time as the CPUs allow
    python -m experiments.suite suite=mujoco algos=[PPO,RPO] seeds=10 --status    # done, running, failed, left; how long it will take
    python -m experiments.suite suite=my_suite.yaml ray_address=head:6379         # the same on a Ray cluster

The way down: suites.py (the YAML), cells.py (one run each), engine.py (Ray), worker.py and attempt.py (one run), evaluation.py.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field
from rich.console import Console

from core.cli import main_guard
from core.errors import UserError
from core.schema import Count, Natural, NonNegative, Seed, Text
from experiments import board, cells, engine, suites, worker
from experiments.arguments import parse

FLAGS = ("--status", "--retry-failed", "--help")
USAGE = f"""python -m experiments.suite suite=NAME|FILE [key=value ...] [{"] [".join(FLAGS)}]

  suite           a file of cfg/suite ({", ".join(suites.names())}), or a path to one of your own
  algos           files of cfg/train, or the suite's variants: [PPO,RPO] (default: PPO)
  tasks           which of the suite's tasks: [Hopper,Ant] (default: all)
  seeds           how many (0, 1, ...), or which: [3,7] (default: 5)
  frames          replaces the suite's budgets
  runs_dir        default: runs/suites
  cpus_per_run, gpus_per_run      default: 1 and 0; fractions are allowed
  retries         further attempts at a run that failed (default: 2)
  ray_address     a cluster that runs already: host:port, ray://host:port or auto
  --config-dir DIR   as train.py's: train/, task/, tuned/ and suite/ of your own
  --status        only say what is done, running, failed and left
  --retry-failed  try again what failed too often
Every other key=value is train.py's, for all runs. docs/experiments.md says more."""


@dataclasses.dataclass(kw_only=True)
class Options:
    """The command's keys."""

    suite: Text
    algos: Annotated[list[Text], Field(min_length=1)] = dataclasses.field(default_factory=lambda: ["PPO"])
    tasks: Annotated[list[Text], Field(min_length=1)] | None = None
    seeds: Count | Annotated[list[Seed], Field(min_length=1)] = 5
    frames: Count | None = None
    runs_dir: Text = "runs/suites"
    cpus_per_run: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    gpus_per_run: NonNegative = 0.0
    retries: Natural = 2
    ray_address: Text | None = None
    config_dir: Text | None = None

    @property
    def seed_list(self) -> list[int]:
        return list(range(self.seeds)) if isinstance(self.seeds, int) else list(dict.fromkeys(self.seeds))


def main(argv: Sequence[str]) -> int:
    """The exit status: 0 where every run is done, 1 where some are not. Raises UserError for whatever the words ask for that cannot be."""
    if "--help" in argv:
        print(USAGE)
        return 0
    options, overrides, flags = parse(argv, Options, FLAGS)
    if options.config_dir is not None and not Path(options.config_dir).is_dir():
        raise UserError(f"--config-dir: '{options.config_dir}' is not a directory")
    suite = suites.only(suites.load(options.suite, options.config_dir), options.tasks)
    planned = cells.plan(
        suite,
        list(dict.fromkeys(options.algos)),
        options.seed_list,
        options.runs_dir,
        frames=options.frames,
        overrides=overrides,
        config_dir=options.config_dir,
    )
    console = Console()
    if "--status" in flags:
        console.print(board.status([(cell, cell.look(options.retries)) for cell in planned]))
        return 0
    if "--retry-failed" in flags:
        for cell in planned:
            if cell.state(options.retries) == "failed":
                worker.forgive(cell.path)
    return _run(planned, options, console)


def _run(planned: list[cells.Cell], options: Options, console: Console) -> int:
    todo = [cell for cell in planned if cell.state(options.retries) in ("left", "interrupted")]
    console.print(f"{len(planned)} runs: {len(todo)} to do, {len(planned) - len(todo)} not", highlight=False)
    if todo:
        resources = engine.Resources(options.cpus_per_run, options.gpus_per_run)
        with board.Board(planned, options.retries, console) as shown:
            try:
                engine.run(todo, resources, retries=options.retries, address=options.ray_address, on_tick=shown.show, on_stop=shown.say)
            finally:
                shown.show(1)
    rows = [(cell, cell.look(options.retries)) for cell in planned]
    console.print(board.status(rows))
    done = all(seen.state == "done" for _, seen in rows)
    if done:
        algos = ",".join(dict.fromkeys(cell.algo for cell in planned))
        where = "" if options.tasks is None else f" tasks={','.join(dict.fromkeys(cell.task for cell in planned))}"
        where += "" if options.runs_dir == Options.runs_dir else f" runs_dir={options.runs_dir}"
        console.print(f"Next: python -m experiments.report suite={options.suite} algos={algos}{where}", highlight=False, soft_wrap=True)
    elif any(seen.state == "failed" for _, seen in rows):
        console.print("What failed is left alone from now on. Once it is mended: the same command with --retry-failed", highlight=False)
    return 0 if done else 1


if __name__ == "__main__":
    with main_guard():
        status = main(sys.argv[1:])
    sys.exit(status)
