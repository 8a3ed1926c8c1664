"""Holds a config against `core/schema.py` and against arithmetic, before anything is built."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pydantic

from core import registry, schema
from core.errors import UserError, nearest
from core.schema import Key, Section

MISSING = "???"  # how Hydra writes a value that must be given


def typed(cfg: dict[str, Any]) -> dict[str, Any]:
    """A copy of an effective config with every value in its type ('3e-4' is a float, 1e6 an int where an int is meant).

    Raises UserError listing every unknown key (with the nearest valid one), wrong value and missing key by its path.
    """
    walk = _Walk(cfg)
    result = walk.mapping(cfg, walk.root, "")
    problems = walk.problems + list(_refused(cfg))
    if problems:
        head = "" if len(problems) == 1 else f"{len(problems)} mistakes in the config:\n  "
        raise UserError(head + "\n  ".join(problems))
    return result


def unread(cfg: dict[str, Any]) -> list[str]:
    """Keys that are accepted because stock rl_games YAMLs carry them, and have no effect: 'path: why'."""
    walk = _Walk(cfg)
    walk.mapping(cfg, walk.root, "")
    return walk.unread


class _Walk:
    """One pass over a config; gathers what it finds."""

    def __init__(self, cfg: dict[str, Any]) -> None:
        self.root = _root(cfg)
        self.problems: list[str] = []
        self.unread: list[str] = []

    def mapping(self, found: Any, section: Section | None, path: str) -> Any:
        if not isinstance(found, Mapping):
            self.problems.append(f"{path} is {found!r}, but must be a section with {_list(section or {}) or 'keys'}")
            return found
        if section is None:
            return dict(found)
        result = {}
        for name, value in found.items():
            place = f"{path}.{name}" if path else str(name)
            if name not in section:
                self.problems.append(f"unknown key '{place}'." + _hint(str(name), path, section, self.root))
            elif not section[name].read:
                self.unread.append(f"{place}: {section[name].meaning}")
                result[name] = value
            else:
                result[section[name].stands_for or name] = self.value(value, section[name], place)
        for name, key in section.items():
            if key.required and name not in result:
                self.problems.append(f"{path}.{name} is missing ({key.meaning})")
        return result

    def value(self, value: Any, key: Key, path: str) -> Any:
        if value == MISSING:
            self.problems.append(f"{path} must be given ({key.meaning})")
            return value
        kind = key.type
        if isinstance(kind, dict | list) or inspect.isfunction(kind):
            if (value is None and key.nullable) or (isinstance(value, str) and value in key.words):
                return value
            if isinstance(kind, dict):
                return self.mapping(value, kind, path)
            if isinstance(kind, list):
                return self.sequence(value, kind[0], path)
            return self.mapping(value, kind(value) if isinstance(value, Mapping) else {}, path)
        try:
            return convert(value, kind)
        except ValueError as error:
            self.problems.append(f"{path} is {value!r}, but {error} ({key.meaning})")
            return value

    def sequence(self, found: Any, section: Section, path: str) -> Any:
        if not isinstance(found, list):
            self.problems.append(f"{path} is {found!r}, but must be a list")
            return found
        return [self.mapping(item, section, f"{path}.{index}") for index, item in enumerate(found)]


def convert(value: Any, kind: Any) -> Any:
    """The value in its annotated type. Raises ValueError saying what it should be."""
    try:
        adapter: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(kind, config={"arbitrary_types_allowed": True})
    except pydantic.PydanticUserError:  # a dataclass or model brings its own config
        adapter = pydantic.TypeAdapter(kind)
    try:
        result = adapter.validate_python(value)
    except pydantic.ValidationError as error:
        told = dict.fromkeys(e["msg"].replace("Input should", "should").removeprefix("Value error, ") for e in error.errors())
        choices = re.findall(r"'([^']*)'", " ".join(str(e.get("ctx", {}).get("expected", "")) for e in error.errors()))
        close = nearest(str(value), choices)
        raise ValueError(" or ".join(told) + (f". Did you mean '{close}'?" if close else "")) from None
    taken_for_one = isinstance(value, bool) and type(result) in (int, float)  # pydantic lets true pass as 1
    if taken_for_one:
        raise ValueError("should be a number")
    return result


def algo_options(entry: registry.AlgoEntry, config: Mapping[str, Any]) -> Any:
    """An instance of the algorithm's dataclass, filled from train.params.config; None if it has none.

    Raises UserError naming the key whose value does not fit, or telling the dataclass's own ValueError.
    """
    if entry.config is None:
        return None
    values = {}
    for name, key in schema.of_dataclass(entry.config).items():
        path = f"train.params.config.{name}"
        if name in config:
            try:
                values[name] = convert(config[name], key.type)
            except ValueError as error:
                raise UserError(f"{path} is {config[name]!r}, but {error} ({key.meaning})") from None
        elif key.required:
            raise UserError(f"{path} is missing ({key.meaning})")
    try:
        return entry.config(**values)
    except ValueError as error:
        raise UserError(f"train.params.config: {error}") from error


# ---- which section stands where ---------------------------------------------------------------------------------------


def _root(cfg: dict[str, Any]) -> Section:
    kind = registry.tasks.get(str(_at(cfg, "task.kind")), "task.kind")
    task = schema.of_task(kind)
    entry = registry.algos.get(str(_at(cfg, "train.params.algo.name")), "train.params.algo.name")
    return {
        **schema.ROOT,
        "task": Key(task if task is not None else schema.Free, "the task", required=True),
        "train": Key(schema.of_train(schema.of_algorithm(entry)), "the algorithm", required=True),
    }


def _at(cfg: dict[str, Any], path: str) -> Any:
    """The value at a path that nothing else can be checked without."""
    place: Any = cfg
    done: list[str] = []
    for name in path.split("."):
        if not isinstance(place, Mapping) or place.get(name) in (None, MISSING):
            close = nearest(name, place) if isinstance(place, Mapping) else None
            raise UserError(
                f"{'.'.join([*done, name])} is missing." + (f" There is '{'.'.join([*done, close])}': is that meant?" if close else "")
            )
        done.append(name)
        place = place[name]
    return place


def _refused(cfg: dict[str, Any]) -> Iterator[str]:
    """Valid keys whose values this version cannot honour."""
    params = cfg["train"]["params"]
    config, network = params.get("config"), params.get("network")
    if cfg.get("record") and not cfg.get("test"):
        yield "record is given, but test is not: episodes of an evaluation are recorded (test=True checkpoint=... record=FILE.npz)"
    if isinstance(config, Mapping):
        if config.get("lr_schedule") == "adaptive" and "kl_threshold" not in config:
            yield "train.params.config.kl_threshold is missing: lr_schedule is 'adaptive' and needs the KL divergence to aim at"
        for part, path in ((config, ""), (config.get("central_value_config"), ".central_value_config")):
            if isinstance(part, Mapping) and "mini_epochs" in part and not {"minibatch_size", "minibatch_size_per_env"} & set(part):
                yield f"train.params.config{path}: minibatch_size or minibatch_size_per_env is missing"
    if isinstance(network, Mapping) and network.get("name") == "rnd_curiosity" and "rnd_curiosity" not in registry.networks:
        yield "train.params.network.name is 'rnd_curiosity', which rl_games 1.6.5 lists but has no code for"


# ---- the nearest valid key ----------------------------------------------------------------------------------------------


def _hint(name: str, path: str, section: Section, root: Section) -> str:
    """' Did you mean ...': the same name elsewhere, else one very close to it (here before elsewhere), else the closest here."""
    elsewhere: dict[str, str] = {}
    for other, place in sorted(_leaves(root, ""), key=lambda leaf: leaf[1].count(".")):
        elsewhere.setdefault(other, place)  # of equal names the outermost is meant
    here = {other: f"{path}.{other}" if path else other for other in section}
    for valid, cutoff in ((elsewhere, 1.0), (here, 0.75), (elsewhere, 0.75), (here, 0.5)):
        close = difflib.get_close_matches(name, valid, n=1, cutoff=cutoff)
        if close:
            return f" Did you mean '{valid[close[0]]}'?"
    return f" Valid here: {_list(section)}" if section else ""


def _leaves(section: Section, path: str) -> Iterator[tuple[str, str]]:
    """(name, full path) of every key below."""
    for name, key in section.items():
        if key.read:
            place = f"{path}.{name}" if path else name
            yield name, place
            if key.type in (schema.network, schema.actor_network):
                yield from _leaves(schema.ACTOR_CRITIC, place)
            elif isinstance(key.type, dict):
                yield from _leaves(key.type, place)


def _list(section: Section) -> str:
    return ", ".join(sorted(name for name, key in section.items() if key.read))


# ---- batch arithmetic -----------------------------------------------------------------------------------------------------


def check_batch(params: dict[str, Any], num_agents: int = 1) -> None:
    """Rows of an epoch must divide into minibatches, and for a recurrent network into sequences.

    Call it once the environment has said how many agents it has. Raises UserError showing the arithmetic and values that work.
    """
    config = params["config"]
    if "horizon_length" not in config:
        return
    recurrent = _has_memory(params.get("network") or {})
    _divide(config, config, num_agents, recurrent, "train.params.config")
    central = config.get("central_value_config")
    if central:
        _divide(central, config, 1, "rnn" in central["network"], "train.params.config.central_value_config")


def _has_memory(network: Mapping[str, Any]) -> bool:
    """By rl_games' key, or because the registered network always has one (its attribute `has_memory`)."""
    name = str(network.get("name"))
    return "rnn" in network or (name in registry.networks and getattr(registry.networks.get(name), "has_memory", False))


