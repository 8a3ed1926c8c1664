"""Searches hyperparameters with Optuna, stops bad trials early with ASHA, and writes the best one as a tuned pair.

    python -m experiments.sweep train=PPO task=HalfCheetah space=ppo trials=64 frames=1_000_000

The same command again goes on where it was stopped. Keys, files and how to read the result: docs/sweep.md.
"""

from __future__ import annotations

import csv
import dataclasses
import math
import os
import shlex
import warnings
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from core.config import CONFIG_DIR
from core.errors import UserError
from core.schema import Count, Natural, NonNegative, Positive, Seed, Text
from experiments import search, space, tuned
from experiments.space import Knob

SHOWN = 10  # trials in the table
HOPELESS = 5  # trials that fail before any succeeds


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """The sweep's own keys; every other word is train.py's."""

    space: Text
    trials: Count
    frames: Count | None = None  # of a trial; null: as the train config says
    grace: Count | None = None  # frames that every trial gets; null: a tenth
    reduction: Annotated[float, Field(gt=1)] = 3  # of the trials, one in so many passes each rung
    seeds_per_trial: Count = 1
    seed: Seed = 0  # of the search, and the first of each trial's
    metric: Text = "return_mean"
    mode: Literal["max", "min"] = "max"
    cpus_per_trial: Positive = 1
    gpus_per_trial: NonNegative = 0
    retries: Natural = 2
    ray_address: Text | None = None
    name: Text | None = None  # of its directory; null: <Task>-<Algo>-<space>
    runs_dir: Text = "runs/sweeps"
    tuned_dir: Text | None = None  # null: cfg/tuned, or tuned/ below --config-dir
    overwrite: bool = False  # a tuned pair that is there


@dataclasses.dataclass(frozen=True)
class Row:
    """A trial. status: done, stopped (by ASHA), failed, unfinished; value: of the metric, at its last report."""

    trial: str
    status: str
    value: float | None
    frames: int
    seconds: float
    values: dict[str, Any]
    error: str = ""


def run(argv: list[str]) -> list[Row]:
    """Searches, prints, writes results.csv and the tuned pair. Returns the trials, the best first. Raises UserError before anything is
    started for what cannot work, and afterwards where no trial came to a result; KeyboardInterrupt where it was stopped."""
    options, rest = search.parse(argv, Options)
    base = search.base(rest, options.frames)
    path = space.find(options.space)
    knobs = space.load(path, base.cfg)
    _check_not_given(knobs, rest, path)
    grace = options.grace or max(1, base.frames // 10)
    if grace > base.frames:
        raise UserError(f"grace is {grace:,}, but a trial has {base.frames:,} frames")
    folder = Path(options.runs_dir).resolve() / (options.name or f"{base.label}-{path.stem}")
    same = ("trials", "reduction", "seeds_per_trial", "seed", "metric", "mode")
    settings = {name: getattr(options, name) for name in same} | {"words": base.words, "frames": base.frames, "grace": grace}
    settings["space"] = [dataclasses.asdict(knob) for knob in knobs]
    with search.directory(folder, settings) as begun:
        with search.tune_running(options.ray_address, options.cpus_per_trial, options.gpus_per_trial):
            rows = _search(options, base, knobs, grace, folder, begun)
        rows = sorted(rows, key=lambda row: _rank(row, options.mode))
        _write_csv(folder / "results.csv", rows, knobs, options.metric)
        print_table(rows, options, len(rows))
        print(f"all trials: {folder / 'results.csv'}")
        hopeless = bool(rows) and all(row.status == "failed" for row in rows)
        if any(row.status == "unfinished" for row in rows) or (len(rows) < options.trials and not hopeless):
            print("stopped before its end; the same command goes on")
            raise KeyboardInterrupt
        if not _counts(rows[0]):
            reason = next((row.error for row in rows if row.error), "no episode ended")
            raise UserError(f"no trial came to a result, e.g. {rows[0].trial}: {reason}. To begin anew after mending it: rm -r {folder}")
        _write_tuned(options, base, folder, rows)
    return rows


def _search(options: Options, base: search.Base, knobs: list[Knob], grace: int, folder: Path, begun: bool) -> list[Row]:
    import optuna
    from ray import tune
    from ray.tune.search.optuna import OptunaSearch

    from experiments.progress_lines import TrialLines
    from experiments.schedulers import Hopeless, RestoredASHA
    from experiments.trial import TrainTrial

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # A trial that goes on after a kill reports from its last checkpoint on, and so some steps again, whose values Optuna has.
    warnings.filterwarnings("ignore", message="The reported value is ignored because this `step=", category=UserWarning)
    aim: dict[str, Any] = {"metric": options.metric, "mode": options.mode}
    job = {
        "folder": str(folder),
        "words": search.with_threads(base, options.cpus_per_trial),
        "cwd": os.getcwd(),
        "frames": base.frames,
        "metric": options.metric,
        "seeds": list(range(options.seed, options.seed + options.seeds_per_trial)),
        "retries": options.retries,
    }
    distributions = OptunaSearch.convert_search_space({knob.key: knob.domain() for knob in knobs})
    tune_config = tune.TuneConfig(
        num_samples=options.trials,
        search_alg=OptunaSearch(space=distributions, seed=options.seed, **aim),
        scheduler=RestoredASHA(time_attr="frames", max_t=base.frames, grace_period=grace, reduction_factor=options.reduction, **aim),
        trial_name_creator=search.numbered("trial"),
        trial_dirname_creator=search.numbered("trial"),
    )
    results = search.fit(
        folder,
        begun,
        tune.with_resources(TrainTrial, {"cpu": options.cpus_per_trial, "gpu": options.gpus_per_trial}),
        {"param_space": {"job": job}, "tune_config": tune_config},
        {
            "stop": Hopeless(min(HOPELESS, options.trials)),
            "callbacks": [TrialLines(options.trials, options.metric)],
            "failure_config": tune.FailureConfig(max_failures=options.retries),
            "checkpoint_config": tune.CheckpointConfig(checkpoint_at_end=False),  # a run has its own
        },
    )
    return [_row(result, options.metric) for result in results]


def _row(result: Any, metric: str) -> Row:
    told = result.metrics or {}
    values = {key: value for key, value in (result.config or {}).items() if key != "job"}
    value = told.get(metric)
    error = told.get("failed", "")
    if error or result.error is not None:
        status = "failed"
        error = error or str(result.error).strip().splitlines()[-1]
    elif told.get("ended"):
        status = "done"
    else:
        status = "stopped" if told.get("done") else "unfinished"
    known = value is not None and math.isfinite(value)
    return Row(Path(result.path).name, status, value if known else None, told.get("frames", 0), told.get("seconds", 0.0), values, error)


def _counts(row: Row) -> bool:
    return row.status in ("done", "stopped") and row.value is not None


def _rank(row: Row, mode: str) -> tuple[bool, float, str]:
    value = row.value if row.value is not None else 0.0
    return not _counts(row), -value if mode == "max" else value, row.trial


def _check_not_given(knobs: list[Knob], rest: list[str], path: Path) -> None:
    given = {word.lstrip("+~").partition("=")[0] for word in rest}
    for knob in knobs:
        if knob.key in given:
            raise UserError(f"space '{path}': {knob.key} is searched, but given on the command line too")


# ---- what it leaves ---------------------------------------------------------------------------------------------------------


def _write_csv(path: Path, rows: list[Row], knobs: list[Knob], metric: str) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["trial", "status", metric, "frames", "seconds", *(knob.key for knob in knobs), "error"])
        for row in rows:
            values = [row.values.get(knob.key) for knob in knobs]
            table.writerow([row.trial, row.status, row.value, row.frames, round(row.seconds, 1), *values, row.error])


