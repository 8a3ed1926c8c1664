"""What the report says: findings, warnings beside their numbers, tables, differences between configs; bad input. No browser here."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib import image

from core.errors import UserError
from experiments import results, stats
from experiments.report import content, differences, options, per_task, tables, words
from experiments.report.__main__ import main
from experiments.report.panels import COLORS, Look
from experiments.report.selection import Selection, at_times
from tests.suite_runs import run, suite_yaml

ROOT = Path(__file__).resolve().parents[1]


def make(tmp_path, scores, tasks=("A", "B"), references=None, **more):
    """{algo: scores}, the same on every task, one run each; returns the suite's path."""
    for algo, values in scores.items():
        for task in tasks:
            for seed, score in enumerate(values):
                run(tmp_path, algo, task, seed, float(score), **more)
    return suite_yaml(tmp_path, tasks, references=references)


def build(suite, tmp_path, **more):
    chosen = options.Options(str(suite), runs_dir=tmp_path, reps=200, **more)
    return content.build(results.load(chosen.suite, chosen.runs_dir, chosen.algos, chosen.tasks, chosen.frames), chosen)


def section(said, name):
    return next(s for s in said.sections if s.name == name)


def lines(table):
    return list(csv.DictReader(io.StringIO(tables.to_csv(table))))


# ---- findings -----------------------------------------------------------------------------------------------------------------


def test_the_headline_says_who_is_ahead_and_how_sure_that_is(tmp_path):
    suite = make(tmp_path, {"PPO": range(10, 20), "MyAlgo": range(30, 40)})
    assert (
        build(suite, tmp_path, algos=["PPO", "MyAlgo"]).headline
        == "MyAlgo beats PPO with probability 1.00 [1.00, 1.00]; 10 seeds, 2 tasks."
    )


E_ = stats.Estimate


@pytest.mark.parametrize(
    ("pairs", "seeds", "said"),
    [
        (
            {("B", "A"): E_(0.2, 0.1, 0.3, 5)},
            {"A": 5, "B": 5},
            "A beats B with probability 0.80 [0.70, 0.90]; 5 seeds, 6 tasks.",
        ),
        (
            {("B", "A"): E_(0.6, 0.45, 0.7, 5)},
            {"A": 10, "B": 5},
            "B cannot be told apart from A (ahead with probability 0.60 [0.45, 0.70]); 5 to 10 seeds, 6 tasks.",
        ),
        (
            {("B", "A"): E_(0.9, 0.8, 1.0, 3)},
            {"A": 3, "B": 3},
            "B is ahead of A with probability 0.90 [0.80, 1.00]; 3 seeds, 6 tasks. Only 3 seeds of A and B: too few to rest a claim on.",
        ),
        (
            {("B", "A"): E_(1.0, None, None, 1)},
            {"A": 5, "B": 1},
            "B scores above A (with probability 1.00), but one seed gives no interval and no finding; 1 to 5 seeds, 6 tasks. "
            "Only 1 seed of B: too few to rest a claim on.",
        ),
        (
            {("B", "A"): E_(0.9, 0.8, 1.0, 9), ("C", "A"): E_(0.8, 0.7, 0.9, 9), ("C", "B"): E_(0.45, 0.3, 0.6, 9)},
            {"A": 9, "B": 9, "C": 9},
            "B beats A with probability 0.90 [0.80, 1.00]; it cannot be told apart from C (ahead with probability 0.55 [0.40, 0.70]); "
            "9 seeds, 6 tasks.",
        ),
    ],
)
def test_findings_in_words(pairs, seeds, said):
    assert words.headline(pairs, seeds, 6) == said


def test_scores_are_normalised_and_aggregated(tmp_path):
    suite = make(tmp_path, {"PPO": [10, 20, 30, 40, 50], "RPO": [60] * 5})  # random 0, reference 100
    (first, second) = lines(section(build(suite, tmp_path), "aggregates").tables[0])
    assert (first["algorithm"], float(first["IQM"]), float(first["mean"])) == ("PPO", pytest.approx(0.3), pytest.approx(0.3))
    assert float(first["optimality gap"]) == pytest.approx(0.7)
    assert float(first["IQM low"]) < 0.3 < float(first["IQM high"])
    assert (float(second["IQM low"]), float(second["IQM high"]), second["seeds"], second["warnings"]) == (0.6, 0.6, "5", "")