def _divide(part: Mapping[str, Any], config: Mapping[str, Any], agents: int, recurrent: bool, path: str) -> None:
    horizon, envs = config["horizon_length"], config["num_actors"]
    rows = horizon * envs * agents
    sequence = config.get("seq_length", 4) if recurrent else 1
    if horizon % sequence:
        raise UserError(
            f"{path}.seq_length: horizon_length {horizon} is not divisible by seq_length {sequence}, and a recurrent network is "
            f"trained on whole sequences. Working values near it: {_near(sequence, horizon, lambda n: horizon % n == 0)}"
        )
    name = "minibatch_size" if "minibatch_size" in part else "minibatch_size_per_env"
    unit = 1 if name == "minibatch_size" else envs
    size = part[name] * unit
    if rows % size == 0 and size % sequence == 0:
        return
    minibatch = f"{name} {part[name]}" + (f" x num_actors {envs} = {size}" if unit > 1 else "")
    if size % sequence:
        what = f"{minibatch} rows are not divisible by seq_length {sequence}"
    else:
        by_agents = f" x {agents} agents" if agents > 1 else ""
        what = f"horizon_length {horizon} x num_actors {envs}{by_agents} = {rows} rows are not divisible by {minibatch}"
    works = _near(part[name], rows // unit, lambda n: rows % (n * unit) == 0 and n * unit % sequence == 0)
    message = f"{path}.{name}: {what}. Working values near it: {works}"
    if name == "minibatch_size" and size % sequence == 0:
        few = _near(envs, 4 * envs + size, lambda n: horizon * agents * n % size == 0)
        message += f"; or, with {name} {size}, num_envs: {few}"
    raise UserError(message)


def _near(wanted: int, highest: int, works: Callable[[int], bool]) -> str:
    """At most six numbers from 1 to `highest` that work, those nearest to `wanted` by ratio, in order."""
    working = [n for n in range(1, highest + 1) if works(n)]
    return ", ".join(str(n) for n in sorted(sorted(working, key=lambda n: max(n / wanted, wanted / n))[:6]))
