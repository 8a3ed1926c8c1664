"""Runs of a suite as data: the grid, cut files, what is done, and one meaning for every name."""

from __future__ import annotations

import json

import numpy as np
import pytest

from core.errors import UserError
from experiments import results
from tests.suite_runs import run, suite_yaml


def epochs(*pairs, seconds_per_frame=0.1):
    return [{"frames": f, "seconds": f * seconds_per_frame, **({} if r is None else {"return_mean": r})} for f, r in pairs]


def test_the_grid_holds_the_last_value_at_or_before():
    lines = epochs((150, None), (250, 1.0), (400, 2.0), (900, 5.0), (1010, 9.0))
    frames, returns, seconds = results.on_grid(lines, 1000, 5, ended=True)
    assert frames.tolist() == [200, 400, 600, 800, 1000]
    # before the first episode nothing; 400 is reached at 400; the epoch that ends at 1010 is beyond the budget
    assert np.isnan(returns[0])
    assert returns[1:].tolist() == [2.0, 2.0, 2.0, 5.0]
    assert seconds.tolist() == pytest.approx([15, 40, 40, 40, 90])


def test_a_run_that_stopped_early_keeps_its_return_and_one_that_did_not_end_has_none():
    lines = epochs((300, 7.0))
    assert results.on_grid(lines, 1000, 2, ended=True)[1].tolist() == [7.0, 7.0]
    returns = results.on_grid(lines, 600, 3, ended=False)[1]  # grid 200, 400, 600; nothing known at 200, nor beyond 300
    assert np.isnan(returns).all()
    assert np.isnan(results.on_grid([], 600, 3, ended=True)[1]).all()


