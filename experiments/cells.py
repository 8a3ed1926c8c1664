"""A cell of a suite: one task, one algorithm, one seed. Its key is a hash of what decides its result, its path holds its run."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import train
from core.cli import as_job, read
from core.config import CONFIG_DIR
from core.errors import UserError, unknown
from core.schema import ROOT
from experiments.progress import Progress, look
from experiments.suites import Suite, Variant

# What a run is called, shown, saved or stepped by, and with how many threads; none of it changes what is learned.
NOT_IN_KEY = {
    *("run_dir", "runs_dir", "experiment", "progress", "save_interval", "profile", "video", "video_episodes"),
    *("test", "checkpoint", "resume", "file", "player", "observers"),
    *(name for name in ROOT if name.startswith("wandb")),
    *("train.params.torch_threads", "task.num_threads", "task.num_workers"),
}
GIVEN_BY_SUITE = {
    "task": "the suite's tasks",
    "train": "algos=",
    "seed": "seeds=",
    "max_frames": "frames=",
    "run_dir": "runs_dir=",
    "resume": "nothing: an interrupted run is gone on with",
    "test": "nothing: every run is evaluated",
    "checkpoint": "nothing: every run starts anew",
    "file": "algos=: put the YAML into cfg/train",
    "player": "the suite's evaluation",
}


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of a suite.

    task, algo: labels; `config`: what train.py resolves the overrides to; `overrides`: train.py's arguments that make it; `passing`:
    further ones that do not change the result; `key`: ten hex digits; `path`: its run directory.
    """

    suite: str
    task: str
    algo: str
    seed: int
    frames: int
    protocol: dict[str, Any]
    overrides: tuple[str, ...]
    passing: tuple[str, ...]
    config: dict[str, Any]
    key: str
    path: Path

    @property
    def name(self) -> str:
        return f"{self.task} {self.algo} seed {self.seed}"

    def state(self, retries: int = 2) -> str:
        """One of `progress.STATES`."""
        return self.look(retries).state

    def look(self, retries: int = 2) -> Progress:
        return look(self.path, self.protocol, retries)

    def record(self) -> dict[str, Any]:
        """What cell.json says of it, beside `attempts` and `errors`."""
        head = {"suite": self.suite, "task": self.task, "algo": self.algo, "seed": self.seed, "key": self.key, "frames": self.frames}
        return {**head, "overrides": list(self.overrides), "evaluation": self.protocol}


def plan(
    suite: Suite,
    algos: Sequence[str],
    seeds: Sequence[int],
    runs_dir: str | Path,
    *,
    frames: int | None = None,
    overrides: Sequence[str] = (),
    config_dir: str | Path | None = None,
) -> list[Cell]:
    """Every cell of the suite, task by task and seed by seed, so that the first seed of every algorithm is done early.

    frames replaces the suite's budgets; overrides go to every run, on top of the suite's, the task's and the variant's. `config_dir`: a
    directory with `task/`, `train/` and `tuned/` beside the shipped ones. Each pair is composed and checked here, so that a mistake is told
    before anything runs: raises UserError for an unknown task or algorithm (with the nearest) and for whatever train.py refuses.
    """
    _check_given([*suite.overrides, *overrides], "an override of every run")
    pairs = [(label, task, algo) for label, task in suite.tasks.items() for algo in algos]
    result = []
    for label, task, algo in pairs:
        _known("task", task.task, config_dir, f"tasks.{label}.task")
        variant = _variant(suite, algo, config_dir)
        _check_given([*task.overrides, *variant.overrides], f"an override of '{label}' or '{algo}'")
        budget = frames or task.frames
        given = [*suite.overrides, *task.overrides, *variant.overrides, *overrides]
        changing = [word for word in given if not _passes(word)]
        passing = [word for word in given if _passes(word)]
        base = [*_where(config_dir), f"task={task.task}", f"train={variant.train}", *changing, f"max_frames={budget}"]
        config = resolve([*base, *passing, "seed=0"], f"{label} with {algo}")
        for seed in seeds:
            own = copy.deepcopy(config)
            own["seed"] = seed
            key = config_key(own)
            path = Path(runs_dir) / suite.name / label / algo / f"seed{seed}-{key}"
            result.append(
                Cell(
                    suite=suite.name,
                    task=label,
                    algo=algo,
                    seed=seed,
                    frames=budget,
                    protocol=suite.protocol.model_dump(),
                    overrides=(*base, f"seed={seed}"),
                    passing=(*_identity(suite.name, label, algo, seed), *passing),
                    config=own,
                    key=key,
                    path=path.resolve(),
                )
            )
    return sorted(result, key=lambda cell: list(seeds).index(cell.seed))