def test_the_score_can_be_another_checkpoint_or_sampled(tmp_path):
    suite = make(tmp_path, {"PPO": [10] * 5})
    for score, mean in (("final-sampled", 0.09), ("best-deterministic", 0.11), ("best-sampled", 0.10)):
        assert float(lines(section(build(suite, tmp_path, score=score), "aggregates").tables[0])[0]["mean"]) == pytest.approx(mean)


def test_one_algorithm_is_measured_by_its_references(tmp_path):
    suite = make(tmp_path, {"PPO": [10, 20, 30, 40, 50]})
    said = build(suite, tmp_path)
    assert re.fullmatch(r"PPO reaches an IQM of 0\.30 \[0\.20, 0\.40\] of the reference; 5 seeds, 2 tasks\.", said.headline)
    assert "improvement" not in {s.name for s in said.sections}


def test_tasks_without_references_stay_out_of_normalised_scores_only(tmp_path):
    suite = make(tmp_path, {"PPO": range(10, 15), "RPO": range(30, 35)}, tasks=("A", "B"), references=("A",))
    said = build(suite, tmp_path)
    assert said.warnings == ["B: no reference scores, so it is left out where scores are normalised. Raw returns are shown."]
    assert lines(section(said, "aggregates").tables[0])[0]["tasks"] == "1"
    assert lines(section(said, "improvement").tables[0])[0]["tasks"] == "2"
    row = lines(section(said, "task-B").tables[0])[0]
    assert (row["final, deterministic mean"], row["normalised mean"]) == ("12.0", "")


def test_a_suite_without_any_reference_still_compares(tmp_path):
    suite = make(tmp_path, {"PPO": range(10, 15), "RPO": range(30, 35)}, references=())
    said = build(suite, tmp_path)
    assert said.headline.startswith("RPO beats PPO with probability 1.00")
    assert "aggregates" not in {s.name for s in said.sections}
    assert section(said, "improvement").group == "Overview"
    alone = build(suite, tmp_path, algos=["PPO"])
    assert alone.headline == "PPO on 2 tasks, 5 seeds; no reference scores to measure it by."


def test_tables_hold_mean_deviation_and_seeds(tmp_path):
    suite = make(tmp_path, {"PPO": [10, 20, 30, 40, 50]}, seconds=120.0)
    chosen = options.Options(str(suite), runs_dir=tmp_path)
    found = results.load(str(suite), tmp_path)
    table = per_task.table(Selection(found, chosen), found.tasks, "tasks", "all")
    row = lines(table)[0]
    assert (row["task"], row["algorithm"], row["seeds"], row["training time seconds"]) == ("A", "PPO", "5", "120.0")
    assert float(row["final, deterministic mean"]) == 30.0
    assert float(row["final, deterministic std"]) == pytest.approx(250**0.5)  # n - 1: 1000 / 4
    assert (float(row["best, sampled mean"]), float(row["normalised mean"])) == (30.0, 0.3)
    assert "| A | PPO | 5 | 30.0 ± 15.8 | 29.0 ± 15.8 | 31.0 ± 15.8 | 30.0 ± 15.8 | 0.30 ± 0.16 | 1k | 120.0 s | 8 |" in tables.to_markdown(
        table
    )


# ---- warnings stand where the number stands -----------------------------------------------------------------------------------------


def test_few_and_unequal_seeds(tmp_path):
    suite = make(tmp_path, {"PPO": [10, 20, 30], "RPO": range(50, 56)})
    said = build(suite, tmp_path)
    (ppo, rpo) = section(said, "aggregates").tables[0].rows
    assert ppo[1].warnings == ["3 seeds only, but RPO 6"]
    assert rpo[1].warnings == []
    assert section(said, "task-A").tables[0].rows[0][2].warnings == ["3 seeds only, but RPO 6"]
    assert section(said, "improvement").tables[0].rows[0][2].warnings == ["PPO: 3 seeds only, but RPO 6"]
    for name in ("improvement", "aggregates", "profiles", "efficiency", "task-A"):
        assert section(said, name).warnings == ["PPO: 3 seeds only, but RPO 6"], name
    assert said.headline.endswith("Only 3 seeds of PPO: too few to rest a claim on.")


