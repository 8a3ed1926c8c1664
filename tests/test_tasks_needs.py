"""Task kinds whose packages are an extra: known by name, refused with the command that installs what lacks."""

from __future__ import annotations

from typing import Any

import pytest

from core import registry
from core.errors import UserError


@pytest.fixture
def kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry.tasks, "_entries", {})
    monkeypatch.setattr(registry, "needs", {})


def factory(**options: Any) -> str:
    return "made"


def test_a_package_that_is_not_installed_is_named_with_its_command(kinds: None) -> None:
    registry.register_task("moon", needs_modules=("json", "no_such_simulator"), extra="moon")(factory)
    with pytest.raises(UserError) as told:
        registry.task_factory("moon")
    assert str(told.value) == (
        "task.kind 'moon' needs no_such_simulator, which is not installed. Try: pip install --constraint constraints.txt --editable '.[moon]'"
    )


def test_where_no_extra_can_bring_it_the_command_is_the_kinds_own(kinds: None) -> None:
    registry.register_task("mars", needs_modules=("no_such_simulator",), install="see its page")(factory)
    with pytest.raises(UserError, match="Try: see its page"):
        registry.task_factory("mars")


def test_what_is_installed_is_made(kinds: None) -> None:
    registry.register_task("here", needs_modules=("json",), extra="here")(factory)
    registry.register_task("plain")(factory)
    assert registry.task_factory("here")() == registry.task_factory("plain")() == "made"


def test_an_unknown_kind_is_answered_with_the_nearest(kinds: None) -> None:
    registry.register_task("gymnasium")(factory)
    with pytest.raises(UserError, match=r"unknown task kind 'gymnasum' at task\.kind\. Did you mean 'gymnasium'"):
        registry.task_factory("gymnasum")
