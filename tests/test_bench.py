"""The benchmark's parts: options, sides, what is read from a meter, statistics, tables and pictures. Nothing is trained here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from matplotlib import image

from algos.capture import Captured
from core.errors import UserError
from experiments.bench import chart, load, measure, peers, raw, report, scaling, stats
from experiments.bench.options import parse
from experiments.bench.sides import ROOT, Side, members, sides, variants
from experiments.bench.workloads import WORKLOADS, seeded, torch_cartpole


def run(fps, seconds=None, **more):
    return {"fps": fps, "start": 2.0, "first_epoch": 3.0, "peak_mib": 400.0, "seconds": seconds, **more}


# ---- options ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--workloads", "A,Z"], "unknown workload 'Z' at --workloads"),
        (["--workloads", "lsmt"], "Did you mean 'lstm'"),
        (["--rounds", "0"], "--rounds is 0, but must be at least 1"),
        (["--rounds", "many"], "invalid int value: 'many'"),
        (["--peers", "sb4"], "Did you mean 'sb3'"),
        (["--scaling", "jax"], "unknown kind of environment 'jax'"),
        (["--scaling", "--envs", "1,x"], "--envs is '1,x'"),
        (["--scaling", "--envs", "0"], "from 1 on"),
        (["--envs", "1"], "--envs is for --scaling"),
        (["--round", "5"], "unrecognized arguments: --round"),
        (["--ours", "/nowhere"], "'/nowhere' holds no train.py"),
        (["--variant", "plain"], "name:key=value"),
        (["--variant", "stock:a=1"], "'stock' is taken"),
        (["--variant", "raw:a=1"], "'raw' is taken"),
        (["--variant", "x:a=1", "--variant", "x:a=2"], "'x' stands twice"),
        (["--out", str(ROOT)], "is no empty folder"),
    ],
)
def test_a_bad_option_is_a_clear_error(argv, said):
    with pytest.raises(UserError) as error:
        parse(argv)
    assert said in str(error.value)


def test_a_bad_option_ends_with_status_2_and_no_traceback():
    done = subprocess.run(
        [sys.executable, "-m", "experiments.bench", "--workloads", "Q"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: unknown workload 'Q'")
    assert "Traceback" not in done.stderr


def test_without_a_gpu_its_rows_are_named_and_left_out(monkeypatch):
    monkeypatch.setattr("experiments.bench.options._has_cuda", lambda: False)
    options = parse([])
    assert options.workloads == ["A", "B", "C", "ray", "lstm", "hooks"]
    assert [line.split(" ")[0] for line in options.not_measured] == ["gpu4096", "gpu65536"]
    with pytest.raises(UserError, match="no CUDA device"):
        parse(["--workloads", "gpu4096"])
    monkeypatch.setattr("experiments.bench.options._has_cuda", lambda: True)
    assert "gpu65536" in parse([]).workloads


def test_a_peer_that_is_not_installed_is_named_and_skipped(monkeypatch):
    monkeypatch.setattr(peers, "version", lambda name: "1.0" if name == "sb3" else None)
    options = parse(["--peers", "sb3,skrl"])
    assert [side.name for side in options.sides] == ["stock", "ours", "sb3"]
    assert "peer skrl: skrl is not installed (pip install '.[bench]')" in options.not_measured


# ---- sides ------------------------------------------------------------------------------------------------------------------


def test_variants_split_at_commas_that_begin_a_key():
    assert variants(["plain:a.b=[1,2],c={d:1,e:2},+x=3"]) == [("plain", ("a.b=[1,2]", "c={d:1,e:2}", "+x=3"))]


def test_every_checkout_gets_every_variant(tmp_path):
    (tmp_path / "train.py").touch()
    made = sides([f"old={tmp_path}", str(ROOT)], ["plain:a=1"])
    assert [side.name for side in made] == ["stock", "old", "old/plain", "ours", "ours/plain"]
    assert made[2] == Side("old/plain", tmp_path, ("a=1",))
    assert [side.name for side in sides([], ["plain:a=1"])] == ["stock", "ours", "plain"]


def test_hooks_compares_each_of_ours_with_its_own_ppo():
    made = members(WORKLOADS["hooks"], [Side("stock"), Side("ours", ROOT, ("x=1",)), Side("sb3", peer="sb3")])
    assert [side.name for side in made] == ["ours", "ours/rpo", "ours/lstm", "ours/rnd", "ours/rnd_step"]
    assert {side.base for side in made} == {"ours"}
    assert made[1].overrides == ("x=1", "train.params.algo.name=rpo")


def test_on_a_gpu_ours_is_measured_with_graphs_and_without():
    for name in ("gpu4096", "gpu65536"):
        made = members(WORKLOADS[name], [Side("stock"), Side("ours", ROOT, ("x=1",))])
        assert [(side.name, side.overrides, side.base) for side in made] == [
            ("stock", (), "stock"),
            ("ours", ("x=1",), "stock"),
            ("ours/graphs", ("x=1", "train.params.config.cuda_graphs=true"), "stock"),
        ]
        assert WORKLOADS[name].warmup > Captured.WARM_UP + 1


def test_peers_take_part_where_they_can():
    given = [Side("stock"), Side("ours", ROOT), *(Side(name, peer=name) for name in peers.PEERS)]
    assert [s.name for s in members(WORKLOADS["B"], given)] == ["stock", "ours", "sb3", "cleanrl", "skrl"]
    assert [s.name for s in members(WORKLOADS["lstm"], given)] == ["stock", "ours"]


@pytest.mark.parametrize("name", [n for n in WORKLOADS if n != "ray"])
def test_both_sides_get_the_same_params(name, tmp_path):
    workload = WORKLOADS[name]
    read = []
    for side in (Side("stock"), Side("ours", ROOT)):
        folder = tmp_path / side.name
        folder.mkdir()
        side.command(workload, seeded(workload, 3, side.ours, 7), folder)
        (file,) = folder.iterdir()
        params = json.loads(file.read_text())["params"]
        params["config"].pop("train_dir", None)
        read.append(params)
    assert read[0] == read[1]
    assert read[0]["config"]["max_epochs"] == workload.warmup + 7
    assert read[0]["seed"] == 3
    assert workload.params["config"].get("max_epochs") is None, "the workload itself was changed"


def test_ray_gives_ours_more_environments_in_the_same_number_of_minibatches():
    ray = WORKLOADS["ray"]
    stock, ours = (seeded(ray, 1, which, 5)["config"] for which in (False, True))
    assert (stock.pop("num_actors"), ours.pop("num_actors")) == (8, 64)
    assert stock == ours
    assert (ray.rows(False), ray.rows(True)) == (8 * 32, 64 * 32)


def test_the_settings_are_those_of_the_anchors():
    def settings(name):
        params = WORKLOADS[name].params
        config, network = params["config"], params["network"]
        keys = ("num_actors", "horizon_length", "minibatch_size", "mini_epochs", "normalize_input", "clip_value")
        return [config[k] for k in keys], network["mlp"]["units"], network["mlp"]["activation"], network["separate"]

    assert settings("A") == ([64, 256, 2048, 5, True, False], [128, 64, 32], "elu", False)
    assert settings("B") == ([64, 32, 512, 4, False, True], [64, 64], "relu", True)
    assert settings("C") == ([16, 128, 512, 4, True, False], [512], "relu", False)


# ---- figures ----------------------------------------------------------------------------------------------------------------


def test_warm_up_is_left_out_of_the_rate_but_not_of_the_start():
    data = {"start": 2.0, "ends": [10.0, 11.0, 12.0, 14.0], "peak_mib": 100.0}
    data |= {"step": [9.0, 9.0, 0.2, 0.4], "play": [9.0, 9.0, 0.5, 0.7], "update": [0.0, 0.0, 0.3, 0.5], "prepare": [None] * 4}
    figures = measure.read(data, rows=300, warmup=2)
    assert figures["fps"] == pytest.approx(300 * 2 / 3.0)  # two epochs from second 11 to second 14
    assert (figures["start"], figures["first_epoch"], figures["peak_mib"]) == (2.0, 10.0, 100.0)
    expected = {"environment": 0.3, "policy": 0.3, "update": 0.4, "bookkeeping": 1.5 - 0.6 - 0.4}
    assert figures["seconds"] == pytest.approx(expected)


def test_preparing_the_batch_belongs_to_the_update():
    assert measure.split(1.0, 0.2, 0.5, 0.1, 0.3) == pytest.approx({"environment": 0.2, "policy": 0.3, "update": 0.4, "bookkeeping": 0.1})
    assert measure.split(1.0, None, None, None, None) is None


def test_a_run_that_only_warmed_up_is_an_error():
    with pytest.raises(UserError, match="1 epochs"):
        measure.read({"start": 0.0, "ends": [1.0]}, rows=1, warmup=1)


def test_a_failed_run_tells_the_end_of_its_log(tmp_path):
    with pytest.raises(UserError, match=r"status 3(?s:.)*the reason(?s:.)*log\.txt"):
        measure.execute([sys.executable, "-c", "print('the reason'); raise SystemExit(3)"], tmp_path, tmp_path)


def test_ratios_are_within_rounds():
    # the machine was twice as fast in round 2: ratios within rounds are 2, 2, 3, ratios of medians would say 4
    rounds = [
        {"stock": run(100), "ours": run(200), "raw": {"fps": 1000}},
        {"stock": run(200), "ours": run(400), "raw": {"fps": 1000}},
        {"stock": run(200), "ours": run(600), "raw": {"fps": 2000}},
    ]
    found = stats.summary(rounds, {"stock": "stock", "ours": "stock"})
    assert found["ours"]["ratio"] == {"median": 2.0, "min": 2.0, "max": 3.0}
    assert found["ours"]["of_raw"] == {"median": 0.3, "min": 0.2, "max": 0.4}
    assert (found["stock"]["fps"], found["ours"]["fps"]) == (200, 400)
    assert list(found) == ["stock", "ours"]


def test_shares_add_up_to_one_per_round():
    seconds = {"environment": 1.0, "policy": 1.0, "update": 2.0, "bookkeeping": 0.0}
    found = stats.summary([{"a": run(1, seconds)}], {})
    assert found["a"]["share"] == {"environment": 0.25, "policy": 0.25, "update": 0.5, "bookkeeping": 0.0}
    assert "ratio" not in found["a"]


def test_strangers_are_noticed_and_our_own_children_are_none(monkeypatch):
    burn = [sys.executable, "-c", "import time\nwhile time.process_time() < 1.0: pass"]
    before = load.Strangers._now()
    subprocess.run(burn, check=True)
    assert load.Strangers._now()[2] - before[2] >= 1.0, "a finished child's time is not our own"
    strangers = load.Strangers()
    with subprocess.Popen(burn) as stranger:  # not finished, so not yet ours
        time.sleep(0.8)
        assert strangers.share() > 0.2 / (os.cpu_count() or 1)
        stranger.wait()
    monkeypatch.setattr(load.Strangers, "_now", staticmethod(iter([(0.0, 100.0, 50.0), (10.0, 112.0, 58.0)]).__next__))
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert load.Strangers().share() == pytest.approx((12 - 8) / 20)


def test_disturbed_runs_are_named():
    rounds = [{"stock": run(1, strangers=0.02), "ours": run(1, strangers=0.4), "raw": {"fps": 1}}, {"stock": run(1, strangers=None)}]
    assert load.warnings("A", rounds) == ["A, round 1, ours: other processes took 40% of the machine; its figures cannot be trusted"]


def test_raw_measures_envpool_with_either_kind_of_actions():
    assert raw.measure("CartPole-v1", 4, 0.05, {}) > 0
    assert raw.measure("Pendulum-v1", 2, 0.05, {"max_episode_steps": 20}) > 0


def test_raw_counts_the_steps_of_all_environments(monkeypatch):
    clock = iter(range(100))  # a second passes at every look
    monkeypatch.setattr(raw.time, "perf_counter", lambda: next(clock))
    # begun at 0; steps after the looks at 1, 2 and 3; the look at 4 ends it, the rate is taken at 5
    assert raw.measure("CartPole-v1", 4, 4, {}) == pytest.approx(3 * 4 / 5)


def test_scaling_measures_about_as_many_frames_everywhere():
    assert (scaling.workload("envpool", 1, "cpu").epochs, scaling.workload("torch", 65_536, "cpu").epochs) == (60, 1)
    for num_envs in scaling.COUNTS["torch"]:
        params = seeded(torch_cartpole(num_envs, 1, 1, "cpu"), 1, True, 1)["config"]
        assert params["num_actors"] * params["minibatch_size_per_env"] * 4 == num_envs * params["horizon_length"]


# ---- what is written --------------------------------------------------------------------------------------------------------


@pytest.fixture
def result():
    seconds = {"environment": 1.0, "policy": 1.0, "update": 2.0, "bookkeeping": 0.5}
    rounds = [{"stock": run(100 + n, seconds), "ours": run(200, seconds), "sb3": run(90), "raw": {"fps": 500}} for n in range(3)]
    workload = {"title": "HalfCheetah", "base": "stock", "rounds": rounds, "disturbed": ["A, round 2, ours: noise"]}
    workload["summary"] = stats.summary(rounds, dict.fromkeys(("stock", "ours", "sb3"), "stock"))
    points = {"1": 500.0, "64": 20_000.0}
    return {
        "date": "2026-01-01 12:00",
        "hardware": {"cpu": "A CPU", "cores": 2, "gpus": []},
        "packages": {"rl_games": "1.6.5", "torch": "2.13.0", "envpool": "1.2.5"},
        "git": {"commit": "0123456789abcdef", "differs": False},
        "not_measured": ["gpu4096: this machine has no CUDA device"],
        "workloads": {"A": workload, "ray": {**workload, "title": "on Ray"}},
        "scaling": {
            "device": "cpu",
            "envpool": {"stock": points, "ours": points, "raw": points},
            "torch": {"stock": points, "ours": points},
        },
    }


def test_results_are_written_as_json_table_and_pictures(result, tmp_path):
    report.write(result, tmp_path)
    assert json.loads((tmp_path / "bench.json").read_text()) == result
    text = (tmp_path / "bench.md").read_text()
    assert text.startswith("A CPU, 2 cores; rl_games 1.6.5, torch 2.13.0, envpool 1.2.5; commit 012345678; 2026-01-01 12:00\n")
    assert "| A: HalfCheetah | ours | 200 | 1.98 (1.96 to 2.00) | 40% | 2.0 | 400 | 22% / 22% / 44% / 11% |" in text
    assert "| A: HalfCheetah | sb3 | 90 | 0.89 (0.88 to 0.90) | 18% | 2.0 | 400 |  |" in text
    assert "| 64 | 20,000 | 20,000 | 20,000 |" in text
    assert "Disturbed: A, round 2, ours: noise." in text
    assert "Not measured: gpu4096: this machine has no CUDA device." in text
    for name in ("bench.png", "scaling.png"):
        picture = image.imread(tmp_path / name)
        assert picture.shape[0] > 300
        assert picture.shape[1] > 900
        assert (picture[..., :3].reshape(-1, 3).std(axis=0) > 0.05).all(), "a blank picture"


def test_a_side_has_one_colour_and_taller_pictures_hold_more(result, tmp_path):
    colors = chart._colors(result)
    assert len(set(colors.values())) == len(colors) == 3
    chart.bars(result, tmp_path / "two.png")
    result["workloads"].pop("ray")
    chart.bars(result, tmp_path / "one.png")
    assert image.imread(tmp_path / "two.png").shape[0] > image.imread(tmp_path / "one.png").shape[0]


def test_about_names_machine_versions_and_commits():
    about = report.about([Side("stock"), Side("ours", ROOT, ("a=1",)), Side("cleanrl", peer="cleanrl")])
    assert about["hardware"]["cores"] >= 1
    assert about["packages"]["rl_games"] == "1.6.5"
    assert list(about["sides"]) == ["ours"]
    assert about["sides"]["ours"]["overrides"] == ["a=1"]
    assert about["date"]


def test_every_peer_has_a_module():
    folder = Path(peers.__file__).parent
    assert {p.stem for p in folder.glob("*.py")} - {"__init__", "pool"} == set(peers.PEERS)
    assert peers.version("cleanrl") == "own loop"