def test_seeds_that_differ_by_task_are_cut_to_the_common_number(tmp_path):
    suite = make(tmp_path, {"PPO": range(10, 16)})
    run(tmp_path, "PPO", "A", 6, 1000.0)
    said = build(suite, tmp_path)
    (row,) = section(said, "aggregates").tables[0].rows
    assert row[1].warnings == ["6 to 7 seeds by task, 6 of each used"]
    assert row[3].values[""] == pytest.approx(0.125), "the seventh is not in it"
    assert section(said, "task-A").tables[0].rows[0][1].text == "7"


def test_a_single_seed_has_no_interval(tmp_path):
    suite = make(tmp_path, {"PPO": [10], "RPO": [20]})
    said = build(suite, tmp_path)
    cell = section(said, "improvement").tables[0].rows[0][2]
    assert cell.text == "1.00"
    assert cell.values == {"": 1.0, "low": None, "high": None}
    assert "one seed gives no interval" in said.headline


def test_unfinished_runs_are_counted_and_do_not_count(tmp_path):
    suite = make(tmp_path, {"PPO": range(10, 15)})
    run(tmp_path, "PPO", "A", 5, 1000.0, done=False)
    said = build(suite, tmp_path)
    row = section(said, "task-A").tables[0].rows[0]
    assert (row[1].text, row[2].text, row[2].warnings) == ("5", "12.0 ± 1.6", ["1 of 6 runs unfinished"])
    assert said.warnings == ["1 of 11 runs unfinished and not counted."]
    assert section(said, "task-A").warnings == ["PPO: 1 of 6 runs unfinished"]
    runs = lines(section(said, "runs").tables[0])
    assert [r["warnings"] for r in runs if r["state"] == "unfinished"] == ["unfinished: 500 of 1,000 frames"]


def test_unequal_budgets_between_algorithms(tmp_path):
    suite = make(tmp_path, {"PPO": range(10, 15)}, tasks=("A",))
    make(tmp_path, {"RPO": range(10, 15)}, tasks=("A",), budget=2_000_000)
    said = build(suite, tmp_path)
    (ppo, rpo) = section(said, "task-A").tables[0].rows
    assert ppo[2].warnings == ["unequal budgets: 1k frames, RPO 2M"]
    assert rpo[2].warnings == ["unequal budgets: 2M frames, PPO 1k"]
    assert section(said, "efficiency").panels[0].xlabel == "share of the budget, %"
    assert section(said, "improvement").warnings == ["PPO: unequal budgets: 1k frames, RPO 2M", "RPO: unequal budgets: 2M frames, PPO 1k"]


def test_a_cut_record_is_told_beside_its_curve_which_ends_there(tmp_path):
    suite = make(tmp_path, {"PPO": range(10, 15)}, tasks=("A",))
    (file,) = tmp_path.glob("mine/A/PPO/seed3-*/metrics.jsonl")
    whole = file.read_text().split("\n")
    file.write_text("\n".join(whole[:7]) + "\n" + whole[7][:10])
    found = section(build(suite, tmp_path), "task-A")
    assert found.warnings == ["PPO: seed 3: metrics.jsonl is cut off at line 8, the curve ends there"]
    for panel, end in zip(found.panels, (700, 7.0), strict=True):
        ((_, band, _),) = panel.series
        assert band.x[-1] == end


def test_a_task_that_an_algorithm_has_not_finished_is_left_out_of_comparisons(tmp_path):
    suite = make(tmp_path, {"PPO": range(10, 15)}, tasks=("A", "B"))
    make(tmp_path, {"RPO": range(30, 35)}, tasks=("A",))
    suite = suite_yaml(tmp_path, ("A", "B"))
    said = build(suite, tmp_path)
    assert said.warnings == ["B is left out of all comparisons: no finished run of RPO."]
    assert said.headline.endswith("5 seeds, 1 task.")
    absent = section(said, "task-B").tables[0].rows[1]
    assert [cell.text for cell in absent[:3]] == ["RPO", "0", "—"]


