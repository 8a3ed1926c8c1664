"""Who is measured: stock rl_games, our checkouts with their variants. Each side turns a workload into a command."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

from core.errors import UserError
from experiments.bench.workloads import Params, Workload

T = TypeVar("T")

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


@dataclasses.dataclass(frozen=True)
class Side:
    """One bar of the chart: stock rl_games where `checkout` is None, else that checkout's train.py with `overrides` (key=value)."""

    name: str
    checkout: Path | None = None
    overrides: tuple[str, ...] = ()

    @property
    def ours(self) -> bool:
        return self.checkout is not None

    def command(self, workload: Workload, params: Params, folder: Path) -> tuple[list[str], Path]:
        """The command that runs `params`, and its working directory. Writes the config it needs into `folder`."""
        if self.checkout is None:
            file = folder / "params.json"
            params = {**params, "config": {**params["config"], "train_dir": str(folder / "run")}}
            file.write_text(json.dumps({"params": params}))
            return [sys.executable, "-m", "experiments.bench.stock", str(file)], ROOT
        file = folder / "train.yaml"
        file.write_text(json.dumps({"params": params}))  # JSON is YAML
        task = workload.ours or ("task=envpool", f"task.id={workload.env_id}", f"task.options={_hydra(workload.env_options)}")
        probe = [f"modules=[{HERE / 'probe.py'}]", "observers=[bench_probe]"]
        command = [sys.executable, "train.py", "--file", str(file), *task, *probe, f"run_dir={folder / 'run'}", "device=cpu"]
        return [*command, *self.overrides], self.checkout


def checkouts(given: Iterable[str]) -> list[tuple[str, Path]]:
    """`DIR` or `name=DIR`, each; this repository where none is given. Raises UserError where one is no checkout of it, or a name stands twice."""
    found = []
    for text in given:
        name, equals, folder = text.partition("=")
        path = Path(folder if equals else text).expanduser().resolve()
        if not (path / "train.py").is_file():
            raise UserError(f"--ours: '{path}' holds no train.py; give a checkout of this repository, as DIR or name=DIR")
        found.append((name if equals else "ours", path))
    return _distinct("--ours", found) or [("ours", ROOT)]


def variants(given: Iterable[str]) -> list[tuple[str, tuple[str, ...]]]:
    """`name:key=value,key=value`, each. Raises UserError where one reads otherwise, or a name stands twice."""
    found = []
    for text in given:
        name, colon, rest = text.partition(":")
        overrides = tuple(re.split(r",(?=[\w.@+~/]+=)", rest)) if colon else ()
        if not name or not overrides or not all("=" in o for o in overrides):
            raise UserError(f"--variant: '{text}' does not read name:key=value,key=value, e.g. plain:train.params.config.shuffle=false")
        found.append((name, overrides))
    return _distinct("--variant", found)


def sides(ours: Iterable[str], variant: Iterable[str]) -> list[Side]:
    """Stock, then every checkout, each followed by its variants: `name`, or `checkout/name` where there are several checkouts."""
    places, wanted = checkouts(ours), variants(variant)
    made = [Side("stock")]
    for name, path in places:
        made.append(Side(name, path))
        made += [Side(label if len(places) == 1 else f"{name}/{label}", path, overrides) for label, overrides in wanted]
    _distinct("--ours and --variant", [(side.name, side) for side in made])
    return made


def _distinct(option: str, pairs: list[tuple[str, T]]) -> list[tuple[str, T]]:
    names = [name for name, _ in pairs]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{option}: the name '{name}' stands twice")
    return pairs


def _hydra(options: Params) -> str:
    return "{" + ",".join(f"{key}:{json.dumps(value)}" for key, value in options.items()) + "}"
