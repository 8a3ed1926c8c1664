"""Names, discovery, code from outside, and the floors of the house."""

from __future__ import annotations

import ast
import importlib
import sys
from pathlib import Path

import pytest

from core import registry
from core.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
FLOORS = {"core": 0, "networks": 1, "players": 1, "tasks": 1, "algos": 2}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("floor", FLOORS)
def test_nothing_imports_from_a_higher_floor_or_a_neighbour(floor):
    allowed = {name for name, level in FLOORS.items() if level < FLOORS[floor]} | {floor}
    for path in (ROOT / floor).rglob("*.py"):
        wrong = imports(path) & (set(FLOORS) | {"train", "experiments"}) - allowed
        assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}"


def test_only_the_agents_files_touch_rl_games_agents():
    allowed = {"agent.py", "central_value.py", "sac.py"}
    for floor in FLOORS:
        for path in (ROOT / floor).rglob("*.py"):
            source = path.read_text()
            if "a2c_continuous import" in source or "a2c_discrete import" in source or "sac_agent import" in source:
                assert path.name in allowed, path


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """A shelf of modules in a temporary directory: one good, one broken; names registered there vanish afterwards."""
    package = tmp_path / "shelf_under_test"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "good.py").write_text("from core.registry import register_player\n@register_player('good_one')\nclass Good: ...\n")
    (package / "bad_one.py").write_text("import a_module_that_is_not_there\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(registry, "broken", {})
    monkeypatch.setattr(registry, "_DISCOVERED", set())
    for one in (registry.players, registry.algos):
        monkeypatch.setattr(one, "_entries", dict(one._entries))
    yield "shelf_under_test"
    for name in [n for n in sys.modules if n.startswith("shelf_under_test")]:
        del sys.modules[name]


def test_a_broken_module_takes_no_other_down_and_is_told_when_asked_for(shelf):
    registry.discover(shelf)
    assert registry.players.get("good_one").__name__ == "Good"
    with pytest.raises(UserError, match=r"'bad_one' is unavailable: .*a_module_that_is_not_there"):
        registry.players.get("bad_one")
    with pytest.raises(UserError, match="Did you mean 'good_one'"):
        registry.players.get("god_one")


def test_a_taken_name_is_refused(shelf):
    registry.discover(shelf)

    with pytest.raises(UserError, match="is taken by"):

        @registry.register_player("good_one")
        class Other: ...


def test_unknown_action_kinds_are_refused():
    with pytest.raises(UserError, match="unknown action kinds"):
        registry.register_algo("x", actions=("contínuous",))


def test_modules_from_outside(tmp_path, shelf):
    file = tmp_path / "my_paper.py"
    file.write_text("from core.registry import register_player\n@register_player('from_outside')\nclass P: ...\n")
    registry.import_outside([str(file)])
    assert "from_outside" in registry.players
    with pytest.raises(UserError, match="no file"):
        registry.import_outside([str(tmp_path / "nothing.py")])
    with pytest.raises(UserError, match="cannot import 'no_such_package'"):
        registry.import_outside(["no_such_package"])
    (tmp_path / "broken.py").write_text("1 / 0\n")
    with pytest.raises(UserError, match="ZeroDivisionError"):
        registry.import_outside([str(tmp_path / "broken.py")])


def test_every_module_of_the_shelves_imports():
    for floor in FLOORS:
        for path in (ROOT / floor).rglob("*.py"):
            if path.stem != "__init__":
                importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
