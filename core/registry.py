"""Names, and nothing but names: which algorithm, network, model, player, task kind and observer can be asked for.

Registration stands beside the class. `discover()` imports the shelves; a module that fails to import takes no other down,
and its error is told when a name that it would have brought is asked for.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import pkgutil
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from core.errors import UserError, unknown

ACTION_KINDS = ("continuous", "discrete", "multi_discrete")


@dataclasses.dataclass(frozen=True)
class AlgoEntry:
    """What one algorithm name stands for."""

    name: str
    cls: Any  # a class with for_actions(kind), as algos.agent.Agent; core knows no algorithm
    config: type | None  # keyword-only dataclass of the algorithm's own keys under train.params.config
    player: str  # name of the player that evaluates it
    policy: type | None  # Policy subclass shared by agent and player; None: the default one
    actions: tuple[str, ...]  # action kinds it can handle
    multi_rank: bool = True  # whether it can train in several processes


@dataclasses.dataclass(frozen=True)
class Needs:
    """What a task kind is not without: modules that this project does not install by itself."""

    modules: tuple[str, ...]
    install: str  # the command that brings them

    def missing(self) -> list[str]:
        """Which of the modules cannot be found here. Imports none of them."""
        return [name for name in self.modules if importlib.util.find_spec(name) is None]


class Shelf:
    """One kind of name, e.g. all networks. Maps a name to whatever was registered under it."""

    def __init__(self, what: str) -> None:
        self.what = what
        self._entries: dict[str, Any] = {}

    def add(self, name: str, entry: Any, replace: bool = False) -> None:
        """Raises UserError if the name is taken by something from another place (a reload of the same class is fine)."""
        old = self._entries.get(name)
        if old is not None and not replace and _origin(old) != _origin(entry):
            raise UserError(f"{self.what} name '{name}' is taken by {_origin(old)}; {_origin(entry)} needs another name")
        self._entries[name] = entry

    def get(self, name: str, where: str = "") -> Any:
        """Raises UserError naming the nearest valid name, or why the module of that name could not be imported."""
        if name in self._entries:
            return self._entries[name]
        raise self.missing(name, self._entries, where)

    def missing(self, name: str, valid: Iterable[str], where: str = "") -> UserError:
        """The error for a name that is not there: unavailable because its module is broken, or misspelt."""
        for module, error in broken.items():
            if _stem(module) == _stem(name):
                return UserError(f"{self.what} '{name}' is unavailable: module '{module}' failed to import: {error}")
        message = unknown(self.what, name, valid, where)
        if broken:
            return UserError(f"{message}\nThese modules failed to import and may have brought it: {', '.join(broken)}")
        return message

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))


algos = Shelf("algorithm")
networks = Shelf("network")
models = Shelf("model")
players = Shelf("player")
tasks = Shelf("task kind")
observers = Shelf("observer")

needs: dict[str, Needs] = {}  # task kind -> the packages that it takes
ids: dict[str, Callable[[], Iterable[str]]] = {}  # task kind -> what lists the environments that it can make
broken: dict[str, str] = {}  # module name -> the error that its import raised

_DISCOVERED: set[str] = set()


def register_algo(
    name: str,
    *,
    config: type | None = None,
    player: str = "default",
    policy: type | None = None,
    actions: tuple[str, ...] = ACTION_KINDS,
    multi_rank: bool = True,
) -> Callable[[type], type]:
    """Class decorator. `config` is a keyword-only dataclass of the algorithm's own keys (None: those of the class that it derives from,
    `options_class`), `player` the name of its player, `policy` the Policy subclass that agent and player share, `actions` the action kinds
    that it can handle. `multi_rank=False`: its update cannot be split over several processes (docs/scale.md)."""
    bad = set(actions) - set(ACTION_KINDS)
    if bad:
        raise UserError(f"register_algo('{name}'): unknown action kinds {sorted(bad)}. Valid: {', '.join(ACTION_KINDS)}")

    def wrap(cls: Any) -> Any:
        options = config or getattr(cls, "options_class", None)
        algos.add(name, AlgoEntry(name, cls, options, player, policy, tuple(actions), multi_rank))
        if options is not None:
            cls.options_class = options  # classes below inherit it
        return cls

    return wrap


def _class_decorator(shelf: Shelf) -> Callable[[str], Callable[[Any], Any]]:
    def register(name: str) -> Callable[[Any], Any]:
        def wrap(target: Any) -> Any:
            shelf.add(name, target)
            return target

        return wrap

    return register


register_network = _class_decorator(networks)
register_model = _class_decorator(models)
register_player = _class_decorator(players)
register_observer = _class_decorator(observers)

PIP = "pip install --constraint constraints.txt --editable"


def register_task(
    name: str,
    *,
    needs_modules: tuple[str, ...] = (),
    extra: str | None = None,
    install: str | None = None,
    ids_of_kind: Callable[[], Iterable[str]] | None = None,
) -> Callable[[Any], Any]:
    """Decorator of the function that makes the environments of a task kind; its keyword arguments become keys of `task`.

    Args:
        needs_modules: what has to be importable beyond this project's own dependencies. The function, not its module, imports them.
        extra: of pyproject.toml, that brings them.
        install: the command that brings them, where no extra can.
        ids_of_kind: lists what `task.id` may be, for `python -m tasks list`.
    """
    if ids_of_kind is not None:
        ids[name] = ids_of_kind
    if needs_modules:
        needs[name] = Needs(needs_modules, install or f"{PIP} '.[{extra}]'")

    def wrap(factory: Any) -> Any:
        tasks.add(name, factory)
        return factory

    return wrap


def task_factory(kind: str) -> Any:
    """What makes the environments of `kind`. Raises UserError for an unknown one, and for one whose packages are not installed."""
    factory = tasks.get(kind, "task.kind")
    missing = needs[kind].missing() if kind in needs else []
    if missing:
        raise UserError(f"task.kind '{kind}' needs {' and '.join(missing)}, which is not installed. Try: {needs[kind].install}")
    return factory


def discover(*packages: str) -> None:
    """Imports every module of the shelves (default: networks, players, tasks, algos) once; a failed one is remembered in `broken`."""
    for package in packages or ("networks", "players", "tasks", "algos"):
        if package in _DISCOVERED:
            continue
        _DISCOVERED.add(package)
        root = importlib.import_module(package)
        for info in pkgutil.iter_modules(root.__path__):
            _import(f"{package}.{info.name}")


def import_outside(modules: list[str]) -> None:
    """Imports modules from outside this repository, given as `package.module` or as a path to a .py file.

    Raises UserError if one does not exist or cannot be imported: unlike a shelf's module, the user asked for this one.
    """
    for name in modules:
        path = Path(name)
        if path.suffix == ".py" or path.exists():
            if not path.is_file():
                raise UserError(f"modules: no file '{name}' (give a .py file or an importable package.module)")
            _import_file(path)
        else:
            try:
                importlib.import_module(name)
            except ModuleNotFoundError as error:
                raise UserError(f"modules: cannot import '{name}': {error}") from error


def _import_file(path: Path) -> None:
    module_name = f"outside_{_stem(path.stem)}"
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)  # its neighbours can be imported too, also by Ray workers
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"modules: '{path}' failed to import:\n{traceback.format_exc(limit=-3)}") from error


def _import(module: str) -> None:
    try:
        importlib.import_module(module)
    except Exception as error:  # a broken module must not take the others down, whatever it raises
        broken[module] = f"{type(error).__name__}: {error}"


def _stem(name: str) -> str:
    """'algos.my_algo', 'MyAlgo' and 'my_algo' are one name here."""
    return re.sub(r"[^a-z0-9]", "", name.rsplit(".", 1)[-1].lower())


def _origin(entry: Any) -> str:
    target = entry.cls if isinstance(entry, AlgoEntry) else entry
    return f"{getattr(target, '__module__', '?')}.{getattr(target, '__qualname__', target)}"
