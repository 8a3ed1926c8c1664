"""The command line: `key=value`, as train.py's."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from core.errors import UserError, unknown
from experiments.results import MEASURES

HELP = """\
What the runs of a suite say, with intervals: index.html, report.md, tables/ and figures/.

  python -m experiments.report suite=mujoco algos=[PPO,MyAlgo]

  suite=NAME       a suite of cfg/suite, or the path of a suite's YAML
  algos=[A,B]      which algorithms, the baseline first; default: all that have runs
  tasks=[S,T]      which tasks; default: all that have runs
  runs_dir=DIR     where the suite's runs lie (runs/suites)
  out=DIR          where the report goes (<runs_dir>/<suite>/report)
  score=WHICH      final-deterministic (default), final-sampled, best-deterministic or best-sampled: checkpoint and actions
  frames=N         which budget, where a suite was run with several
  reps=N           draws of the bootstrap (2000)
  seed=N           of the bootstrap (0)"""
SCORES = tuple(f"{checkpoint}-{mode}" for checkpoint, mode in MEASURES)


@dataclasses.dataclass
class Options:
    suite: str
    algos: list[str] | None = None
    tasks: list[str] | None = None
    runs_dir: Path = Path("runs/suites")
    out: Path | None = None
    score: str = SCORES[0]
    frames: int | None = None
    reps: int = 2000
    seed: int = 0

    def words(self, *keys: str) -> str:
        """The command line again, or these keys of it, without what is left at its default and where the report goes."""
        found = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value != field.default and field.name != "out" and (not keys or field.name in keys):
                found.append(f"{field.name}=" + (f"[{','.join(value)}]" if isinstance(value, list) else str(value)))
        return " ".join(found)

    @property
    def checkpoint(self) -> str:
        return self.score.split("-")[0]

    @property
    def mode(self) -> str:
        return self.score.split("-")[1]


def parse(argv: Sequence[str]) -> Options:
    """Raises UserError for a key that is unknown, stands twice or has a value that cannot be."""
    given: dict[str, Any] = {}
    for word in argv:
        key, equals, value = word.partition("=")
        if key not in READERS:
            raise unknown("key", key, READERS, f"'{word}'")
        if not equals or not value:
            raise UserError(f"'{word}': write {key}=value")
        if key in given:
            raise UserError(f"{key}= stands twice")
        given[key] = READERS[key](key, value)
    if "suite" not in given:
        raise UserError("suite= is missing, e.g. suite=classic")
    return Options(**given)


def _names(key: str, value: str) -> list[str]:
    names = [name.strip() for name in value.removeprefix("[").removesuffix("]").split(",")]
    if not all(names):
        raise UserError(f"{key}={value}: write {key}=[A,B]")
    return names


def _count(key: str, value: str) -> int:
    least = 0 if key == "seed" else 100 if key == "reps" else 1
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if number < least or number != int(number):
        raise UserError(f"{key} is '{value}', but must be a whole number from {least} on")
    return int(number)


def _score(key: str, value: str) -> str:
    if value not in SCORES:
        raise unknown("score", value, SCORES, f"{key}=")
    return value


READERS: dict[str, Callable[[str, str], Any]] = {
    "suite": lambda _, value: value,
    "algos": _names,
    "tasks": _names,
    "runs_dir": lambda _, value: Path(value),
    "out": lambda _, value: Path(value),
    "score": _score,
    "frames": _count,
    "reps": _count,
    "seed": _count,
}
