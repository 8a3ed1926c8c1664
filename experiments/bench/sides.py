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
from experiments.bench.peers import PEERS
from experiments.bench.workloads import Params, Workload

T = TypeVar("T")

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


@dataclasses.dataclass(frozen=True)
class Side:
    """One bar of the chart: a checkout's train.py with `overrides` (key=value), or a peer, or, with neither, stock rl_games."""

    name: str
    checkout: Path | None = None
    overrides: tuple[str, ...] = ()
    base: str = "stock"  # the side that its ratio is to
    peer: str | None = None  # a module of experiments.bench.peers

    @property
    def ours(self) -> bool:
        return self.checkout is not None

    def command(self, workload: Workload, params: Params, folder: Path) -> tuple[list[str], Path]:
        """The command that runs `params`, and its working directory. Writes the config it needs into `folder`."""
        if self.checkout is None:
            file = folder / "params.json"
            params = {**params, "config": {**params["config"], "train_dir": str(folder / "run")}}
            file.write_text(json.dumps({"params": params}))
            module = f"peers.{self.peer}" if self.peer else "stock"
            return [sys.executable, "-m", f"experiments.bench.{module}", str(file)], ROOT
        file = folder / "train.yaml"
        file.write_text(json.dumps({"params": params}))  # JSON is YAML
        task = workload.ours or ("task=envpool", f"task.id={workload.env_id}", f"task.options={_hydra(workload.env_options)}")
        modules = [HERE / "probe.py"] + [HERE / "novelty.py"] * bool(workload.algos)
        probe = [f"modules=[{','.join(map(str, modules))}]", "observers=[bench_probe]"]
        command = [sys.executable, "train.py", "--file", str(file), *task, *probe, f"run_dir={folder / 'run'}", f"device={workload.device}"]
        return [*command, *self.overrides], self.checkout


def checkouts(given: Iterable[str]) -> list[tuple[str, Path]]:
    """`DIR` or `name=DIR`, each; this repository where none is given. Raises UserError for another folder and for a name given twice."""
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
    return made


def members(workload: Workload, given: list[Side]) -> list[Side]:
    """Who of the given sides takes part in a workload; each of ours also in the workload's variants. Where it compares our algorithms:
    each of ours, as PPO and as each of them."""
    made = []
    if not workload.algos:
        for side in given:
            if not side.peer or workload.name in PEERS[side.peer].workloads:
                made.append(side)
            made += [
                dataclasses.replace(side, name=f"{side.name}/{name}", overrides=(*side.overrides, *overrides))
                for name, overrides in (workload.variants if side.ours else ())
            ]
        return made
    for side in given:
        if side.ours:
            made.append(dataclasses.replace(side, base=side.name))
            made += [
                Side(f"{side.name}/{name}", side.checkout, (*side.overrides, *overrides), base=side.name)
                for name, overrides in workload.algos
            ]
    return made


def _distinct(option: str, pairs: list[tuple[str, T]]) -> list[tuple[str, T]]:
    names = [name for name, _ in pairs]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{option}: the name '{name}' stands twice")
    return pairs


def _hydra(options: Params) -> str:
    return "{" + ",".join(f"{key}:{json.dumps(value)}" for key, value in options.items()) + "}"
