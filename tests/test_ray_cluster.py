"""Environments on other machines than the learner: Ray nodes that the learner joins by address. All are on this machine here, with
workers that are kept from the learner's socket where a test says `called`, as those of another machine are."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from core.run_dir import read_metrics

ROOT = Path(__file__).resolve().parents[1]
pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]

WHERE = """
import os

import gymnasium
import ray


class Where(gymnasium.Wrapper):
    \"\"\"CartPole that notes on which node, and by which process, it was made.\"\"\"

    def __init__(self):
        super().__init__(gymnasium.make("CartPole-v1"))
        if ray.is_initialized():  # in a worker; the learner asks one of its own for the spaces, before it joins
            node = ray.get_runtime_context().get_node_id()
            with open(os.path.join(os.path.dirname(__file__), f"on_{node}_{os.getpid()}"), "w"):
                pass


gymnasium.register("Where-v0", entry_point=Where, max_episode_steps=500)
"""
NO_SOCKET = "from tasks import ray_vecenv\nray_vecenv._listen = lambda backlog: None\n"


class Learner:
    """`train.py` on a cluster: 8 environments in 4 workers."""

    def __init__(self, folder: Path, address: str, frames: int, called: bool = False, home: Path | None = None) -> None:
        (folder / "where.py").write_text(WHERE + NO_SOCKET * called)
        self.folder = folder
        words = ["task=gymnasium", "task.id=Where-v0", "task.vecenv=ray", "task.num_workers=4", f"task.ray_address={address}"]
        words += ["num_envs=8", f"max_frames={frames}", "progress=off", f"modules=[{folder}/where.py]", f"run_dir={folder}/run"]
        words += ["train.params.config.horizon_length=64", "train.params.config.minibatch_size_per_env=16", "train.params.torch_threads=1"]
        environment = {**os.environ, **({"HOME": str(home)} if home else {})}
        self.process = subprocess.Popen(
            [sys.executable, "train.py", *words], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def workers(self) -> list[tuple[str, int]]:
        """(node, process) of each, as they come up."""
        names = [path.name.split("_") for path in self.folder.glob("on_*")]
        return sorted((node, int(pid)) for _, node, pid in names)

    def wait_for_training(self) -> None:
        deadline = time.monotonic() + 180
        metrics = self.folder / "run" / "metrics.jsonl"
        while not (metrics.exists() and metrics.stat().st_size):
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.2)

    def end(self, timeout: float) -> tuple[int, str]:
        """Its exit status and what it said. Raises TimeoutExpired for one that hangs."""
        _, told = self.process.communicate(timeout=timeout)
        return self.process.returncode, told

    def result(self) -> dict[str, Any]:
        return json.loads((self.folder / "run" / "result.json").read_text())


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Any]:
    """Starts a Learner in a folder of the test; none survives it."""
    started: list[Learner] = []

    def begin(*args: Any, **kwargs: Any) -> Learner:
        started.append(Learner(tmp_path, *args, **kwargs))
        return started[-1]

    yield begin
    for learner in started:
        learner.process.kill()
        learner.process.communicate()


@pytest.mark.parametrize("called", [False, True])
def test_a_learner_with_environments_on_two_other_nodes(start: Any, two_nodes: Any, called: bool) -> None:
    """As docs/scale.md says it: half of the workers on each of the two that have a CPU."""
    cluster, nodes = two_nodes
    learner = start(cluster.address, 4_096, called)
    status, told = learner.end(240)
    assert status == 0, told
    assert learner.result()["exit_reason"] == "max_frames"
    assert read_metrics(learner.folder / "run" / "metrics.jsonl")[-1]["frames"] >= 4_096
    on = [node for node, _ in learner.workers()]
    assert on == sorted([node.node_id for node in nodes] * 2)


@pytest.mark.parametrize("called", [False, True])
def test_a_killed_worker_is_named(start: Any, two_nodes: Any, called: bool) -> None:
    learner = start(two_nodes[0].address, 100_000_000, called)
    learner.wait_for_training()
    node, process = learner.workers()[0]
    os.kill(process, signal.SIGKILL)
    status, told = learner.end(60)
    assert status == 2
    assert "Traceback" not in told
    error = learner.result()["error"]
    assert error.startswith("Ray worker ")
    assert "died in step" in error
    assert f"({node[:8]})" in error
    assert error.split("\n")[0] in told


@pytest.mark.parametrize("called", [False, True])
def test_a_killed_node_is_named(start: Any, two_nodes: Any, called: bool) -> None:
    cluster, nodes = two_nodes
    learner = start(cluster.address, 100_000_000, called)
    learner.wait_for_training()
    cluster.remove_node(nodes[1], allow_graceful=False)
    status, told = learner.end(90)
    assert status == 2
    assert "Traceback" not in told
    assert f"({nodes[1].node_id[:8]}), and the whole node died" in learner.result()["error"]


def test_a_node_that_vanishes_without_a_word_is_named(start: Any, two_nodes: Any) -> None:
    """Power or network lost: no connection is closed, nothing answers. Ray counts heartbeats for most of a minute."""
    cluster, nodes = two_nodes
    learner = start(cluster.address, 100_000_000, called=True)
    learner.wait_for_training()
    lost = [pid for node, pid in learner.workers() if node == nodes[1].node_id]
    lost += [nodes[1].all_processes["raylet"][0].process.pid]
    for process in lost:
        os.kill(process, signal.SIGSTOP)
    try:
        status, _ = learner.end(180)
        assert status == 2
        assert f"({nodes[1].node_id[:8]}), and the whole node died" in learner.result()["error"]
    finally:
        for process in lost:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGCONT)


# ---- typed by hand ------------------------------------------------------------------------------------------------------


@pytest.fixture
def by_hand(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """`ray start` twice, as docs/scale.md says, with a home of its own that has a token. Yields (address, home)."""
    import socket

    home = tmp_path / "home"
    home.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {**os.environ, "HOME": str(home), "RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"}
    ray = [sys.executable, "-m", "ray.scripts.scripts"]
    folder = Path(os.path.realpath("/tmp")) / f"ray_by_hand_{os.getpid()}"  # Ray's sockets need a short path
    try:
        for words in (
            ["get-auth-token", "--generate"],
            ["start", "--head", f"--port={port}", "--num-cpus=1", "--include-dashboard=false", f"--temp-dir={folder}"],
            ["start", f"--address=127.0.0.1:{port}", "--num-cpus=1"],
        ):
            done = subprocess.run([*ray, *words], env=environment, capture_output=True, text=True, timeout=120, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
        yield f"127.0.0.1:{port}", home
    finally:
        for process in psutil.process_iter():  # `ray stop` would end every Ray of this machine
            with contextlib.suppress(psutil.Error):
                if process.environ().get("HOME") == str(home) and process.pid != os.getpid():
                    process.kill()


def test_typed_by_hand(start: Any, by_hand: tuple[str, Path]) -> None:
    address, home = by_hand
    learner = start(address, 4_096, home=home)
    status, told = learner.end(240)
    assert status == 0, told
    assert learner.result()["exit_reason"] == "max_frames"
    on = [node for node, _ in learner.workers()]
    assert len(set(on)) == 2
    assert len(on) == 4


def test_a_cluster_that_asks_for_another_token(start: Any, by_hand: tuple[str, Path], tmp_path: Path) -> None:
    """At once, not after the 20 seconds in which Ray tries again."""
    (tmp_path / "elsewhere").mkdir()
    began = time.monotonic()
    learner = start(by_hand[0], 4_096, home=tmp_path / "elsewhere")
    status, told = learner.end(60)
    assert status == 2
    assert f"task.ray_address: the Ray cluster at '{by_hand[0]}' asks for a token that is not this user's" in told
    assert time.monotonic() - began < 60
