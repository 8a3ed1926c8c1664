"""Imports EnvPool with the one family of environments that is needed: all of them take half a second and draw in matplotlib."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import sys
import types
from collections.abc import Callable, ItemsView, Iterator, KeysView, ValuesView
from pathlib import Path
from typing import Any

ENTRY = "envpool.entry"  # the module of EnvPool that does nothing but import every family's registration


def load(id: str) -> Any:
    """The package `envpool`, with at least the family registered that has the environment `id`.

    Its registry fills itself with the other families as soon as it is asked for an id that it lacks, or for all of them, so that
    nobody in this process can tell the difference. Where EnvPool looks different from what this module knows, it is imported whole.
    """
    if "envpool" in sys.modules:
        return importlib.import_module("envpool")
    families = _families()
    if not families:
        return importlib.import_module("envpool")
    sys.modules[ENTRY] = types.ModuleType(ENTRY)
    try:
        envpool = importlib.import_module("envpool")
    finally:
        del sys.modules[ENTRY]
    registry = importlib.import_module("envpool.registration").registry
    for family in sorted(families, key=lambda name: not _mentions(families[name], id)):  # likely ones first
        importlib.import_module(family)
        if id in registry.specs:
            break
    others = Others()
    registry.specs, registry.envpools = Filling(registry.specs, others), Filling(registry.envpools, others)
    return envpool


class Others:
    """The families that are not there yet; calling it imports them, once."""

    def __init__(self) -> None:
        self.imported = False

    def __call__(self) -> None:
        if not self.imported:
            self.imported = True  # first: registering looks into the dicts that ask for this
            importlib.import_module(ENTRY)


class Filling(dict[str, Any]):
    """A dict that calls `fill` before it says that it lacks a key, and before it tells all that it has."""

    def __init__(self, content: dict[str, Any], fill: Callable[[], None]) -> None:
        super().__init__(content)
        self.fill = fill

    def __contains__(self, key: object) -> bool:
        if not super().__contains__(key):
            self.fill()
        return super().__contains__(key)

    def __missing__(self, key: str) -> Any:
        if key in self:  # fills
            return super().__getitem__(key)
        raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        self.fill()
        return super().__iter__()

    def __len__(self) -> int:
        self.fill()
        return super().__len__()

    def keys(self) -> KeysView[str]:  # type: ignore[override]  # dict's own names no public type
        self.fill()
        return super().keys()

    def values(self) -> ValuesView[Any]:  # type: ignore[override]
        self.fill()
        return super().values()

    def items(self) -> ItemsView[str, Any]:  # type: ignore[override]
        self.fill()
        return super().items()


def _families() -> dict[str, Path]:
    """{module that registers a family: its file}, read from EnvPool's sources; {} where they are not as expected."""
    found = importlib.util.find_spec("envpool")
    if found is None or found.origin is None:
        return {}
    root = Path(found.origin).parent
    entry = root / "entry.py"
    if not entry.is_file():
        return {}
    names = [
        alias.name for node in ast.parse(entry.read_text(encoding="utf-8")).body if isinstance(node, ast.Import) for alias in node.names
    ]
    files = {name: root.joinpath(*name.split(".")[1:]).with_suffix(".py") for name in names if name.startswith("envpool.")}
    return files if all(file.is_file() for file in files.values()) else {}


def _mentions(file: Path, id: str) -> bool:
    """Whether the source names the task: 'HalfCheetah-v4' is put together from 'HalfCheetah' and 'v4'."""
    stem = re.split(r"-v\d+$", id.rpartition("/")[2])[0]
    return re.search(rf"\b{re.escape(stem)}\b", file.read_text(encoding="utf-8")) is not None
