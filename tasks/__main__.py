"""What can be trained on here, and what an extra would add.

python -m tasks list                     # the kinds of environment: installed or not, and the ready tasks of each
python -m tasks list envpool             # the ids of one kind
python -m tasks list envpool Cheetah     # those with this in their name
python train.py task=HalfCheetah --info  # one task: spaces, episodes, what it can
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from core import registry
from core.cli import main_guard
from core.config import CONFIG_DIR
from core.errors import UserError, unknown

USAGE = "\n".join(line.removeprefix("    ") for line in (__doc__ or "").splitlines()[2:])


def main(argv: Sequence[str], console: Console | None = None) -> None:
    """Raises UserError for words that are none of the above."""
    console = console or Console()
    words = list(argv)
    if words in ([], ["--help"], ["-h"]):
        print(USAGE)
        return
    if words.pop(0) != "list" or len(words) > 2:
        raise UserError(f"'python -m tasks {' '.join(argv)}' is not understood. Valid:\n{USAGE}")
    registry.discover("tasks")
    if words:
        _print_ids(*words)
    else:
        console.print(kinds_table())
        for module, error in registry.broken.items():
            console.print(f"{module} failed to import: {error}", markup=False)


def kinds_table() -> Table:
    """A row for each kind: whether its packages are here, what it is, which files of cfg/task are of it."""
    ready = ready_tasks()
    table = Table(title="kinds of environment", title_justify="left")
    table.add_column("kind", no_wrap=True)
    table.add_column("installed")
    table.add_column("what", ratio=2)
    table.add_column("ready: task=", ratio=3)
    for kind in registry.tasks:
        missing = registry.needs[kind].missing() if kind in registry.needs else []
        here = f"no: {registry.needs[kind].install}" if missing else "yes"
        table.add_row(*map(escape, (kind, here, _summary(registry.tasks.get(kind)), ", ".join(ready.get(kind, [])))))
    return table


def ready_tasks(folder: Path = CONFIG_DIR / "task") -> dict[str, list[str]]:
    """{kind: names of the YAMLs in `folder` that are of it}."""
    found: dict[str, list[str]] = {}
    for path in sorted(folder.glob("*.yaml")):
        found.setdefault(_read(path)["kind"], []).append(path.stem)
    return found


def _read(path: Path) -> dict[str, Any]:
    """A task's YAML on top of those that its `defaults` name."""
    own = yaml.safe_load(path.read_text(encoding="utf-8"))
    below = [_read(path.with_stem(name)) for name in own.pop("defaults", []) if name != "_self_"]
    return {key: value for part in [*below, own] for key, value in part.items()}


def _summary(factory: Any) -> str:
    return (inspect.getdoc(factory) or "").split("\n\n")[0].replace("\n", " ")


def _print_ids(kind: str, text: str = "") -> None:
    """One id a line, so that it can be searched. Raises UserError where a kind has no list, and where nothing has `text` in its name."""
    registry.task_factory(kind)
    if kind not in registry.ids:
        raise UserError(f"kind '{kind}' has no list of ids; these have: {', '.join(sorted(registry.ids))}")
    every = sorted(registry.ids[kind]())
    named = [id for id in every if text.lower() in id.lower()]
    if not named:
        raise (
            unknown(f"{kind} environment", text, every, "python -m tasks list")
            if len(every) < 50
            else UserError(f"none of the {len(every)} {kind} environments has '{text}' in its name")
        )
    print("\n".join(named))


if __name__ == "__main__":
    with main_guard():
        main(sys.argv[1:])
