"""Sweeps and populations on a real Ray: as a user starts them, stopped, killed and started again."""

from __future__ import annotations

import csv
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from core import checkpoint
from core.errors import UserError
from core.run_dir import read_metrics
from experiments import search, sweep
from experiments.sweep import Options

ROOT = Path(__file__).resolve().parents[1]
SMALL = ("task=CartPole", "train=PPO", "num_envs=8", "train.params.config.horizon_length=32")
SPACE = {
    "train.params.config.learning_rate": {"loguniform": [1e-4, 1e-2]},
    "train.params.config.minibatch_size_per_env": {"choice": [4, 8]},
    "train.params.network.mlp.units": {"choice": [[16], [32, 32]]},
}
LIVE = {"train.params.config.learning_rate": {"loguniform": [1e-4, 1e-2]}, "train.params.config.gamma": {"choice": [0.97, 0.98, 0.99]}}


def start(module: str, *argv: str, runs: tuple[str, ...] = SMALL) -> subprocess.Popen[str]:
    env = {**os.environ, "COLUMNS": "160", "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    command = [sys.executable, "-m", f"experiments.{module}", *runs, *argv]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env, start_new_session=True)


def finish(process: subprocess.Popen[str], seconds: float = 200) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=seconds)
    return process.returncode, out, err


def stop(process: subprocess.Popen[str], number: signal.Signals) -> None:
    """kill -9 of the command alone; Ctrl-C as a terminal sends it, to all that it started as well."""
    if number == signal.SIGINT:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)


def space(tmp_path: Path, content: dict[str, Any]) -> str:
    path = tmp_path / "space.yaml"
    path.write_text(yaml.safe_dump(content))
    return f"space={path}"


def table(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def sessions(run_dir: Path) -> int:
    """How often train.py ran in a directory."""
    return len(json.loads((run_dir / "run.json").read_text())["sessions"])


def until(condition: Any, process: subprocess.Popen[str], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.1)


# ---- the command line -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["space=ppo"], "trials= is missing"),
        (["space=ppo", "trials=0"], "trials is 0, but should be greater than or equal to 1"),
        (["space=ppo", "trials=many"], "trials is 'many'"),
        (["space=pp0", "trials=2"], "Did you mean 'ppo'"),
        (["space=ppo", "trails=2", "trials=2"], "unknown key 'trails'. Did you mean 'trials'"),
        (["space=ppo", "trials=2", "train.params.config.gama=1"], "Did you mean 'train.params.config.gamma'"),
        (["space=ppo", "trials=2", "task=CartPol"], "Did you mean 'CartPole'"),
        (["space=ppo", "trials=2", "train=PPOO"], "Did you mean 'PPO'"),
        (["space=ppo", "trials=2", "max_frames=10"], "the key here is frames="),
        (["space=ppo", "trials=2", "frames=100", "grace=200"], "grace is 200, but a trial has 100 frames"),
        (["space=ppo", "trials=2", "train.params.config.gamma=0.9"], "gamma is searched, but given on the command line too"),
        (["space=ppo", "trials=2", "--resume"], "is not key=value"),
        (["space=ppo", "trials=2", "ray_address=127.0.0.1:1"], "no Ray cluster answers at '127.0.0.1:1'"),
    ],
)
def test_mistakes_are_told_before_anything_starts(argv, told, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        sys, "argv", ["sweep", "train=PPO", *([] if "task=CartPol" in argv else ["task=CartPole"]), *argv, f"runs_dir={tmp_path}/runs"]
    )
    with pytest.raises(SystemExit) as exit:
        search.main(sweep.__doc__, sweep.run)
    out, err = capsys.readouterr()
    assert exit.value.code == 2
    assert told in err
    assert not list(tmp_path.glob("runs/*/tune"))


def test_values_are_read_as_train_py_reads_them():
    options, rest = search.parse(["space=a=b.yaml", "trials=1e2", "frames=100_000", "overwrite=true", "seed=3", "num_envs=4"], Options)
    assert (options.space, options.trials, options.frames, options.overwrite, options.seed) == ("a=b.yaml", 100, 100_000, True, 3)
    assert rest == ["num_envs=4"]


def test_a_directory_belongs_to_one_search(tmp_path):
    with search.directory(tmp_path / "one", {"trials": 4}) as begun:
        assert not begun
        with pytest.raises(UserError, match="being searched by another process"), search.directory(tmp_path / "one", {"trials": 4}):
            pass
    with pytest.raises(UserError, match="trials was 4, now 8"), search.directory(tmp_path / "one", {"trials": 8}):
        pass
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "thesis.tex").touch()
    with pytest.raises(UserError, match="holds something that is no search"), search.directory(tmp_path / "two", {}):
        pass


