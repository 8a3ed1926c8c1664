"""Suites as a user runs them, on a real Ray: retried, killed, stopped and gone on with, and nothing done twice."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from core.run_dir import read_metrics
from experiments import claims, suites, worker
from experiments.cells import plan

ROOT = Path(__file__).resolve().parents[1]
SMALL = [
    "train.params.config.horizon_length=32",
    "train.params.config.mini_epochs=1",
    "num_envs=64",
    "save_interval=1",
]  # 2048 frames an epoch
FAULTY = """
from algos.agent import Agent
from algos.options import AgentOptions
from core.registry import register_algo

@register_algo("faulty", config=AgentOptions)
class Faulty(Agent):
    def extra_update(self, batch):
        if self.epoch_num == 3:
            raise ZeroDivisionError("on purpose")
        return {}
"""


def make_suite(tmp_path, frames, **more):
    (tmp_path / "faulty.py").write_text(FAULTY)
    faulty = {"train": "PPO", "overrides": ["train.params.algo.name=faulty"]}
    content = {"name": "tiny", "tasks": {"TorchPendulum": {"frames": frames}}, "overrides": [*SMALL, f"modules=[{tmp_path}/faulty.py]"],
               "variants": {"Faulty": faulty}, "evaluation": {"games_num": 3, "seed": 1_000_000}}  # fmt: skip
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({**content, **more}))
    return [f"suite={tmp_path}/tiny.yaml", f"runs_dir={tmp_path}/runs"]


STARTED: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def nothing_is_left():
    """Ends what a failing test had started."""
    yield
    while STARTED:
        process = STARTED.pop()
        process.kill()
        process.communicate()


def start(*words):
    argv = [sys.executable, "-m", "experiments.suite", *words]
    env = {**os.environ, "COLUMNS": "200", "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    process = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env, start_new_session=True)
    STARTED.append(process)
    return process


def finish(process, timeout=240):
    out, err = process.communicate(timeout=timeout)
    STARTED.remove(process)
    return process.returncode, out, err


def run(*words):
    return finish(start(*words))


def cells(tmp_path):
    """{(algo, seed): directory} of the cells that were started."""
    folders = [file.parent for file in (tmp_path / "runs" / "tiny").glob("*/*/*/cell.json")]
    return {(folder.parent.name, json.loads((folder / "cell.json").read_text())["seed"]): folder for folder in folders}


def file(folder, name):
    return json.loads((folder / name).read_text())


def wait_for(condition, what, seconds=200):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.1)


def training(tmp_path, count=1):
    """Waits until so many runs train, with a checkpoint each, and returns {directory: pid}."""
    found = {}

    def look():
        found.clear()
        for folder in cells(tmp_path).values():
            holder = claims.holder(folder)
            if holder and (folder / "nn" / "last.pth").exists() and read_metrics(folder / "metrics.jsonl"):
                found[folder] = holder["pid"]
        return len(found) >= count

    wait_for(look, f"{count} runs that train")
    time.sleep(0.5)  # a checkpoint beyond the first epoch
    return dict(found)


def gone(pid):
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def check_whole(folder, attempts):
    """The run is done, and each of its epochs stands there once."""
    assert (file(folder, "cell.json")["attempts"], file(folder, "cell.json")["errors"]) == (attempts, [])
    lines = read_metrics(folder / "metrics.jsonl")
    assert [line["epoch"] for line in lines] == list(range(1, len(lines) + 1))
    assert lines[-1]["frames"] == file(folder, "result.json")["frames"]
    assert file(folder, "result.json")["exit_reason"] == "max_frames"
    assert set(file(folder, "eval.json")["checkpoints"]) == {"final", "best"}
    assert not (folder / "claim.json").exists()


def snapshot(folder):
    return {path: path.stat().st_mtime_ns for path in sorted(folder.rglob("*")) if path.is_file()}


# ---- done once, or named ------------------------------------------------------------------------------------------------------


def test_a_suite_runs_what_is_missing_and_names_what_failed(tmp_path):
    words = make_suite(tmp_path, 24_576)
    status, out, err = run(*words, "algos=PPO,Faulty", "seeds=1", "retries=1", "wandb=offline")
    assert (status, err) == (1, "")
    assert re.search(r"failed 2 times: TorchPendulum Faulty seed 0: ZeroDivisionError: on purpose", out)
    assert "1 done, 1 failed" in out
    good, bad = cells(tmp_path)["PPO", 0], cells(tmp_path)["Faulty", 0]
    check_whole(good, attempts=1)
    cell = file(bad, "cell.json")
    assert (cell["attempts"], len(cell["errors"])) == (2, 2)
    assert all("ZeroDivisionError: on purpose" in error for error in cell["errors"])
    assert cell["overrides"][:2] == ["task=TorchPendulum", "train=PPO"]
    played = file(good, "eval.json")
    assert played["protocol"] == {"games_num": 3, "seed": 1_000_000}
    for name, checkpoint in (("final", "last"), ("best", "best")):
        for mode in ("deterministic", "sampled"):
            one = played["checkpoints"][name][mode]
            assert (one["episodes"], one["deterministic"], one["seed"]) == (3, mode == "deterministic", 1_000_000)
            assert one["checkpoint"] == str(good / "nn" / f"{checkpoint}.pth")
            assert [episode["seed"] for episode in one["per_episode"]] == [1_000_000, 1_000_001, 1_000_002]
    config = yaml.safe_load((good / "config.yaml").read_text())
    assert (config["wandb_group"], config["wandb_job_type"]) == ("tiny/TorchPendulum/PPO", "train")
    assert config["wandb_tags"] == ["tiny", "TorchPendulum", "PPO", "seed0"]
    assert list((good / "wandb").glob("offline-run-*"))
    assert config["train"]["params"]["torch_threads"] == 1

    before = snapshot(tmp_path / "runs")
    status, out, _ = run(*words, "algos=PPO,Faulty", "seeds=1", "retries=1")  # neither the done one nor the failed one again
    assert status == 1
    assert "2 runs: 0 to do, 2 not" in out
    assert snapshot(tmp_path / "runs") == before

    (tmp_path / "faulty.py").write_text(FAULTY.replace("== 3", "== -3"))  # mended
    status, out, _ = run(*words, "algos=PPO,Faulty", "seeds=1", "retries=1", "--retry-failed")
    assert status == 0
    assert snapshot(good) == {path: when for path, when in before.items() if path.is_relative_to(good)}
    check_whole(bad, attempts=3)
    assert [s["exit_reason"].split(":")[0] for s in file(bad, "run.json")["sessions"]] == ["failed", "failed", "max_frames"]


def test_what_is_refused_is_tried_once(tmp_path):
    """RPO needs continuous actions, which only the environment tells: a mistake, so no attempt more."""
    words = make_suite(tmp_path, 4096, tasks={"TorchCartPole": {"frames": 4096}})
    (cell,) = plan(suites.load(words[0].partition("=")[2]), ["RPO"], [0], tmp_path / "runs")
    job = worker.Job(str(cell.path), cell.record(), cell.passing, 2, 1, str(ROOT))
    for _ in range(2):  # the second time it is known
        assert worker.run(job) == "failed"
        told = file(cell.path, "cell.json")
        assert (told["attempts"], len(told["errors"]), told["refused"]) == (1, 1, True)
        assert "error: " in told["errors"][0]
        assert "continuous" in told["errors"][0]
    worker.forgive(cell.path)
    assert cell.state() == "left"


@pytest.mark.long
@pytest.mark.timeout(900)
def test_another_protocol_plays_again_and_trains_nothing(tmp_path):
    words = make_suite(tmp_path, 10_000)
    assert run(*words, "algos=PPO", "seeds=1")[0] == 0
    folder = cells(tmp_path)["PPO", 0]
    trained = (folder / "result.json").stat().st_mtime_ns
    make_suite(tmp_path, 10_000, evaluation={"games_num": 2, "seed": 7})
    assert run(*words, "algos=PPO", "seeds=1")[0] == 0
    assert list(cells(tmp_path).values()) == [folder]
    assert file(folder, "eval.json")["checkpoints"]["final"]["sampled"]["seed"] == 7
    assert (folder / "result.json").stat().st_mtime_ns == trained


# ---- killed and stopped -------------------------------------------------------------------------------------------------------

LONG = 1_000_000  # frames: seconds of training, of which some must be left when it is killed


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_killed_worker_costs_nothing(tmp_path):
    words = [*make_suite(tmp_path, LONG), "algos=PPO", "seeds=2", "cpus_per_run=2"]  # one after the other
    process = start(*words)
    wait_for(lambda: ("PPO", 0) in cells(tmp_path) and (cells(tmp_path)["PPO", 0] / "eval.json").exists(), "the first run")
    first = cells(tmp_path)["PPO", 0]
    wait_for(lambda: not (first / "claim.json").exists(), "its end")
    before = snapshot(first)
    (second, child), *others = training(tmp_path).items()
    assert not others
    worker = psutil.Process(child).parent()
    assert "ray::" in worker.name() or "ray::" in " ".join(worker.cmdline())
    worker.kill()
    wait_for(lambda: gone(child), "the end of the killed worker's child", 10)
    status, out, err = finish(process)
    assert (status, err) == (0, "")
    assert "2 done" in out
    assert snapshot(first) == before
    check_whole(second, attempts=2)
    assert [s["exit_reason"] for s in file(second, "run.json")["sessions"]] == ["killed", "max_frames"]
    check_whole(first, attempts=1)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_lost_node_costs_no_finished_run(tmp_path, two_nodes):
    """Two machines run one suite, a run each at a time. One is lost: what it ran goes on, on the other one, from its checkpoint."""
    cluster, nodes = two_nodes
    words = [*make_suite(tmp_path, LONG), "algos=PPO", "seeds=3", f"ray_address={cluster.address}"]
    process = start(*words)
    running = training(tmp_path, count=2)
    where = {folder: _node_of(pid, nodes) for folder, pid in running.items()}
    assert set(where.values()) == {0, 1}
    lost = next(folder for folder in where if where[folder] == 0)
    cluster.remove_node(nodes[0], allow_graceful=False)
    wait_for(lambda: gone(running[lost]), "the end of the lost node's run", 30)
    status, out, err = finish(process, timeout=600)
    assert (status, err) == (0, "")
    assert "3 done" in out
    for folder in cells(tmp_path).values():
        check_whole(folder, attempts=2 if folder == lost else 1)
    assert [s["exit_reason"] for s in file(lost, "run.json")["sessions"]] == ["killed", "max_frames"]


def _node_of(pid, nodes):
    """Which node's raylet has started this process."""
    raylets = [node.all_processes["raylet"][0].process.pid for node in nodes]
    above = {process.pid for process in psutil.Process(pid).parents()}
    (index,) = (i for i, raylet in enumerate(raylets) if raylet in above)
    return index


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("background", [False, True], ids=["Ctrl-C", "kill, in the background"])
def test_a_stopped_suite_saves_and_the_same_command_goes_on(tmp_path, background):
    """A shell without job control starts what ends in & with SIGINT ignored, and all that it starts inherits that."""
    words = [*make_suite(tmp_path, LONG), "algos=PPO", "seeds=3"]
    old = signal.signal(signal.SIGINT, signal.SIG_IGN if background else signal.default_int_handler)  # whatever the tests were started with
    try:
        process = start(*words)
    finally:
        signal.signal(signal.SIGINT, old)
    running = training(tmp_path, count=2)
    process.send_signal(signal.SIGTERM if background else signal.SIGINT)
    status, out, err = finish(process, timeout=60)
    assert (status, err) == (130, "")
    assert "stopping: every run ends its epoch and saves" in out
    assert all(gone(pid) for pid in running.values())
    reached = {}
    for folder in running:
        result = file(folder, "result.json")
        assert result["exit_reason"] == "interrupted"
        reached[folder] = result["frames"]
        assert not (folder / "claim.json").exists()
    status, out, err = run(*words)
    assert (status, err) == (0, "")
    assert len(cells(tmp_path)) == 3
    for folder in cells(tmp_path).values():
        check_whole(folder, attempts=2 if folder in running else 1)
    for folder, frames in reached.items():  # went on where it had stopped
        sessions = [session["exit_reason"] for session in file(folder, "run.json")["sessions"]]
        assert sessions == ["interrupted", "max_frames"]
        assert 0 < frames < LONG