def test_seeds_of_different_configs_or_code_are_told(tmp_path):
    suite = make(tmp_path, {"PPO": range(10, 15)}, tasks=("A",), config={"train": {"params": {"config": {"gamma": 0.99}}}})
    run(tmp_path, "PPO", "A", 5, 12.0, config={"train": {"params": {"config": {"gamma": 0.9}}}}, commit="fedcba9876543210")
    said = build(suite, tmp_path)
    assert section(said, "task-A").tables[0].rows[0][2].warnings == ["seeds with different configs (train.params.config.gamma)"]
    commits = section(said, "versions").tables[0].rows[0][1]
    assert (commits.text, commits.warnings) == ("012345678; fedcba987", ["2 states of the code"])


def test_the_commands_that_make_it_again_are_told(tmp_path):
    suite = make(tmp_path, {"PPO": range(3), "RPO": range(3)}, tasks=("A",))
    assert section(build(suite, tmp_path, seed=7), "versions").commands == (
        f"python -m experiments.suite suite={suite} algos=[PPO,RPO] runs_dir={tmp_path} seeds=3",
        f"python -m experiments.report suite={suite} algos=[PPO,RPO] runs_dir={tmp_path} reps=200 seed=7",
    )
    run(tmp_path, "PPO", "A", 11, 5.0)
    assert section(build(suite, tmp_path), "versions").commands[0].endswith("seeds=[0,1,2,11]")


def test_a_run_is_told_by_what_makes_it_again(tmp_path):
    """The cell's words for train.py, not the command of the worker that carried it."""
    suite = make(tmp_path, {"PPO": range(2)}, tasks=("A",))
    (file,) = tmp_path.glob("mine/A/PPO/seed1-*/cell.json")
    file.write_text(
        json.dumps({**json.loads(file.read_text()), "overrides": ["task=A", "train.params.network.mlp.units=[8, 8]", "seed=1"]})
    )
    extra = section(build(suite, tmp_path), "runs").tables[0].extra
    commands = [line["command"] for line in extra]
    assert commands == ["train.py train=PPO task=A", "python train.py task=A 'train.params.network.mlp.units=[8, 8]' seed=1"]


def test_uncommitted_code_is_told_beside_the_commit(tmp_path):
    suite = make(tmp_path, {"PPO": range(5)}, tasks=("A",))
    (file,) = tmp_path.glob("mine/A/PPO/seed2-*/run.json")
    about = json.loads(file.read_text())
    about["sessions"][0]["git"]["differs"] = True
    file.write_text(json.dumps(about))
    commits = section(build(suite, tmp_path), "versions").tables[0].rows[0][1]
    assert commits.warnings == ["2 states of the code", "not all of the code is in a commit"]


def test_runs_without_a_finished_episode_and_scores_that_are_no_number(tmp_path):
    suite = make(tmp_path, {"PPO": range(5)}, tasks=("A",), lines=[{"epoch": 1, "frames": 1000, "seconds": 1.0}])
    (file,) = tmp_path.glob("mine/A/PPO/seed2-*/eval.json")
    played = json.loads(file.read_text())
    played["checkpoints"]["final"]["deterministic"]["return"]["mean"] = None  # how NaN is written
    file.write_text(json.dumps(played))
    found = section(build(suite, tmp_path), "task-A")
    for panel in found.panels:
        assert (panel.series, panel.warnings) == ([], ["PPO: no curve, as not every run has finished an episode"])
    assert found.tables[0].rows[0][2].warnings == ["4 seeds only", "1 of 5 runs without this score"]
    assert main([f"suite={suite}", f"runs_dir={tmp_path}", "reps=100"]) == tmp_path / "mine" / "report" / "index.html"


def test_times_of_different_machines_are_told_beside_the_time_axis(tmp_path):
    suite = make(tmp_path, {"PPO": range(10, 15)}, tasks=("A",))
    (file,) = tmp_path.glob("mine/A/PPO/seed2-*/run.json")
    about = json.loads(file.read_text())
    file.write_text(json.dumps({**about, "hardware": {"cpu": "B CPU", "cores": 64, "memory_gib": 1.0, "gpus": ["H100"]}}))
    over_frames, over_time = section(build(suite, tmp_path), "task-A").panels
    assert over_frames.warnings == []
    assert over_time.warnings == ["run on 2 kinds of machine: times do not compare"]