# ---- whole searches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seeds", [1, pytest.param(2, marks=pytest.mark.long)])
def test_a_sweep_finds_writes_and_does_not_repeat(seeds, tmp_path):
    """One value of minibatch_size_per_env breaks the batch, which fails those trials and no others."""
    own = {**SPACE, "train.params.config.minibatch_size_per_env": {"choice": [3, 4]}}
    argv = (space(tmp_path, own), "trials=3", "frames=2_000", f"runs_dir={tmp_path}", "name=mine", f"tuned_dir={tmp_path}/tuned")
    argv = (*argv, f"seeds_per_trial={seeds}")
    status, out, err = finish(start("sweep", *argv))
    assert (status, err) == (0, ""), out
    rows = table(tmp_path / "mine" / "results.csv")
    assert len(rows) == 3
    failed = [row for row in rows if row["status"] == "failed"]
    assert failed
    assert all("rows are not divisible by minibatch_size_per_env 3" in row["error"] for row in failed)
    assert {row["train.params.config.minibatch_size_per_env"] for row in rows if row not in failed} == {"4"}
    best = tmp_path / "mine" / rows[0]["trial"]
    assert rows[0]["status"] == "done"
    runs = [best] if seeds == 1 else [best / "seed0", best / "seed1"]  # ordinary run directories
    results = [json.loads((run / "result.json").read_text()) for run in runs]
    assert [(result["seed"], result["exit_reason"]) for result in results] == [(seed, "max_frames") for seed in range(seeds)]
    last = [read_metrics(run / "metrics.jsonl")[-1]["return_mean"] for run in runs]
    assert float(rows[0]["return_mean"]) == pytest.approx(sum(last) / seeds)
    pair = yaml.safe_load((tmp_path / "tuned" / "CartPole-PPO.yaml").read_text())["train"]["params"]
    assert pair["config"]["learning_rate"] == float(rows[0]["train.params.config.learning_rate"])
    assert pair["config"]["max_frames"] == 2000
    assert pair["network"]["mlp"]["units"] == json.loads(rows[0]["train.params.network.mlp.units"])

    status, out, err = finish(start("sweep", *argv))
    assert (status, err) == (0, "")
    assert table(tmp_path / "mine" / "results.csv") == rows
    assert sessions(runs[0]) == 1
    assert (tmp_path / "tuned" / "CartPole-PPO.yaml.new").exists()  # not overwritten
    assert "still counts; overwrite=true replaces it" in out


@pytest.mark.long
def test_the_shipped_space(tmp_path):
    argv = ("space=ppo", "trials=4", "frames=5_000", f"runs_dir={tmp_path}", f"tuned_dir={tmp_path}/tuned")
    status, out, err = finish(start("sweep", *argv, runs=SMALL[:3]))
    assert (status, err) == (0, "")
    rows = table(tmp_path / "CartPole-PPO-ppo" / "results.csv")
    assert len(rows) == 4
    assert {row["status"] for row in rows} <= {"done", "stopped"}


def test_a_population_copies_the_best(tmp_path):
    """With the shipped space for the adaptive learning rate, which it steers."""
    argv = ("population=2", "quantile=0.5", "interval=1_500", "frames=3_000", f"runs_dir={tmp_path}", "name=mine")
    status, out, err = finish(start("pbt", *argv, "train.params.config.lr_schedule=adaptive"))
    assert (status, err) == (0, ""), out
    rows = table(tmp_path / "mine" / "schedule.csv")
    assert [(row["interval"], row["member"]) for row in rows] == [("1", "0"), ("1", "1"), ("2", "0"), ("2", "1")]
    scores = [float(row["score"]) for row in rows[:2]]
    worst = scores.index(min(scores))
    assert [row["from"] for row in rows[2:]] == ["1" if worst == 0 else "", "0" if worst == 1 else ""]
    key = "train.params.config.entropy_coef"
    kept, changed = rows[3 - worst], rows[2 + worst]
    assert kept[key] == rows[1 - worst][key]
    assert changed[key] not in (rows[0][key], rows[1][key])
    copied = checkpoint.load(tmp_path / "mine" / f"member_000{worst}" / "nn" / "last.pth")["gamesmith"]
    assert copied["schedule"]["entropy_coef"] == pytest.approx(float(changed[key]))  # the changed one was in force
    assert 3_000 <= int(changed["frames"]) < 3_600
    assert "the best member: " in out
    lines = read_metrics(tmp_path / "mine" / f"member_000{worst}" / "metrics.jsonl")
    epochs = [line["epoch"] for line in lines]  # in order, none twice; the one copied from may have needed an epoch more, or fewer
    assert epochs == sorted(set(epochs))
    assert epochs[0] == 1
    assert max(after - before for before, after in itertools.pairwise(epochs)) <= 2


