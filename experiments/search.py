"""What a sweep and a population share: the command line, the directory that the same command goes on with, and Ray Tune set up quietly."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import logging
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

import train
from core import ray_local, schema
from core.cli import as_job, main_guard, read
from core.config import GROUPS, to_params
from core.errors import UserError, unknown
from core.run_dir import write_json
from core.validate import convert
from experiments import space

Options = TypeVar("Options")
STATE = "tune"  # below a search's directory: Ray Tune's own files


@dataclasses.dataclass(frozen=True)
class Base:
    """The runs that a search varies. words: train.py's, absolute where they name files; cfg: what they resolve to; label: <task>-<train>;
    config_dir: of `--config-dir`; frames: the budget of a run."""

    words: list[str]
    cfg: dict[str, Any]
    label: str
    config_dir: Path | None
    frames: int


# ---- the command line -------------------------------------------------------------------------------------------------------


def parse(argv: list[str], options: type[Options]) -> tuple[Options, list[str]]:
    """The search's own keys, as an instance of the dataclass `options`, and the words left, which are train.py's.

    Raises UserError for a value that a key cannot take, for a missing key, and for a word that belongs to neither (with the nearest).
    """
    keys = schema.of_dataclass(options)
    own: dict[str, Any] = {}
    rest: list[str] = []
    words = iter(argv)
    for word in words:
        if word in ("--config-dir", "-cd"):
            rest += ["--config-dir", str(Path(next(words, "")).resolve())]
            continue
        name, equals, value = word.partition("=")
        if not equals and not name.startswith("~"):
            raise UserError(f"'{word}' is not key=value. The search's own keys: {', '.join(keys)}; others are train.py's")
        if name in keys:
            own[name] = _value(value, keys[name].type)
        else:
            _check_word(name, keys)
            rest.append(word)
    for name, key in keys.items():
        if name in own:
            try:
                own[name] = convert(own[name], key.type)
            except ValueError as error:
                raise UserError(f"{name} is {own[name]!r}, but {error}") from None
        elif key.required:
            raise UserError(f"{name}= is missing")
    return options(**own), rest


def _value(text: str, kind: Any) -> Any:
    """The word in its type as train.py reads it (1e6, 100_000, null, true), and text as it stands."""
    if str in (kind, *getattr(kind, "__args__", ())):
        return None if text == "null" else text
    with contextlib.suppress(HydraException):
        return OverridesParser.create().parse_override(f"key={text}").value()
    return text


def _check_word(name: str, own: Mapping[str, Any]) -> None:
    bare = name.lstrip("+~")
    if "." in bare or "@" in bare or "/" in bare:
        return  # the schema knows
    if bare in space.OF_THE_SEARCH:
        hint = {"max_frames": "frames=", "experiment": "name="}.get(bare)
        raise UserError(f"'{bare}' is given by the search itself" + (f": the key here is {hint}" if hint else ""))
    if bare not in (*GROUPS, *schema.ROOT):
        raise unknown("key", bare, [*own, *GROUPS, *schema.ROOT])


def base(rest: list[str], frames: int | None) -> Base:
    """What train.py's words resolve to. Raises UserError as train.py does, and where no budget is given."""
    _, composed = read([*rest, "progress=off"])
    if composed is None:
        raise UserError("a search's runs take neither hydra.* keys nor Hydra's flags")
    cfg = train.resolved(as_job(composed))
    chosen = HydraConfig.get().runtime.choices
    budget = frames or to_params(cfg)["config"].get("max_frames") or -1
    if budget <= 0:
        raise UserError("frames= is missing: the train config sets no max_frames")
    config_dir = Path(rest[rest.index("--config-dir") + 1]) if "--config-dir" in rest else None
    rest = [*rest, f"modules=[{','.join(cfg['modules'])}]"] if cfg["modules"] else rest  # with absolute paths: the last one counts
    return Base(rest, cfg, f"{chosen['task']}-{chosen['train']}", config_dir, int(budget))


def told(values: Mapping[str, Any]) -> str:
    """'learning_rate 0.0012, units [64, 64]': a trial's values for a line of a table."""
    shown = {key.rpartition(".")[2]: value for key, value in values.items() if key != "job"}
    return ", ".join(f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in shown.items())


def command(module: str) -> str:
    """The command line that started this, ready to paste."""
    return shlex.join(["python", "-m", module, *sys.argv[1:]])


