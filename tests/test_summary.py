"""The table over seeds, by hand."""

from __future__ import annotations

import json

import pytest

from core.errors import UserError
from experiments.summary import read, table


def make(path, seed, evaluated, trained):
    path.mkdir()
    result = {"task": "Pendulum", "algo": "rpo", "seed": seed, "frames": 1000, "seconds": 60.0, "return_mean": trained}
    played = {"return": {"mean": evaluated}, "episodes": 100, "deterministic": True, "checkpoint": "runs/x/nn/last.pth"}
    for name, content in (("result", result), ("eval", played), ("run", {"git": {"commit": "abc"}})):
        (path / f"{name}.json").write_text(json.dumps(content))
    return path


def test_mean_and_deviation_between_seeds(tmp_path):
    runs = [make(tmp_path / str(i), i, value, value - 10) for i, value in enumerate([-140.0, -150.0, -160.0])]
    line = table([read(run) for run in runs]).splitlines()[2]
    assert line == ("| Pendulum | rpo (last.pth) | 1,000 | 0, 1, 2 | -150.0 ± 10.0 | -140.0, -150.0, -160.0 | -160.0 ± 10.0 | 1.0 |")


def test_a_run_that_was_not_evaluated_is_named(tmp_path):
    run = make(tmp_path / "a", 0, 0.0, 0.0)
    (run / "eval.json").unlink()
    with pytest.raises(UserError, match=r"has no eval\.json: evaluate it first"):
        read(run)


def test_a_run_of_a_suite_has_another_reader(tmp_path):
    run = make(tmp_path / "a", 0, 0.0, 0.0)
    (run / "eval.json").write_text(json.dumps({"checkpoints": {}}))
    with pytest.raises(UserError, match=r"experiments\.report"):
        read(run)
