"""docs/algorithms/index.md says of every algorithm what the code says: its lines, its hooks, its actions, its page."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from algos.agent import Agent
from algos.hooks import Hooks
from core import registry

DOCS = Path(__file__).parents[1] / "docs" / "algorithms"
ALIASES = {"a2c_continuous", "a2c_discrete"}  # rl_games' names of PPO
HOOKS = [name for name, part in vars(Hooks).items() if not name.startswith("_") and (callable(part) or isinstance(part, classmethod))]
registry.discover()
NAMES = sorted(set(registry.algos) - ALIASES)


def rows() -> dict[str, list[str]]:
    """The first table, by the name that `train.params.algo.name` has."""
    lines = [line for line in (DOCS / "index.md").read_text().splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    return {re.search(r"`algos/(\w+)\.py`", row[3]).group(1): row for row in cells if "algos/" in row[3]}


def own_hooks(cls: type) -> set[str]:
    classes = [part for part in cls.__mro__ if part not in Agent.__mro__]
    return {name for part in classes for name in vars(part) if name in HOOKS}


@pytest.mark.parametrize("name", NAMES)
def test_the_index_is_what_the_code_is(name):
    entry = registry.algos.get(name)
    page, paper, actions, code, lines, hooks, evidence = rows()[name]
    length = len(Path(inspect.getfile(entry.cls)).read_text().splitlines())
    assert int(lines) == length
    kinds = {"continuous", "discrete", "multi-discrete"} if actions == "all" else set(actions.split(", "))
    assert kinds == {kind.replace("_", "-") for kind in entry.actions}
    if name != "sac":  # rl_games' own agent
        assert set(re.findall(r"`(\w+)`", hooks)) == own_hooks(entry.cls)
    assert evidence or name == "template"
    link = re.search(r"\]\(([\w./]+)\)", page)
    assert link is None or (DOCS / link.group(1)).is_file()
    assert link is not None or name == "template"


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.stem)
def test_links_of_the_pages_lead_somewhere(page):
    for target in re.findall(r"\]\(((?!http)[^)#\s]+)", page.read_text()):
        assert (page.parent / target).exists(), target