# ---- curves over time ---------------------------------------------------------------------------------------------------------------


def test_returns_over_time_hold_the_last_value(tmp_path):
    suite = make(tmp_path, {"PPO": [10]}, tasks=("A",))
    (one,) = results.load(str(suite), tmp_path).of("PPO", "A")  # one unit of return a second, for 10 seconds
    assert at_times(one, [1.0, 2.5, 10.0, 99.0]).tolist() == pytest.approx([1.0, 2.0, 10.0, 10.0])
    assert str(at_times(one, [0.5])[0]) == "nan"


# ---- configs ------------------------------------------------------------------------------------------------------------------------


def test_differences_name_only_what_changes_results():
    def config(gamma, seed, **more):
        return {
            "seed": seed,
            "run_dir": f"runs/{seed}",
            "wandb_project": str(seed),
            "train": {"params": {"gamma": gamma, "units": [1, 2]}},
            **more,
        }

    found = differences.between(
        {
            "A": {"x": config(0.99, 1), "y": config(0.99, 2)},
            "B": {"x": config(0.99, 3, extra=True), "y": config(0.9, 4)},
            "C": {"x": config(0.99, 5)},
        }
    )
    assert found == {
        "extra": {"A": "—", "B": "true (x); — (y)", "C": "—"},
        "train.params.gamma": {"A": "0.99", "B": "0.99 (x); 0.9 (y)", "C": "0.99"},
    }
    assert differences.differing([config(1, 1), config(1, 2)]) == []


# ---- tables ---------------------------------------------------------------------------------------------------------------------------


def test_latex_is_escaped_and_has_its_warnings_as_footnotes():
    table = tables.Table("t", "50 % of_all", ["a_b", "n"], [[tables.text("x & y"), tables.Cell("1 ± 2", {"": 1}, ["3 seeds_only"])]])
    assert tables.to_latex(table).splitlines() == [
        r"\begin{table}",
        r"\centering",
        r"\caption{50 \% of\_all}",
        r"\label{tab:t}",
        r"\begin{tabular}{lr}",
        r"\toprule",
        r"a\_b & n \\",
        r"\midrule",
        r"x \& y & 1 $\pm$ 2$^{a}$ \\",
        r"\bottomrule",
        r"\end{tabular}",
        r"\par\footnotesize $^{a}$ 3 seeds\_only.",
        r"\end{table}",
    ]
    assert [tables._letter(n) for n in (0, 25, 26, 52)] == ["a", "z", "aa", "ba"]


def test_markdown_keeps_its_columns_whatever_a_cell_holds():
    table = tables.Table("t", "t", ["a", "b"], [[tables.text("x|y\nz"), tables.Cell("1", {"": 1}, ["w"])]])
    assert tables.to_markdown(table) == "| a | b |\n| --- | ---: |\n| x\\|y z | 1<br>⚠ w |\n"


@pytest.mark.parametrize(
    ("value", "said"), [(4836.2, "4,836"), (490.13, "490.1"), (-151.1, "-151.1"), (0.934, "0.93"), (-0.5, "-0.50"), (0, "0.00")]
)
def test_numbers(value, said):
    assert words.number(value) == said


def test_a_deviation_has_the_decimals_of_its_mean():
    assert words.spread(4836.0, 117.13) == "4,836 ± 117"
    assert words.spread(0.5, None) == "0.50"
    assert [words.duration(s) for s in (3.21, 600, 36_000)] == ["3.2 s", "10.0 min", "10.0 h"]
    assert [words.count(n) for n in (999, 20_000, 1e6, 1_500_000, 2e9)] == ["999", "20k", "1M", "1.5M", "2G"]


def test_an_algorithm_has_one_look_and_the_first_seven_their_own_colour():
    assert len({Look(n).color for n in range(len(COLORS))}) == len(COLORS) == 7
    assert (Look(7).color, Look(7).dash) == (Look(0).color, ("dash", "--"))


