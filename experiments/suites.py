"""A suite: tasks, their budgets, how runs are evaluated and what their scores are held against. One YAML of cfg/suite, or a user's own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import pydantic
import yaml
from pydantic import BaseModel, ConfigDict, Field

from core.config import CONFIG_DIR
from core.errors import UserError, nearest, unknown

REFERENCES = "references"  # cfg/suite/references.yaml is no suite
Label = Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.+-]*$")]  # names a directory and stands in a command line
Count = Annotated[int, Field(ge=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Reference(_Section):
    """Scores that count as 0 and as 1, and where they come from."""

    random: float
    reference: float
    source: Annotated[str, Field(min_length=1)]

    @pydantic.model_validator(mode="after")
    def _differ(self) -> Reference:
        if self.random == self.reference:
            raise ValueError(f"random and reference are both {self.random}, which normalises nothing")
        return self

    def normalise(self, value: Any) -> Any:
        """0 is random, 1 the reference. Floats and arrays alike."""
        return (value - self.random) / (self.reference - self.random)


class Protocol(_Section):
    """How every run is evaluated: `games_num` episodes for each checkpoint and mode; environment i starts with `seed` + i."""

    games_num: Count = 100
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 1_000_000


class SuiteTask(_Section):
    """One task: a file of cfg/task, the budget in frames, and overrides of train.py."""

    task: str
    frames: Count
    overrides: tuple[str, ...] = ()


class Variant(_Section):
    """A further name for `algos`: a file of cfg/train with overrides."""

    train: str
    overrides: tuple[str, ...] = ()


class Suite(_Section):
    """What `load` returns. `tasks`, `variants` by label; `references` by name of cfg/task."""

    name: Label
    tasks: Annotated[dict[Label, SuiteTask], Field(min_length=1)]
    overrides: tuple[str, ...] = ()
    variants: dict[Label, Variant] = {}
    protocol: Annotated[Protocol, Field(alias="evaluation")] = Protocol()
    grid: Annotated[int, Field(ge=2)] = 50
    references: dict[str, Reference] = {}


def load(name_or_path: str, config_dir: str | Path | None = None) -> Suite:
    """The suite of a name (cfg/suite/NAME.yaml, or the same below `config_dir`) or of a path to a YAML.

    Its references are the shipped ones (cfg/suite/references.yaml) with its own on top. Raises UserError for what is not there, is no
    YAML, or has a key or value that cannot be, with its place; tasks and algorithms are checked when cells are made (`cells.plan`).
    """
    path = _find(name_or_path, config_dir)
    raw = _read(path)
    raw.setdefault("name", path.stem)
    for label, task in (raw.get("tasks") or {}).items() if isinstance(raw.get("tasks"), dict) else ():
        if isinstance(task, dict):
            task.setdefault("task", label)
    if isinstance(raw.get("references", {}), dict):
        raw["references"] = {**_shipped_references(), **raw.get("references", {})}
    try:
        return Suite.model_validate(raw)
    except pydantic.ValidationError as error:
        raise UserError(f"suite '{path}': " + "; ".join(_told(one) for one in error.errors())) from None


def only(suite: Suite, tasks: Sequence[str] | None) -> Suite:
    """The suite with these of its tasks, by label; None: all. Raises UserError for one that it lacks, with the nearest."""
    for task in tasks or ():
        if task not in suite.tasks:
            raise unknown("task", task, suite.tasks, "tasks=")
    return (
        suite if tasks is None else suite.model_copy(update={"tasks": {name: suite.tasks[name] for name in suite.tasks if name in tasks}})
    )


def references() -> dict[str, Reference]:
    """The shipped ones, by name of cfg/task."""
    return {task: Reference.model_validate(entry) for task, entry in _shipped_references().items()}


def names(config_dir: str | Path | None = None) -> list[str]:
    """The suites that go by name."""
    return sorted({path.stem for folder in _folders(config_dir) for path in folder.glob("*.yaml")} - {REFERENCES})


def _shipped_references() -> dict[str, Any]:
    return _read(CONFIG_DIR / "suite" / f"{REFERENCES}.yaml")


def _folders(config_dir: str | Path | None) -> list[Path]:
    return [Path(folder) / "suite" for folder in (config_dir, CONFIG_DIR) if folder is not None]


def _find(name: str, config_dir: str | Path | None) -> Path:
    if name.endswith((".yaml", ".yml")) or "/" in name:
        path = Path(name)
        if not path.is_file():
            near = nearest(path.name, [p.name for p in path.parent.glob("*.y*ml")]) if path.parent.is_dir() else None
            raise UserError(f"suite: no file '{path}'." + (f" Did you mean '{path.parent / near}'?" if near else ""))
        return path
    if name not in names(config_dir):
        raise unknown("suite", name, names(config_dir), "suite=")
    return next(path for folder in _folders(config_dir) if (path := folder / f"{name}.yaml").is_file())


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"'{path}' is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"'{path}' must be a mapping with name, tasks, ..., but is {type(content).__name__}")
    return content


SECTIONS: dict[str, type[_Section]] = {"": Suite, "tasks": SuiteTask, "variants": Variant, "references": Reference, "evaluation": Protocol}


def _told(error: Any) -> str:
    place = [str(part) for part in error["loc"] if part != "[key]"]
    path = ".".join(place)
    if error["type"] == "extra_forbidden":
        section = SECTIONS[place[0] if len(place) > 1 else ""]
        return str(unknown("key", place[-1], [field.alias or name for name, field in section.model_fields.items()], path))
    if error["type"] == "missing":
        return f"{path} is missing"
    told = error["msg"].replace("Input should", "should").replace("String should", "should")
    return f"{path} is {error['input']!r}, but {told}"
