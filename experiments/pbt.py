"""Population-based training: members train in step, and after every interval the worst go on as changed copies of the best.

    python -m experiments.pbt train=PPO task=Ant population=8 interval=100_000 frames=2_000_000

The same command again goes on where it was stopped. Keys, files and how to read the result: docs/sweep.md. Jaderberg et al. 2017,
https://arxiv.org/abs/1711.09846; Ray Tune's PopulationBasedTraining does the choosing.
"""

from __future__ import annotations

import csv
import dataclasses
import math
import os
import random
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from algos.agent import Agent
from algos.options import AgentOptions
from core import registry, schema
from core.errors import UserError, nearest
from core.evaluation import eval_command
from core.schema import Count, Natural, NonNegative, Positive, Seed, Text
from experiments import search, space
from experiments.member import history
from experiments.space import Knob

CONFIG = "train.params.config."
# What a resumed agent takes from its config, and neither from its checkpoint nor at building its networks.
CHANGEABLE = (
    *("learning_rate", "kl_threshold", "entropy_coef", "e_clip", "gamma", "tau"),
    *("critic_coef", "grad_norm", "bounds_loss_coef", "mini_epochs"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """The population's own keys; every other word is train.py's."""

    population: Annotated[int, Field(ge=2)]
    space: Text | None = None  # null: the shipped one that fits the run's lr_schedule
    interval: Count = 100_000  # frames between two choices
    frames: Count | None = None  # of a member; null: as the train config says
    quantile: Annotated[float, Field(gt=0, le=0.5)] = 0.25  # of the members that are replaced, and that are copied
    resample: Annotated[float, Field(ge=0, le=1)] = 0.25  # how often a value is drawn anew instead of changed
    seed: Seed = 0  # of the search, and of the first member; the others get the following ones
    metric: Text = "return_mean"
    mode: Literal["max", "min"] = "max"
    cpus_per_trial: Positive = 1
    gpus_per_trial: NonNegative = 0
    retries: Natural = 2
    ray_address: Text | None = None
    name: Text | None = None  # of its directory; null: <Task>-<Algo>-<space>
    runs_dir: Text = "runs/pbt"


def run(argv: list[str]) -> list[dict[str, Any]]:
    """Trains the population, prints, and writes schedule.csv. Returns the last interval of each member, the best first. Raises UserError
    before anything is started for what cannot work, and afterwards where no member came to a result; KeyboardInterrupt where stopped."""
    options, rest = search.parse(argv, Options)
    base = search.base(rest, options.frames)
    path = space.find(options.space or shipped_space(base.cfg))
    knobs = space.load(path, base.cfg)
    check_changeable(knobs, base.cfg, path)
    if options.interval > base.frames:
        raise UserError(f"interval is {options.interval:,}, but a member has {base.frames:,} frames: nothing would ever be chosen")
    folder = Path(options.runs_dir).resolve() / (options.name or f"{base.label}-{path.stem}")
    same = ("population", "interval", "quantile", "resample", "seed", "metric", "mode")
    settings = {name: getattr(options, name) for name in same} | {"words": base.words, "frames": base.frames}
    settings["space"] = [dataclasses.asdict(knob) for knob in knobs]
    with search.directory(folder, settings) as begun:
        with search.tune_running(options.ray_address, options.cpus_per_trial, options.gpus_per_trial):
            _train(options, base, knobs, folder, begun)
        rows = [row for number in range(options.population) for row in history(folder / search.name("member", number))]
        _write_schedule(folder / "schedule.csv", rows)
        last = sorted({row["member"]: row for row in rows}.values(), key=lambda row: _rank(row, options.mode))
        intervals = math.ceil(base.frames / options.interval)
        _finish(last, [key.key for key in knobs], folder, options, intervals)
    return last


def shipped_space(cfg: dict[str, Any]) -> str:
    """The name of the space for runs that `cfg` describes: what steers the learning rate depends on its schedule."""
    return "ppo_pbt_adaptive" if cfg["train"]["params"]["config"].get("lr_schedule") == "adaptive" else "ppo_pbt"


def check_changeable(knobs: list[Knob], cfg: dict[str, Any], path: Path) -> None:
    """Raises UserError for a key that an agent cannot change while it runs, with those that it can; and for one without effect."""
    entry = registry.algos.get(cfg["train"]["params"]["algo"]["name"], "train.params.algo.name")
    if not issubclass(entry.cls, Agent):
        raise UserError(f"algorithm '{entry.name}' cannot take part: pbt changes the hyperparameters of algorithms over algos.agent.Agent")
    config = cfg["train"]["params"]["config"]
    own = set(schema.of_dataclass(entry.config)) - set(schema.of_dataclass(AgentOptions)) if entry.config else set()
    valid = [f"{CONFIG}{name}" for name in (*CHANGEABLE, *sorted(own))]
    for knob in knobs:
        if knob.key not in valid:
            close = nearest(knob.key, valid)
            hint = f" Did you mean '{close}'?" if close else ""
            raise UserError(f"space '{path}': a running agent cannot change {knob.key}.{hint} It can change: {', '.join(valid)}")
    searched = {knob.key.removeprefix(CONFIG) for knob in knobs}
    schedule = config.get("lr_schedule")
    if schedule == "adaptive" and "learning_rate" in searched:
        raise UserError(
            f"space '{path}': {CONFIG}learning_rate has no lasting effect while {CONFIG}lr_schedule is 'adaptive', which sets it by "
            f"kl_threshold: search that, or add {CONFIG}lr_schedule=constant"
        )
    if schedule != "adaptive" and "kl_threshold" in searched:
        raise UserError(
            f"space '{path}': {CONFIG}kl_threshold has no effect while {CONFIG}lr_schedule is '{schedule}': search learning_rate, "
            f"or add {CONFIG}lr_schedule=adaptive"
        )
    if "grad_norm" in searched and not config.get("truncate_grads"):
        raise UserError(f"space '{path}': {CONFIG}grad_norm has no effect while {CONFIG}truncate_grads is not true")


def _train(options: Options, base: search.Base, knobs: list[Knob], folder: Path, begun: bool) -> None:
    from ray import tune

    from experiments.member import Member
    from experiments.progress_lines import MemberLines
    from experiments.schedulers import Hopeless, RestoredPBT

    job = {
        "folder": str(folder),
        "words": search.with_threads(base, options.cpus_per_trial),
        "cwd": os.getcwd(),
        "frames": base.frames,
        "interval": options.interval,
        "metric": options.metric,
        "mode": options.mode,
        "seed": options.seed,
    }
    random.seed(options.seed)  # Tune draws its changes from these two
    np.random.seed(options.seed)
    scheduler = RestoredPBT(
        time_attr="training_iteration",
        perturbation_interval=1,
        metric="score",
        mode=options.mode,
        hyperparam_mutations={knob.key: list(knob.texts) if knob.kind == "choice" else knob.domain() for knob in knobs},
        custom_explore_fn=Within(knobs),
        quantile_fraction=options.quantile,
        resample_probability=options.resample,
        synch=True,
    )
    tune_config = tune.TuneConfig(
        num_samples=options.population,
        scheduler=scheduler,
        reuse_actors=True,
        trial_name_creator=search.numbered("member"),
        trial_dirname_creator=search.numbered("member"),
    )
    search.fit(
        folder,
        begun,
        tune.with_resources(Member, {"cpu": options.cpus_per_trial, "gpu": options.gpus_per_trial}),
        {"param_space": {"job": job, **{knob.key: knob.domain() for knob in knobs}}, "tune_config": tune_config},
        {
            "stop": Hopeless(options.population),
            "callbacks": [MemberLines()],
            "failure_config": tune.FailureConfig(max_failures=options.retries),
            "checkpoint_config": tune.CheckpointConfig(num_to_keep=4),  # others may still have to copy an older one
        },
    )


class Within:
    """Keeps what a mutation makes of each value within the space."""

    def __init__(self, knobs: list[Knob]) -> None:
        self._knobs = knobs

    def __call__(self, config: dict[str, Any]) -> dict[str, Any]:
        return {**config, **{knob.key: knob.clipped(config[knob.key]) for knob in self._knobs}}


def _rank(row: dict[str, Any], mode: str) -> tuple[bool, float]:
    known = row["score"] is not None and math.isfinite(row["score"])
    return not known, (-row["score"] if mode == "max" else row["score"]) if known else 0.0


# ---- what it leaves ---------------------------------------------------------------------------------------------------------


def _write_schedule(path: Path, rows: list[dict[str, Any]]) -> None:
    """One line per interval and member, in order."""
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, fieldnames=list(rows[0]) if rows else ["interval"])
        table.writeheader()
        table.writerows(sorted(rows, key=lambda row: (row["interval"], row["member"])))


def _finish(last: list[dict[str, Any]], keys: list[str], folder: Path, options: Options, intervals: int) -> None:
    table = Table(
        title=f"{options.population} members, {max((row['interval'] for row in last), default=0)} of {intervals} intervals",
        title_justify="left",
    )
    for head in ("member", options.metric, "frames"):
        table.add_column(escape(head), justify="right", no_wrap=True)
    table.add_column("values", overflow="fold")
    for row in last:
        values = search.told({key: row[key] for key in keys})
        table.add_row(f"{row['member']:04}", row["failed"] or f"{row['score']:.1f}", f"{row['frames']:,}", escape(values))
    Console().print(table)
    print(f"what each member did in each interval: {folder / 'schedule.csv'}")
    failed = bool(last) and all(row["failed"] for row in last)
    if not failed and (len(last) < options.population or min(row["interval"] for row in last) < intervals):
        print("stopped before its end; the same command goes on")
        raise KeyboardInterrupt
    if _rank(last[0], options.mode)[0]:
        reason = last[0]["failed"] or "no episode ended, give a longer interval="
        raise UserError(f"no member came to a result: {reason}. To begin anew after mending it: rm -r {folder}")
    best = folder / search.name("member", last[0]["member"])
    played = next(path for path in (best / "nn" / "best.pth", best / "nn" / "last.pth") if path.exists())
    print(f"the best member: {best}\nits last values: {search.told({key: last[0][key] for key in keys})}")
    print(f"evaluate it:\n{eval_command(str(played))}")


if __name__ == "__main__":
    search.main(__doc__, run)