def resolve(words: Sequence[str], what: str) -> dict[str, Any]:
    """The checked config that `train.py WORDS` would run with. Raises UserError naming `what` it is for."""
    try:
        _, composed = read(list(words))
        if composed is None:
            raise UserError("a suite's runs take neither hydra.* keys nor Hydra's flags")
        return train.resolved(as_job(composed))
    except UserError as error:
        raise UserError(f"{what}: {error}") from error


def config_key(config: Mapping[str, Any]) -> str:
    """The first ten hex digits of a hash of the resolved config, seed included, without what does not change results.

    Keys without a value do not count, so that a new optional one leaves old runs what they are; nor do the folders in which `modules`
    lie, nor which of several GPUs it is.
    """
    content = json.dumps(_canonical(config, ""), sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()[:10]


def _canonical(value: Any, path: str) -> Any:
    if isinstance(value, Mapping):
        inner = {str(name): (f"{path}.{name}" if path else str(name), item) for name, item in value.items()}
        return {name: _canonical(item, place) for name, (place, item) in inner.items() if item is not None and place not in NOT_IN_KEY}
    if path == "modules":
        return [Path(name).name if name.endswith(".py") else name for name in value]
    if path in ("device", "train.params.config.device", "train.params.config.device_name"):
        return str(value).split(":")[0]
    if isinstance(value, list | tuple):
        return [_canonical(item, path) for item in value]
    return value


def _passes(word: str) -> bool:
    key = word.lstrip("+~").split("=")[0]
    return any(key == name or key.startswith(f"{name}.") for name in NOT_IN_KEY)


def _check_given(overrides: Iterable[str], what: str) -> None:
    for word in overrides:
        key = word.lstrip("+~").split("=")[0]
        if key in GIVEN_BY_SUITE:
            raise UserError(f"'{word}' cannot be {what}: it is given by {GIVEN_BY_SUITE[key]}")


def _variant(suite: Suite, algo: str, config_dir: str | Path | None) -> Variant:
    if algo in suite.variants:
        variant = suite.variants[algo]
        _known("train", variant.train, config_dir, f"variants.{algo}.train")
        return variant
    shipped = _options("train", config_dir)
    if algo not in shipped:
        raise unknown("algorithm", algo, [*suite.variants, *shipped], "algos=")
    return Variant(train=algo)


def _known(group: str, name: str, config_dir: str | Path | None, where: str) -> None:
    valid = _options(group, config_dir)
    if name not in valid:
        raise unknown("task" if group == "task" else "algorithm", name, valid, where)


def _options(group: str, config_dir: str | Path | None) -> list[str]:
    folders = [Path(folder) / group for folder in (config_dir, CONFIG_DIR) if folder is not None]
    return sorted({path.stem for folder in folders for path in folder.glob("*.yaml")} - {"from_train"})


def _where(config_dir: str | Path | None) -> list[str]:
    return [] if config_dir is None else ["--config-dir", str(Path(config_dir).resolve())]


def _identity(suite: str, task: str, algo: str, seed: int) -> list[str]:
    """How W&B groups the run; TensorBoard does so by directories."""
    tags = ", ".join(f"'{tag}'" for tag in (suite, task, algo, f"seed{seed}"))
    return [f"wandb_group={suite}/{task}/{algo}", "wandb_job_type=train", f"wandb_tags=[{tags}]"]