# ---- kill -9 and Ctrl-C -----------------------------------------------------------------------------------------------------


def _descendants(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def _is_training(process: psutil.Process) -> bool:
    try:
        return "experiments.leashed" in process.cmdline()
    except psutil.Error:
        return False


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["kill -9", "Ctrl-C"])
def test_a_stopped_sweep_goes_on(number, tmp_path):
    argv = (space(tmp_path, SPACE), "trials=5", "frames=20_000", f"runs_dir={tmp_path}", "name=mine", f"tuned_dir={tmp_path}/tuned")
    process = start("sweep", *argv)
    folder = tmp_path / "mine"
    assert process.stdout is not None
    while not process.stdout.readline().startswith("1/5"):
        assert process.poll() is None
    until(lambda: (folder / "trial_0003" / "nn" / "last.pth").exists() and (folder / "trial_0003" / "metrics.jsonl").exists(), process)
    time.sleep(3)  # Tune writes its state every second
    children = [child for child in _descendants(process) if _is_training(child)]
    stop(process, number)
    status, out, err = finish(process)
    assert status == (-9 if number == signal.SIGKILL else 130), err
    psutil.wait_procs(children, timeout=20)
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    before = {path.name: sessions(path) for path in folder.glob("trial_????") if (path / "result.json").exists()}
    ended = [name for name in before if json.loads((folder / name / "result.json").read_text())["exit_reason"] == "max_frames"]

    status, out, err = finish(start("sweep", *argv))
    assert (status, err) == (0, "")
    rows = table(folder / "results.csv")
    assert [row["status"] for row in rows].count("done") + [row["status"] for row in rows].count("stopped") == 5
    assert len({row["train.params.config.learning_rate"] for row in rows}) == 5
    assert all(sessions(folder / name) == before[name] for name in ended)
    for row in rows:
        if row["status"] == "done":
            epochs = [line["epoch"] for line in read_metrics(folder / row["trial"] / "metrics.jsonl")]
            assert epochs == list(range(1, len(epochs) + 1))


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["kill -9", "Ctrl-C"])
def test_a_stopped_population_goes_on(number, tmp_path):
    """Three members on two CPUs, stopped in the middle of the second interval."""
    argv = (space(tmp_path, LIVE), "population=3", "interval=4_000", "frames=16_000", f"runs_dir={tmp_path}", "name=mine")
    argv = (*argv, "train.params.config.lr_schedule=constant")
    process = start("pbt", *argv)
    assert process.stdout is not None
    while not process.stdout.readline().startswith("interval 2"):
        assert process.poll() is None
    time.sleep(1.5)
    stop(process, number)
    status, out, err = finish(process)
    assert status == (-9 if number == signal.SIGKILL else 130), err

    status, out, err = finish(start("pbt", *argv))
    assert (status, err) == (0, ""), out
    assert "interval 1 " not in out  # it is not repeated
    rows = table(tmp_path / "mine" / "schedule.csv")
    assert [(row["interval"], row["member"]) for row in rows] == [(str(i), str(m)) for i in (1, 2, 3, 4) for m in (0, 1, 2)]
    assert {row["from"] for row in rows if row["interval"] in ("3", "4")} != {""}  # and members are still copied
    frames = [int(row["frames"]) for row in rows if row["interval"] == "4"]
    assert all(16_000 <= count < 17_000 for count in frames)


@pytest.mark.long
def test_a_killed_run_costs_its_trial_nothing(tmp_path):
    argv = (space(tmp_path, SPACE), "trials=1", "frames=60_000", f"runs_dir={tmp_path}", "name=mine", f"tuned_dir={tmp_path}/tuned")
    process = start("sweep", *argv)
    run = tmp_path / "mine" / "trial_0001"
    until(lambda: (run / "nn" / "last.pth").exists(), process)
    next(child for child in _descendants(process) if _is_training(child)).kill()
    status, out, err = finish(process)
    assert (status, err) == (0, "")
    assert sessions(run) == 2
    assert table(tmp_path / "mine" / "results.csv")[0]["status"] == "done"