def test_metrics_are_read_up_to_the_last_whole_line(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"epoch": 1}\n{"epoch": 2}\n{"epo')
    assert results.read_metrics(file) == ([{"epoch": 1}, {"epoch": 2}], "metrics.jsonl is cut off at line 3, the curve ends there")
    file.write_text('{"epoch": 1}\n{"epo\n{"epoch": 3}\n')
    assert results.read_metrics(file) == ([{"epoch": 1}], "metrics.jsonl is damaged at line 2, the curve ends there")
    file.write_text('{"epoch": 1}\n')
    assert results.read_metrics(file) == ([{"epoch": 1}], None)
    assert results.read_metrics(tmp_path / "none") == ([], "no metrics.jsonl")


def test_runs_are_read_with_scores_curves_and_notes(tmp_path):
    suite = suite_yaml(tmp_path, ("B", "A"))
    run(tmp_path, "PPO", "A", 3, 80.0)
    cut = run(tmp_path, "PPO", "A", 1, 60.0)
    run(tmp_path, "PPO", "B", 0, 50.0)
    run(tmp_path, "RPO", "A", 0, 90.0, done=False, errors=("first", "out of memory"))
    with (cut / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 11, "fra')
    found = results.load(str(suite), tmp_path)
    assert (found.suite, found.tasks, found.algos) == ("mine", ["B", "A"], ["PPO", "RPO"])
    assert [r.seed for r in found.of("PPO", "A")] == [1, 3]
    one, other = found.of("PPO", "A")
    assert [one.score(c, m) for c, m in results.MEASURES] == [60.0, 59.0, 61.0, 60.0]
    assert other.curve[1].tolist() == pytest.approx([8 * n for n in range(1, 11)])
    assert (one.done, one.frames, one.seconds, one.budget) == (True, 1000, 10.0, 1000)
    assert one.notes == ["metrics.jsonl is cut off at line 11, the curve ends there"]
    (left,) = found.of("RPO", "A")
    assert (left.done, left.frames, left.score("final", "deterministic")) == (False, 500, None)
    assert left.notes == ["unfinished: 500 of 1,000 frames", "failed: out of memory"]
    assert np.isnan(left.curve[1][5:]).all()
    assert left.curve[1][:5].tolist() == pytest.approx([9, 18, 27, 36, 45])
    assert found.of("RPO", "B") == []


def test_a_run_without_its_evaluation_is_not_done(tmp_path):
    suite = suite_yaml(tmp_path, ("A",))
    path = run(tmp_path, "PPO", "A", 0, 80.0)
    (path / "eval.json").unlink()
    (found,) = results.load(str(suite), tmp_path).of("PPO", "A")
    assert not found.done
    assert found.notes == ["trained, but not evaluated"]


def test_a_training_that_was_stopped_is_not_done(tmp_path):
    suite = suite_yaml(tmp_path, ("A",))
    path = run(tmp_path, "PPO", "A", 0, 80.0)
    result = json.loads((path / "result.json").read_text())
    (path / "result.json").write_text(json.dumps({**result, "exit_reason": "interrupted", "frames": 400}))
    (found,) = results.load(str(suite), tmp_path).of("PPO", "A")
    assert (found.done, found.notes) == (False, ["unfinished: 400 of 1,000 frames"])


def test_references_normalise_and_go_by_the_name_of_the_task(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "tasks: {Big: {task: Mine, frames: 1000}, Other: {frames: 1000}}\nreferences: {Mine: {random: -10, reference: 90, source: x}}\n"
    )
    for task in ("Big", "Other"):
        run(tmp_path, "PPO", task, 0, 80.0, suite="mine")
    found = results.load(str(path), tmp_path).references
    assert found.keys() == {"Big"}
    assert found["Big"].normalise(40) == 0.5
    assert found["Big"].normalise(np.array([-10.0, 90.0])).tolist() == [0.0, 1.0]


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("{random: 0, reference: 1}", "references.T.source is missing"),
        ("{random: low, reference: 1, source: x}", "references.T.random is 'low', but should be a valid number"),
        ("{random: 5, reference: 5, source: x}", "both 5.0, which normalises nothing"),
    ],
)
def test_a_reference_that_cannot_be_is_named(entry, said, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(f"tasks: {{T: {{frames: 1000}}}}\nreferences: {{T: {entry}}}\n")
    with pytest.raises(UserError, match=said):
        results.load(str(path), tmp_path)


def test_what_is_not_there_is_named_with_what_is(tmp_path):
    suite = str(suite_yaml(tmp_path, ("CartPole",)))
    with pytest.raises(
        UserError, match=r"no runs in '.*mine'. This makes them: python -m experiments.suite suite=.*mine.yaml algos=\[PPO,RPO\]"
    ):
        results.load(suite, tmp_path, ["PPO", "RPO"])
    run(tmp_path, "PPO", "CartPole", 0, 80.0)
    with pytest.raises(UserError, match=r"no runs of algorithm 'PP0' \(algos=\) in .* There are: PPO\. Did you mean 'PPO'\?"):
        results.load(suite, tmp_path, ["PPO", "PP0"])
    with pytest.raises(UserError, match=r"no runs of algorithm 'XYZ' .* This makes them: python -m experiments.suite .*algos=\[XYZ\]"):
        results.load(suite, tmp_path, ["XYZ"])
    with pytest.raises(UserError, match=r"no runs of task 'CartPol' .* Did you mean 'CartPole'"):
        results.load(suite, tmp_path, tasks=["CartPol"])
    with pytest.raises(UserError, match="no runs with frames=7 in"):
        results.load(suite, tmp_path, frames=7)
    with pytest.raises(UserError, match=r"unknown suite 'mien' at suite=. Did you mean 'mine'"):
        results.load("mien", tmp_path)
    with pytest.raises(UserError, match=r"no file 'none\.yaml'"):
        results.load("none.yaml", tmp_path)


def test_a_suite_goes_by_name_where_it_has_runs(tmp_path):
    run(tmp_path, "PPO", "CartPole", 0, 80.0)
    assert len(results.load("mine", tmp_path).of("PPO", "CartPole")) == 1


def test_different_budgets_under_one_name_are_refused_and_one_can_be_chosen(tmp_path):
    suite = str(suite_yaml(tmp_path, ("A",)))
    run(tmp_path, "PPO", "A", 0, 80.0, budget=1000)
    run(tmp_path, "PPO", "A", 1, 80.0, budget=2000)
    with pytest.raises(
        UserError, match=r"PPO on A has runs of different budgets: 1,000 frames .* 2,000 frames .*frames=1000 or frames=2000"
    ):
        results.load(suite, tmp_path)
    assert [r.seed for r in results.load(suite, tmp_path, frames=2000).of("PPO", "A")] == [1]


def test_two_runs_of_one_seed_are_refused(tmp_path):
    suite = str(suite_yaml(tmp_path, ("A",)))
    run(tmp_path, "PPO", "A", 4, 80.0, key="aaaaaaaaaa")
    run(tmp_path, "PPO", "A", 4, 90.0, key="bbbbbbbbbb")
    with pytest.raises(UserError, match=r"two runs of seed 4 .*seed4-aaaaaaaaaa' and '.*seed4-bbbbbbbbbb'"):
        results.load(suite, tmp_path)


def test_a_damaged_file_is_named(tmp_path):
    suite = str(suite_yaml(tmp_path, ("A",)))
    path = run(tmp_path, "PPO", "A", 0, 80.0)
    (path / "eval.json").write_text('{"proto')
    with pytest.raises(UserError, match=r"eval.json' is not valid JSON"):
        results.load(suite, tmp_path)
