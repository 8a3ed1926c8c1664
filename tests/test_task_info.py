"""`train.py task=... --info` and `python -m tasks list`."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from gymnasium import spaces
from rich.console import Console

from core import registry, task_info
from core.errors import UserError
from tasks.__main__ import kinds_table, main, ready_tasks
from tests.command import resolve

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True, scope="module")
def _shelves() -> None:
    registry.discover()


def told(*argv: str) -> dict[str, dict[str, str]]:
    return task_info.describe(resolve("device=cpu", *argv))


def test_a_torch_environment_saves_its_state_and_runs_on_the_device() -> None:
    told_of = told("task=TorchPendulum")
    assert told_of["spaces"] == {"observation": "Box (3,) float32, -8 to 8", "action": "Box (1,) float32, -2 to 2"}
    assert told_of["episodes"]["time limit"] == "200 steps"
    assert told_of["episodes"]["reset"].startswith("same step")
    assert told_of["can"] == {
        "render": "yes: video=True",
        "save state": "yes: a resumed run goes on bit by bit",
        "run on a GPU": "yes: steps on the run's device, here cpu",
    }
    assert "sac" in told_of["trains"]["with"]


def test_an_envpool_environment_resets_in_the_next_step() -> None:
    told_of = told("task=MiniGridMemory")
    assert told_of["spaces"]["action"] == "Discrete(7)"
    assert told_of["episodes"]["time limit"] == "245 steps"
    assert told_of["episodes"]["reset"].startswith("next step")
    assert told_of["can"]["render"].startswith("yes")
    assert told_of["can"]["save state"].startswith("no")
    assert "sac" not in told_of["trains"]["with"]


def test_why_a_task_cannot_be_drawn() -> None:
    drawn = told("task=FetchReach")["can"]["render"]
    assert drawn.startswith("no: ")
    assert "task.render_id" in drawn


def test_hidden_numbers_are_the_state() -> None:
    told_of = told("task=CartPoleNoVel")
    assert told_of["spaces"]["observation"].startswith("Box (2,)")
    assert told_of["spaces"]["state"].startswith("Box (4,)")
    assert told_of["episodes"]["time limit"] == "500 steps"


@pytest.mark.parametrize(("limit", "text"), [(7, "7 steps"), (-1, "none that is known")])
def test_gymnasiums_time_limit_and_its_replacement(limit: int, text: str) -> None:
    assert told("task=gymnasium", "task.id=CartPole-v1", f"task.max_episode_steps={limit}")["episodes"]["time limit"] == text


def test_a_dict_is_told_part_by_part() -> None:
    space = spaces.Dict({"a": spaces.Box(0, 1, (2,)), "b": spaces.Box(0, 255, (3, 4), "uint8")})
    assert [task_info.short(part) for part in space.values()] == ["Box (2,) float32, 0 to 1", "Box (3, 4) uint8, 0 to 255"]


def run_cli(*argv: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *argv],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def test_the_flag_prints_and_leaves_nothing_behind(tmp_path: Path) -> None:
    done = run_cli("task=CartPole", "--info", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Discrete(2)" in done.stdout
    assert "500 steps" in done.stdout
    assert not list(tmp_path.iterdir())


def test_a_mistake_is_told_as_in_a_run(tmp_path: Path) -> None:
    done = run_cli("task=envpool", "task.id=CartPol-v1", "--info", cwd=tmp_path)
    assert done.returncode == 2
    assert "Did you mean 'CartPole-v1'" in done.stderr
    assert "Traceback" not in done.stderr


# ---- python -m tasks list --------------------------------------------------------------------------------------------


def test_every_yaml_is_listed_under_its_kind() -> None:
    ready = ready_tasks()
    listed = [name for names in ready.values() for name in names]
    assert sorted(listed) == sorted(path.stem for path in (ROOT / "cfg" / "task").glob("*.yaml"))
    assert "MultiRoom" in ready["envpool"]  # its kind stands in the file that its defaults name
    assert set(ready) <= set(registry.tasks)


def test_a_kind_whose_package_lacks_stands_there_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.tasks._entries, "moon", lambda **_: None)
    monkeypatch.setitem(registry.needs, "moon", registry.Needs(("no_such_simulator",), "pip install '.[moon]'"))
    text = io.StringIO()
    Console(file=text, width=200).print(kinds_table())
    row = next(line for line in text.getvalue().splitlines() if " moon " in line)
    assert "no: pip install '.[moon]'" in row
    assert next(line for line in text.getvalue().splitlines() if " torch " in line).count("yes") == 1


def test_ids_with_a_text_in_their_name(capsys: pytest.CaptureFixture[str]) -> None:
    main(["list", "envpool", "halfcheetah"])
    assert capsys.readouterr().out.split() == ["HalfCheetah-v3", "HalfCheetah-v4", "HalfCheetah-v5"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["lst"], "'python -m tasks lst' is not understood"),
        (["list", "envpol"], "Did you mean 'envpool'"),
        (["list", "torch", "CartPoel"], "Did you mean 'CartPole'"),
        (["list", "envpool", "nothing-like-it"], "environments has 'nothing-like-it' in its name"),
        (["list", "rl_games"], "has no list of ids"),
    ],
)
def test_mistakes(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        main(words)
