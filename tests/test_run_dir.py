"""The run directory: names, refusals, atomic files, and a metrics file that has each epoch once after a resume."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from core import provenance
from core.errors import UserError
from core.files import write_text, write_through
from core.run_dir import RunDir, plain, read_metrics, write_json


def made(tmp_path: Path) -> RunDir:
    run = RunDir.create(str(tmp_path), "CartPole_PPO")
    run.write_config({"task": "CartPole"})
    return run


def test_a_stamped_directory_and_its_paths(tmp_path: Path) -> None:
    run = RunDir.create(str(tmp_path / "runs"), "ALE/Pong-v5_PPO")
    assert re.fullmatch(r"ALE-Pong-v5_PPO_\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", run.path.name)
    assert run.nn.is_dir()
    assert run.summaries.is_dir()
    assert not run.videos.exists()
    assert (run.best, run.last) == (run.path / "nn" / "best.pth", run.path / "nn" / "last.pth")


def test_runs_of_one_second_get_their_own_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock:
        @staticmethod
        def now() -> Clock:
            return Clock()

        def strftime(self, _: str) -> str:
            return "_2026-01-02_03-04-05"

    monkeypatch.setattr("core.run_dir.datetime.datetime", Clock)
    names = [RunDir.create(str(tmp_path), "A_B").path.name for _ in range(3)]
    assert names == [f"A_B_2026-01-02_03-04-05{suffix}" for suffix in ("", "-2", "-3")]


def test_an_exact_directory_may_be_empty_but_not_full(tmp_path: Path) -> None:
    exact = tmp_path / "mine"
    exact.mkdir()
    assert RunDir.create("unused", "A_B", str(exact)).path == exact
    with pytest.raises(UserError, match=r"mine' is not empty: .* resume="):
        RunDir.create("unused", "A_B", str(exact))
    assert not Path("unused").exists()


@pytest.mark.parametrize("exact", [None, "blocked/mine"])
def test_what_cannot_be_written_is_told_at_once(tmp_path: Path, exact: str | None) -> None:
    (tmp_path / "blocked").write_text("a file stands where the directory should be")
    with pytest.raises(UserError, match=r"cannot write the run.*blocked"):
        RunDir.create(str(tmp_path / "blocked"), "A_B", exact and str(tmp_path / exact))


def test_open_names_the_nearest_run(tmp_path: Path) -> None:
    run = made(tmp_path)
    assert RunDir.open(str(run.path)).path == run.path
    with pytest.raises(UserError, match=rf"Did you mean '.*{run.path.name}'"):
        RunDir.open(str(run.path)[:-1])
    with pytest.raises(UserError, match=r"has no config.yaml"):
        RunDir.open(str(tmp_path))


def test_config_survives_the_round_trip_and_is_not_overwritten_silently(tmp_path: Path) -> None:
    run = made(tmp_path)
    first = {"train": {"lr": 3e-4, "small": 1e-5, "units": [64, 64], "limit": math.inf, "none": None, "yes": "no"}}
    run.write_config(first)
    assert run.read_config() == first
    run.write_config(first)
    assert yaml.safe_load((run.path / "config.1.yaml").read_text()) == {"task": "CartPole"}
    assert not (run.path / "config.2.yaml").exists()
    run.write_config({"seed": np.int64(3)})
    assert run.read_config() == {"seed": 3}
    assert yaml.safe_load((run.path / "config.2.yaml").read_text()) == first


def test_run_json_tells_the_story_of_a_killed_and_resumed_run(tmp_path: Path) -> None:
    run = made(tmp_path)
    run.start({"task": "CartPole", "algo": "PPO", "seed": 3})
    story = json.loads((run.path / "run.json").read_text())
    assert (story["seed"], story["exit_reason"], story["end"]) == (3, "running", None)
    assert story["packages"]["torch"] == torch.__version__
    assert story["command"] == sys.orig_argv
    assert set(story) >= {"git", "packages", "hardware", "start", "sessions"}
    assert story["hardware"]["cores"] >= 1

    RunDir.open(str(run.path)).start({"task": "CartPole", "algo": "PPO", "seed": 3})  # the first session never finished
    RunDir.open(str(run.path)).finish("max_frames")
    after = json.loads((run.path / "run.json").read_text())
    assert [s["exit_reason"] for s in after["sessions"]] == ["killed", "max_frames"]
    assert after["exit_reason"] == "max_frames"
    assert after["start"] == story["start"]
    assert after["end"] is not None


def test_git_state_of_a_repository(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True)

    git("init")
    (tmp_path / "a.py").write_text("1")
    fresh = provenance.git_state(tmp_path)
    assert fresh is not None
    assert fresh["commit"] is None
    assert fresh["differs"]
    git("add", ".")
    git("commit", "-m", "one")
    clean = provenance.git_state(tmp_path)
    assert clean is not None
    assert len(clean["commit"]) == 40
    assert not clean["differs"]
    (tmp_path / "a.py").write_text("2")
    changed = provenance.git_state(tmp_path)
    assert changed is not None
    assert changed["commit"] == clean["commit"]
    assert changed["changed"] == ["M a.py"]


def test_git_state_without_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert provenance.git_state(tmp_path) is None  # no repository
    monkeypatch.setenv("PATH", "")
    assert provenance.git_state(Path(__file__).parent) is None


def test_metrics_are_one_line_per_epoch_and_valid_json(tmp_path: Path) -> None:
    run = made(tmp_path)
    run.append_metrics({"epoch": 1, "frames": 10, "loss": float("nan"), "kl": np.float32(0.5), "top": torch.tensor(2.0)})
    lines = run.metrics_path.read_text().splitlines()  # read while the file is still open: it was flushed
    assert lines == ['{"epoch": 1, "frames": 10, "loss": null, "kl": 0.5, "top": 2.0}']
    run.close()


def test_resume_writes_each_epoch_once(tmp_path: Path) -> None:
    run = made(tmp_path)
    for epoch in range(1, 6):
        run.append_metrics({"epoch": epoch, "try": 1})
    run.close()
    with run.metrics_path.open("a") as file:
        file.write('{"epoch": 6, "tr')  # killed in the middle of a line
    assert [m["epoch"] for m in read_metrics(run.metrics_path)] == [1, 2, 3, 4, 5]

    resumed = RunDir.open(str(run.path))
    resumed.truncate_metrics(3)
    for epoch in (4, 5):
        resumed.append_metrics({"epoch": epoch, "try": 2})
    resumed.close()
    assert [(m["epoch"], m["try"]) for m in read_metrics(run.metrics_path)] == [(1, 1), (2, 1), (3, 1), (4, 2), (5, 2)]


def test_truncating_goes_on_with_an_open_file_and_without_one(tmp_path: Path) -> None:
    run = made(tmp_path)
    run.truncate_metrics(0)
    run.append_metrics({"epoch": 1})
    run.truncate_metrics(0)
    run.append_metrics({"epoch": 1})
    assert read_metrics(run.metrics_path) == [{"epoch": 1}]
    run.close()


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_json(path, {"a": 1})

    def half(temporary: Path) -> None:
        temporary.write_text('{"a":')
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_through(path, half)
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_the_old_file_stands_until_the_new_one_is_whole_and_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "eval.json"
    write_text(path, "old")
    seen = []

    def look(descriptor: int) -> None:
        seen.append(path.read_text())
        temporary = next(p for p in tmp_path.iterdir() if p != path)
        assert temporary.read_text() == "new"

    monkeypatch.setattr("core.files.os.fsync", look)
    write_text(path, "new")
    assert seen == ["old"]
    assert path.read_text() == "new"


def test_results_are_written_where_scripts_look(tmp_path: Path) -> None:
    run = made(tmp_path)
    run.write_result({"return_mean": float("inf"), "checkpoint": run.best})
    run.write_eval({"per_episode": [{"return": np.float64(1.5)}]})
    assert json.loads((run.path / "result.json").read_text()) == {"return_mean": None, "checkpoint": str(run.best)}
    assert json.loads((run.path / "eval.json").read_text()) == {"per_episode": [{"return": 1.5}]}


def test_plain_values() -> None:
    given = {"a": (1, True), 2: np.array([[1.0, np.nan]]), "t": torch.tensor([1, 2]), "d": torch.device("cpu"), "s": None}
    assert plain(given) == {"a": [1, True], "2": [[1.0, None]], "t": [1, 2], "d": "cpu", "s": None}
    assert plain([math.inf], finite=False) == [math.inf]
