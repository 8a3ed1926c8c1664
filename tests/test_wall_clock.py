"""Seconds to a return: marks from lines as they come, the table, and a run of ours for real."""

from __future__ import annotations

import json
import sys

import pytest

from core.errors import UserError
from experiments.bench import wall_clock
from experiments.bench.wall_clock import Marks, Wait

WAIT = Wait((), (10, 20), 5)


def test_a_mark_needs_enough_episodes_and_counts_once():
    marks = Marks(WAIT)
    marks.take({"frames": 50, "episodes": 0}, 0.5)
    marks.take({"frames": 100, "episodes": 4, "return_mean": 30.0}, 1.0)  # four lucky episodes are no mean of five
    assert marks.reached == {}
    marks.take({"frames": 200, "episodes": 5, "return_mean": 10.0}, 2.0)
    marks.take({"frames": 300, "episodes": 9, "return_mean": 15.0}, 3.0)
    assert marks.reached == {"10": {"seconds": 2.0, "frames": 200}}
    assert not marks.all_reached
    marks.take({"frames": 400, "episodes": 12, "return_mean": 21.0}, 4.0)
    assert marks.reached["20"] == {"seconds": 4.0, "frames": 400}
    assert marks.all_reached
    assert marks.last == {"frames": 400, "return_mean": 21.0}


def test_the_table_has_medians_and_no_ratio_where_a_mark_was_missed(monkeypatch):
    monkeypatch.setattr(wall_clock, "TASKS", {"Toy": WAIT})

    def runs(*times):
        return {str(seed): {"marks": {m: {"seconds": s, "frames": 1} for m, s in marks.items()}} for seed, marks in enumerate(times)}

    ours = runs({"10": 1.0, "20": 4.0}, {"10": 2.0, "20": 5.0}, {"10": 9.0, "20": 6.0})
    theirs = runs({"10": 4.0, "20": 9.0}, {"10": 8.0}, {"10": 10.0, "20": 11.0})
    lines = wall_clock.table({"tasks": {"Toy": {"ours": ours, "sb3": theirs}}}).splitlines()[2:]
    assert lines == [
        "| Toy | 10 | 2.0 (1.0, 2.0, 9.0) | 8.0 (4.0, 8.0, 10.0) | 0.25 |",
        "| Toy | 20 | 5.0 (4.0, 5.0, 6.0) | not by all (9.0, -, 11.0) |  |",
    ]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--tasks", "CartPol"], "unknown task 'CartPol' at --tasks. Did you mean 'CartPole'"),
        (["--sides", "sb4"], "unknown side 'sb4' at --sides. Did you mean 'sb3'"),
        (["--seeds", "a"], "--seeds is 'a'"),
        (["--limit", "0"], "--limit is 0"),
        (["--limi", "0"], "See python -m experiments.bench.wall_clock --help"),
        (["--sides", "ours", "--out", "tests"], "is there already"),
    ],
)
def test_mistakes_in_words(words, told, monkeypatch):
    monkeypatch.setattr("experiments.bench.peers.version", lambda name: "1.0")
    with pytest.raises(UserError) as error:
        wall_clock.parse(words)
    assert told in str(error.value)


def test_without_sb3_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr("experiments.bench.peers.version", lambda name: None)
    with pytest.raises(UserError, match=r"pip install '\.\[bench\]'"):
        wall_clock.parse([])


def test_ours_for_real(tmp_path, monkeypatch, capsys):
    """Ends at the last mark, long before the run's own end."""
    monkeypatch.setitem(wall_clock.TASKS, "CartPole", Wait(("task=CartPole", "tuned=CartPole-quick"), (15, 25), 20))
    wall_clock.main(["--tasks", "CartPole", "--sides", "ours", "--seeds", "3", "--out", str(tmp_path / "out")])
    run = json.loads((tmp_path / "out" / "wall_clock.json").read_text())["tasks"]["CartPole"]["ours"]["3"]
    assert 0.5 < run["marks"]["15"]["seconds"] <= run["marks"]["25"]["seconds"] <= run["seconds"]
    assert run["return_mean"] >= 25
    assert run["frames"] < 100_000
    assert "| CartPole | 25 | " in capsys.readouterr().out
    assert "| CartPole | 25 | " in (tmp_path / "out" / "wall_clock.md").read_text()


def test_a_run_that_is_killed_is_no_result(tmp_path, monkeypatch):
    monkeypatch.setattr(wall_clock, "command", lambda *_: ([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"], tmp_path / "none"))
    with pytest.raises(UserError, match="a run failed"):
        wall_clock.measure("ours", "CartPole", 0, tmp_path / "log", 60)


def test_a_run_that_fails_tells_its_log(tmp_path, monkeypatch):
    monkeypatch.setitem(wall_clock.TASKS, "CartPole", Wait(("task=CartPole", "tuned=CartPole-fast"), (15,), 20))
    with pytest.raises(UserError, match=r"a run failed: .*train\.py.*\n.*unknown tuned pair 'CartPole-fast'"):
        wall_clock.measure("ours", "CartPole", 0, tmp_path / "log", 60)