# ---- the command ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "suite= is missing"),
        (["suite=x", "algo=[PPO]"], "unknown key 'algo' at 'algo=[PPO]'. Did you mean 'algos'"),
        (["suite=x", "suite=y"], "suite= stands twice"),
        (["suite="], "write suite=value"),
        (["suite=x", "score=final"], "unknown score 'final' at score=. Did you mean 'final-sampled'"),
        (["suite=x", "reps=10"], "reps is '10', but must be a whole number from 100 on"),
        (["suite=x", "frames=many"], "frames is 'many'"),
        (["suite=x", "seed=-1"], "seed is '-1', but must be a whole number from 0 on"),
        (["suite=x", "algos=[PPO,]"], "write algos=[A,B]"),
    ],
)
def test_a_bad_option_is_a_clear_error(argv, said):
    with pytest.raises(UserError) as error:
        options.parse(argv)
    assert said in str(error.value)


def test_options_are_read_and_written_again():
    found = options.parse(["suite=mujoco", "algos=PPO,RPO", "frames=1e6", "out=x", "reps=5_000"])
    assert (found.algos, found.frames, found.reps, found.checkpoint, found.mode) == (
        ["PPO", "RPO"],
        1_000_000,
        5000,
        "final",
        "deterministic",
    )
    assert found.words() == "suite=mujoco algos=[PPO,RPO] frames=1000000 reps=5000"
    assert found.words("suite", "runs_dir") == "suite=mujoco"


def test_no_finished_run_is_a_clear_error(tmp_path):
    run(tmp_path, "PPO", "A", 0, 10.0, done=False)
    suite = suite_yaml(tmp_path, ("A",))
    with pytest.raises(UserError, match=r"no run of suite 'mine' \(1 run\) is finished .* --status"):
        build(suite, tmp_path)


def test_a_mistake_ends_with_status_2_and_no_traceback(tmp_path):
    command = [sys.executable, "-m", "experiments.report", "suite=clasic", f"runs_dir={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: unknown suite 'clasic'")
    assert "Traceback" not in done.stderr


def test_the_report_is_written_and_the_same_each_time(tmp_path):
    suite = make(tmp_path, {"PPO": range(10, 16), "RPO <b>&": range(12, 18)})
    found = []
    for name in ("one", "two"):
        page = main([f"suite={suite}", f"runs_dir={tmp_path}", f"out={tmp_path / name}", "reps=100"])
        assert page == tmp_path / name / "index.html"
        found.append({p.relative_to(page.parent): p.read_bytes() for p in page.parent.rglob("*") if p.is_file()})
    assert found[0] == found[1]
    assert {str(path) for path in found[0]} == {
        "index.html",
        "report.md",
        *(
            f"tables/{name}.{form}"
            for name in ("tasks", "improvement", "aggregates", "task-A", "task-B", "configs", "versions", "references", "runs")
            for form in ("csv", "tex")
        ),
        *(
            f"figures/{name}.{form}"
            for name in ("improvement", "aggregates", "profiles", "efficiency", "task-A", "task-B")
            for form in ("png", "svg")
        ),
    }
    for path in (tmp_path / "one" / "figures").glob("*.png"):
        picture = image.imread(path)
        assert (picture[..., :3].reshape(-1, 3).std(axis=0) > 0.03).all(), f"{path.name} is blank"
    text = (tmp_path / "one" / "report.md").read_text()
    assert text.startswith("# mine: PPO, RPO <b>&\n\n**")
    for picture in re.findall(r"\]\((figures/.*?)\)", text):
        assert (tmp_path / "one" / picture).is_file()
    html = (tmp_path / "one" / "index.html").read_text()
    assert "<b>&" not in html.replace("RPO <b>&amp;", ""), "a name is text, not markup"


def test_a_report_that_cannot_be_written_is_a_clear_error(tmp_path):
    suite = make(tmp_path, {"PPO": range(5)}, tasks=("A",))
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match=r"cannot write the report to '.*taken'"):
        main([f"suite={suite}", f"runs_dir={tmp_path}", f"out={tmp_path / 'taken'}", "reps=100"])
