"""Search spaces: a YAML whose keys are Hydra's own key paths and whose values are distributions, held against the schema.

train.params.config.learning_rate: {loguniform: [1e-5, 1e-2]}
train.params.config.horizon_length: {choice: [32, 64, 128]}
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from core.config import CONFIG_DIR, check, unread
from core.errors import UserError, nearest, unknown

# What each distribution takes; Ray Tune's names and meaning.
ARGUMENTS = {
    "uniform": "[low, high]",
    "loguniform": "[low, high] above 0",
    "quniform": "[low, high, step]",
    "randint": "[low, high] of whole numbers, high left out",
    "lograndint": "[low, high] of whole numbers above 0, high left out",
    "choice": "a list of values",
}
WHOLE = ("randint", "lograndint")
# What a search gives to its runs itself.
OF_THE_SEARCH = ("seed", "max_frames", "run_dir", "runs_dir", "experiment", "resume", "checkpoint", "test", "file", "pause_at")


@dataclasses.dataclass(frozen=True)
class Knob:
    """One key and its distribution. `values`: [low, high], [low, high, step] or the choices, in their types."""

    key: str
    kind: str
    values: tuple[Any, ...]

    @property
    def ends(self) -> tuple[Any, ...]:
        """The values that everything between stands or falls with: of an interval its ends, of a choice each."""
        if self.kind == "choice":
            return self.values
        return (self.values[0], self.values[1] - 1 if self.kind in WHOLE else self.values[1])

    def domain(self) -> Any:
        """Ray Tune's. A choice among lists is one among their texts: Optuna compares and stores plain values only."""
        from ray import tune

        return tune.choice(list(self.texts)) if self.kind == "choice" else getattr(tune, self.kind)(*self.values)

    @property
    def texts(self) -> tuple[Any, ...]:
        """The choices as a trial gets them."""
        return tuple(json.dumps(value) if isinstance(value, list) else value for value in self.values)

    def clipped(self, value: Any) -> Any:
        """The value, within the ends: a mutation by a factor leaves them."""
        return value if self.kind == "choice" else min(max(value, self.ends[0]), self.ends[1])


def find(name: str) -> Path:
    """A file, or the name of one in cfg/space. Raises UserError naming the nearest."""
    shipped = {path.stem: path for path in sorted((CONFIG_DIR / "space").glob("*.yaml"))}
    if Path(name).is_file():
        return Path(name)
    if name in shipped:
        return shipped[name]
    if name.endswith((".yaml", ".yml")) or "/" in name:
        folder = Path(name).parent
        beside = nearest(Path(name).name, [path.name for path in folder.glob("*.y*ml")]) if folder.is_dir() else None
        raise UserError(f"space: '{name}' does not exist." + (f" Did you mean '{folder / beside}'?" if beside else ""))
    raise unknown("space", name, shipped, "space= (a file, or a name of cfg/space)")


def load(path: Path, cfg: dict[str, Any]) -> list[Knob]:
    """The knobs of a space for the runs that `cfg` describes (checked: `core.config.check`).

    Raises UserError naming the file and the key: no mapping of keys to distributions, an unknown distribution, low >= high, no choices, a
    key that does not exist (with the nearest) or that nothing reads, or a value that the key cannot take.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"space: '{path}' is not valid YAML: {error}") from error
    if not isinstance(content, dict) or not content:
        raise UserError(f"space: '{path}' has no keys; it should hold lines such as train.params.config.gamma: {{uniform: [0.9, 1]}}")
    knobs = []
    for key, value in content.items():
        place = f"space '{path}': {key}"
        if key in OF_THE_SEARCH:
            raise UserError(f"{place} is given by the search itself, and cannot be searched")
        knob = Knob(str(key), *_distribution(value, place))
        _check(knob, cfg, place)
        knobs.append(knob)
    return knobs


def _distribution(value: Any, place: str) -> tuple[str, tuple[Any, ...]]:
    valid = "; ".join(f"{kind}: {arguments}" for kind, arguments in ARGUMENTS.items())
    if not isinstance(value, Mapping) or len(value) != 1:
        raise UserError(f"{place} is {value!r}, but must be one distribution in braces, e.g. {{uniform: [0, 1]}}. Valid: {valid}")
    kind, given = next(iter(value.items()))
    if kind not in ARGUMENTS:
        raise unknown("distribution", str(kind), ARGUMENTS, place)
    if not isinstance(given, list):
        raise UserError(f"{place}: {kind} takes {ARGUMENTS[kind]}, not {given!r}")
    return kind, _choices(given, place) if kind == "choice" else _interval(kind, given, place)


def _choices(given: list[Any], place: str) -> tuple[Any, ...]:
    if not given:
        raise UserError(f"{place}: choice has nothing to choose from")
    for value in given:
        if not all(item is None or isinstance(item, str | int | float) for item in (value if isinstance(value, list) else [value])):
            raise UserError(f"{place}: choice holds {value!r}, but takes numbers, texts, true, false, null and lists of them")
    return tuple(given)


def _interval(kind: str, given: list[Any], place: str) -> tuple[Any, ...]:
    wanted = 3 if kind == "quniform" else 2
    try:
        numbers = tuple(float(value) for value in given)  # YAML reads 1e-5 as text
    except (TypeError, ValueError):
        numbers = ()
    if len(numbers) != wanted or not all(math.isfinite(number) for number in numbers):
        raise UserError(f"{place}: {kind} takes {ARGUMENTS[kind]}, not {given!r}")
    if numbers[0] >= numbers[1]:
        raise UserError(f"{place}: {kind} {given!r} has low >= high")
    if kind.startswith("log") and numbers[0] <= 0:
        raise UserError(f"{place}: {kind} {given!r} begins at {given[0]}, and has to begin above 0")
    if kind == "quniform" and (numbers[2] <= 0 or any(abs(n / numbers[2] - round(n / numbers[2])) > 1e-9 for n in numbers)):
        raise UserError(f"{place}: quniform {given!r}: low and high must be multiples of the step, which must be above 0")
    if kind in WHOLE:
        if any(number != int(number) for number in numbers):
            raise UserError(f"{place}: {kind} takes {ARGUMENTS[kind]}, not {given!r}")
        return tuple(int(number) for number in numbers)
    return numbers


def _check(knob: Knob, cfg: dict[str, Any], place: str) -> None:
    for value in knob.ends:
        trial = with_values(cfg, {knob.key: value})
        try:
            check(trial)
        except UserError as error:
            raise UserError(f"{place}: {error}") from None
        for line in unread(trial):
            if line.startswith(f"{knob.key}: "):
                raise UserError(f"{place} has no effect: {line.removeprefix(f'{knob.key}: ')}")


def with_values(cfg: dict[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the config with values at key paths."""
    cfg = copy.deepcopy(cfg)
    for key, value in values.items():
        place = cfg
        *sections, name = key.split(".")
        for section in sections:
            if not isinstance(place.get(section), dict):
                place[section] = {}
            place = place[section]
        place[name] = value
    return cfg