def print_table(rows: list[Row], options: Options, total: int, console: Console | None = None) -> None:
    """The best trials: value, frames and what each was run with."""
    table = Table(title=f"the best of {total} trials", title_justify="left")
    for head in ("trial", "status", options.metric, "frames"):
        table.add_column(escape(head), justify="left" if head in ("trial", "status") else "right", no_wrap=True)
    table.add_column("values", overflow="fold")
    for row in [row for row in rows if _counts(row)][:SHOWN]:
        cells = [row.trial, row.status, f"{row.value:.1f}", f"{row.frames:,}", search.told(row.values)]
        table.add_row(*(escape(cell) for cell in cells))
    (console or Console()).print(table)
    for row in [row for row in rows if row.status == "failed"][:SHOWN]:
        print(f"{row.trial} failed: {row.error}")


def _write_tuned(options: Options, base: search.Base, folder: Path, rows: list[Row]) -> None:
    best = rows[0]
    run_dir = folder / best.trial
    run_dir = run_dir if options.seeds_per_trial == 1 else run_dir / f"seed{options.seed}"
    config = yaml.safe_load((run_dir / "config.yaml").read_text())
    where = [] if base.config_dir is None else ["--config-dir", str(base.config_dir)]
    modules = [word for word in base.words if word.startswith("modules=")]
    task, _, algo = base.label.partition("-")
    pair = [*where, *modules[-1:], f"task={task}", f"train={algo}"]
    plain = search.base([*pair, "~tuned"], base.frames).cfg
    seeds = f"{options.seeds_per_trial} seed{'s' if options.seeds_per_trial > 1 else ''} each"
    counts = {name: sum(row.status == name for row in rows) for name in ("done", "stopped", "failed")}
    comments = [
        f"{base.label.replace('-', ' with ', 1)}, found by: {search.command('experiments.sweep')}",
        f"{len(rows)} trials ({counts['done']} to the end, {counts['stopped']} stopped early, {counts['failed']} failed), {seeds}, "
        f"{base.frames:,} frames; {best.trial} had the best {options.metric}: {best.value:.1f}.",
    ]
    shipped = CONFIG_DIR / "tuned"
    own = base.config_dir is not None and not (shipped / f"{base.label}.yaml").exists()  # of two, Hydra takes the shipped one
    target = Path(options.tuned_dir or (base.config_dir / "tuned" if base.config_dir and own else shipped))
    path, counts_now = tuned.write(target, base.label, config, plain, comments, options.overwrite)
    if counts_now:
        print(f"the best, as a tuned pair: {path}\n{shlex.join(['python', 'train.py', *pair])}\nuses it by itself")
    else:
        there = path.with_suffix("")
        print(f"the best: {path}\n{there} was there before and still counts; overwrite=true replaces it, or: mv {path} {there}")


if __name__ == "__main__":
    search.main(__doc__, run)