@pytest.mark.long
@pytest.mark.timeout(900)
def test_kill_9_of_the_engine_leaves_nothing_running_and_the_same_command_goes_on(tmp_path):
    words = [*make_suite(tmp_path, LONG), "algos=PPO", "seeds=2"]
    process = start(*words)
    running = training(tmp_path, count=2)
    process.kill()
    finish(process)
    wait_for(lambda: all(gone(pid) for pid in running.values()), "the end of what the engine had started", 30)
    status, out, _ = run(*words, "--status")
    assert status == 0
    assert "2 interrupted" in out
    status, out, err = run(*words)
    assert (status, err) == (0, "")
    for folder in cells(tmp_path).values():
        check_whole(folder, attempts=2)
        assert [s["exit_reason"] for s in file(folder, "run.json")["sessions"]] == ["killed", "max_frames"]


@pytest.mark.long
@pytest.mark.timeout(900)
def test_two_engines_share_the_work(tmp_path):
    words = [*make_suite(tmp_path, LONG), "algos=PPO", "seeds=2", "cpus_per_run=2"]
    one = start(*words)
    training(tmp_path)
    two = start(*words)
    _, out, err = finish(two)
    assert err == ""
    assert "2 runs: 1 to do, 1 not" in out
    assert finish(one)[0] in (0, 1)  # 1: what the other one runs was not done yet
    status, out, _ = run(*words)
    assert status == 0
    assert "2 runs: 0 to do, 2 not" in out
    for folder in cells(tmp_path).values():
        check_whole(folder, attempts=1)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_the_smoke_suite_takes_less_than_a_minute(tmp_path):
    begun = time.monotonic()
    status, out, _ = run("suite=smoke", f"runs_dir={tmp_path}/runs", "seeds=2")
    assert status == 0
    assert f"{2 * len(suites.load('smoke').tasks)} done" in out
    assert time.monotonic() - begun < 60