# ---- its directory ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def directory(path: Path, settings: dict[str, Any]) -> Iterator[bool]:
    """Makes the search's directory, or goes on in it; yields whether there is something to go on with.

    `settings`: all that decides what the search does. Raises UserError where the directory holds another search's, naming the differences,
    where somebody else's files are in it, and where another process is at work in it.
    """
    file = path / "search.json"
    if path.exists() and not file.exists() and any(path.iterdir()):
        raise UserError(f"'{path}' holds something that is no search; name another one: name=...")
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = (path / ".lock").open("w")
    except OSError as error:
        raise UserError(f"cannot write '{path}': {error.strerror or error}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # until this process ends, however it does
        except OSError as error:
            raise UserError(f"'{path}' is being searched by another process") from error
        settings = json.loads(json.dumps(settings))
        if file.exists():
            _check_same(path, json.loads(file.read_text()), settings)
        begun = file.exists() and any((path / STATE).glob("experiment_state-*.json"))
        if not begun:
            shutil.rmtree(path / STATE, ignore_errors=True)
            write_json(file, settings)
        yield begun


def _check_same(path: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if names:
        told = "; ".join(f"{name} was {before.get(name)!r}, now {now.get(name)!r}" for name in names)
        raise UserError(
            f"'{path}' was begun with other settings ({told}). Give them again to go on with it, or begin another one: name=..."
        )


# ---- Ray Tune ---------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def tune_running(address: str | None, cpus: float, gpus: float) -> Iterator[None]:
    """Ray with its Tune, told to be quiet and to write its state every second or two. Raises UserError for an address that does not answer,
    and where no machine has what one run asks for, for which Ray would wait for ever."""
    os.environ.update(
        TUNE_DISABLE_AUTO_CALLBACK_LOGGERS="1",  # a run has its own files
        TUNE_DISABLE_STRICT_METRIC_CHECKING="1",  # a failed run has no return
        TUNE_GLOBAL_CHECKPOINT_S="1",
        TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S="0",
        TUNE_PRINT_ALL_TRIAL_ERRORS="0",
        RAY_AIR_NEW_OUTPUT="0",  # its tables; verbose=0 silences the old ones only
        RAY_CHDIR_TO_TRIAL_DIR="0",
    )
    ray = ray_local.start({"address": address} if address else {"include_dashboard": False})
    try:
        for name, level in (("ray", logging.ERROR), ("ray.tune.tune", logging.CRITICAL)):
            logging.getLogger(name).setLevel(level)
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if not any(node.get("CPU", 0) >= cpus and node.get("GPU", 0) >= gpus for node in nodes):
            has = ", ".join(f"{max(node.get(name, 0) for node in nodes):g} {name}s" for name in ("CPU", "GPU"))
            raise UserError(f"a trial asks for cpus_per_trial={cpus:g} and gpus_per_trial={gpus:g}, but the largest machine has {has}")
        yield
    finally:
        ray_local.stop()


def fit(folder: Path, begun: bool, trainable: Any, arguments: dict[str, Any], run: dict[str, Any]) -> Any:
    """Runs a `Tuner(trainable, **arguments)`, or goes on with the one that was begun. Returns Tune's results."""
    from ray import tune

    if begun:
        tuner = tune.Tuner.restore(str(folder / STATE), trainable=trainable)
    else:
        run_config = tune.RunConfig(storage_path=str(folder), name=STATE, verbose=0, **run)
        tuner = tune.Tuner(trainable, run_config=run_config, **arguments)
    return tuner.fit()


def name(what: str, number: int) -> str:
    """trial_0001, trial_0002, ...: of a trial and of its directory."""
    return f"{what}_{number:04}"


def numbered(what: str) -> Callable[[Any], str]:
    """Names Tune's trials by the number that their tags begin with."""
    return lambda trial: name(what, int(trial.experiment_tag.split("_")[0]))


def with_threads(base: Base, cpus: float) -> list[str]:
    """train.py's words, with as many threads as a trial has CPUs, unless they say otherwise."""
    given = "torch_threads" in base.cfg["train"]["params"]
    return base.words if given else [*base.words, f"train.params.torch_threads={max(1, int(cpus))}"]


def main(usage: str | None, run: Callable[[list[str]], Any]) -> None:
    """Of both commands: `run` with the command line's words, or the usage."""
    if {"--help", "-h"} & set(sys.argv[1:]):
        print(usage)
        return
    with main_guard():
        run(sys.argv[1:])
