"""Ray workers. Ray starts once for the module."""

from __future__ import annotations

import collections
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from core import ray_local, registry
from core.errors import UserError
from tasks import gymnasium_task, ray_vecenv, rl_games_task, worker_link
from tests.task_envs import Team, register


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    """Starts Ray by hand, so that closing an environment must leave it running."""
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    yield
    ray.shutdown()


def build(id: str, num_envs: int = 3, seed: int | None = 0, **options: Any) -> Any:
    return gymnasium_task.make(num_envs=num_envs, seed=seed, device="cpu", id=id, vecenv="ray", **{"num_workers": 2, **options})


def test_registered_at_run_time_with_time_outs_and_terminal_obs() -> None:
    env = build(register("Counter-v0", max_episode_steps=2, length=9))
    try:
        first = env.reset()
        assert first[:, :2].tolist() == [[0, 0]] * 3
        assert first.dtype == np.float32
        assert not env.step(np.zeros(3, int))[3]["time_outs"].any()
        obs, rewards, dones, infos = env.step(np.zeros(3, int))
        assert dones.all()
        assert infos["time_outs"].all()
        assert rewards.tolist() == [2] * 3
        assert obs[:, :2].tolist() == [[0, 1]] * 3
        assert infos["terminal_obs"][:, :2].tolist() == [[2, 0]] * 3
        assert infos["scores"].tolist() == [2] * 3
        # seed + index reaches each environment's own generator, across workers of two and of one
        draws = [np.float32(np.random.default_rng(i).uniform()) for i in range(3)]
        assert np.allclose(first[:, 2], draws)
        assert env.render_mode is None
        assert not env.can_render
    finally:
        env.close()
    import ray

    assert ray.is_initialized()  # not ours to stop


def test_a_module_named_by_its_path(tmp_path: Path) -> None:
    """Its classes have no import path in another process; its neighbours do, as its folder is on the path."""
    (tmp_path / "neighbour_of_mine.py").write_text("LENGTH = 2\n")
    (tmp_path / "my_envs.py").write_text(
        "import gymnasium\nimport neighbour_of_mine\nfrom tests.task_envs import Counter\n"
        "class Mine(Counter):\n"
        "    def __init__(self, render_mode=None):\n"
        "        super().__init__(length=neighbour_of_mine.LENGTH, render_mode=render_mode)\n"
        "gymnasium.register('Mine-v0', entry_point=Mine)\n"
        "gymnasium.register('MineByName-v0', entry_point='outside_myenvs:Mine')\n"
    )
    registry.import_outside([str(tmp_path / "my_envs.py")])
    try:
        for id in ("Mine-v0", "MineByName-v0"):
            env = build(id, render_mode="rgb_array", num_workers=1)
            env.reset()
            env.step(np.zeros(3, int))
            assert (env.render() == 1).all()
            assert env.render().shape == (4, 5, 3)
            assert env.step(np.zeros(3, int))[2].all()
            env.close()
    finally:
        sys.path.remove(str(tmp_path))  # Mine-v0 stays registered: what no longer loads must not stop the tests below


def test_an_environment_that_raises() -> None:
    env = build(register("Counter-v0", crash_at=2), num_workers=1)
    env.reset()
    env.step(np.zeros(3, int))
    with pytest.raises(UserError, match=r"environment 0 raised in step, in Ray worker 0(.|\n)*ValueError: the wheels came off"):
        env.step(np.zeros(3, int))
    env.close()


def test_a_worker_that_dies() -> None:
    env = build("CartPole-v1")
    env.reset()
    os.kill(env.worker_ids()[1], signal.SIGKILL)
    with pytest.raises(UserError, match=r"Ray worker 1 \(environment 2\) died in step: .* It was on node [\d.]+ \(\w{8}\)$"):
        collections.deque((env.step(np.zeros(3, int)) for _ in range(100)), maxlen=0)  # Ray needs a moment to notice
    env.close()
    env.close()


def test_workers_of_this_machine_are_linked_and_others_are_called(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker elsewhere cannot reach our socket; then everything travels by Ray, and the transitions are the same."""

    def play(num_workers: int) -> tuple[list[type], list[Any]]:
        env = build(register("Counter-v0", length=3, max_episode_steps=5), num_workers=num_workers)
        seen = [env.reset()]
        for _ in range(7):
            obs, rewards, dones, infos = env.step(np.zeros(3, int))
            seen += [obs, rewards, dones, infos["time_outs"], infos["terminal_obs"], infos["scores"]]
        kinds = [type(link) for link in env._links]
        env.close()
        return kinds, seen

    kinds, linked = play(2)
    assert kinds == [worker_link.Link] * 2
    monkeypatch.setattr(ray_vecenv, "_listen", lambda backlog: None)
    kinds, called = play(2)
    assert kinds == [ray_vecenv._Calls] * 2
    assert all((a == b).all() for a, b in zip(linked, called, strict=True))


def test_a_called_worker_that_raises_or_dies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_vecenv, "_listen", lambda backlog: None)
    env = build(register("Counter-v0", crash_at=2))
    env.reset()
    env.step(np.zeros(3, int))
    with pytest.raises(UserError, match=r"environment 0 raised in step, in Ray worker 0(.|\n)*ValueError: the wheels came off"):
        env.step(np.zeros(3, int))
    os.kill(env.worker_ids()[1], signal.SIGKILL)
    with pytest.raises(UserError, match=r"Ray worker 1 \(environment 2\) died in reset"):
        collections.deque((env.reset() for _ in range(100)), maxlen=0)
    env.close()


def test_a_called_worker_is_asked_once_a_step_for_all_its_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_vecenv, "_listen", lambda backlog: None)
    env = build("CartPole-v1", num_envs=6)
    env.reset()
    ray, answers = env._ray, []

    class Counting:
        exceptions = ray.exceptions

        def get(self, pending: Any, timeout: float) -> Any:
            answers.append(ray.get(pending, timeout=timeout))
            return answers[-1]

    for link in env._links:
        link._ray = Counting()
    obs = env.step(np.zeros(6, int))[0]
    assert [arrays["obs"].shape for _, arrays in answers] == [(3, 1, 4)] * 2
    assert (obs == np.concatenate([arrays["obs"][:, 0] for _, arrays in answers])).all()
    for link in env._links:
        link._ray = ray
    env.close()


def test_every_node_gets_workers_by_its_cpus() -> None:
    def node(name: str, cpus: float | None) -> dict[str, Any]:
        return {"NodeID": name, "Resources": {} if cpus is None else {"CPU": cpus}}

    def names(nodes: list[dict[str, Any]], workers: int) -> str:
        return "".join(node["NodeID"] for node in ray_vecenv.shares(nodes, workers))

    learner, small, large = node("h", None), node("s", 2.0), node("l", 6.0)
    assert names([learner, small, large], 8) == "ssllllll"
    assert names([learner, small, large], 4) == "slll"
    assert names([small, node("t", 2.0)], 3) == "sst"  # the first, which is the learner's own, before others
    assert names([learner, node("i", 0.0)], 2) == "hi"


def test_an_address_is_handed_to_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """`task.ray_address` is `address` of `task.ray_config`, and both may say the same."""
    seen: list[Any] = []

    def start(config: Any, place: str) -> Any:
        seen.append((config, place))
        raise UserError("enough")

    monkeypatch.setattr(ray_local, "start", start)
    for given in ({}, {"ray_config": {"address": "head:1"}}, {"ray_config": {"namespace": "mine"}}):
        with pytest.raises(UserError, match="enough"):
            build("CartPole-v1", ray_address="head:1", **given)
    assert seen == [
        ({"address": "head:1"}, "task.ray_address"),
        ({"address": "head:1"}, "task.ray_address"),
        ({"address": "head:1", "namespace": "mine"}, "task.ray_config"),
    ]


def test_a_socket_that_no_worker_reaches(monkeypatch: pytest.MonkeyPatch) -> None:
    class Elsewhere:
        address = "/nowhere/at/all"
        __enter__ = __exit__ = lambda self, *args: self

    monkeypatch.setattr(ray_vecenv, "_listen", lambda backlog: Elsewhere())
    env = build("CartPole-v1")
    assert [type(link) for link in env._links] == [ray_vecenv._Calls] * 2
    assert env.reset().shape == (3, 4)
    env.close()


def test_a_cluster_that_runs_already() -> None:
    """It refuses what a fresh Ray is given; closing the environments must leave it running."""
    import ray

    code = """if True:
        import numpy as np
        from tasks import gymnasium_task
        from core.errors import UserError
        make = dict(num_envs=3, seed=0, device="cpu", id="CartPole-v1", vecenv="ray", num_workers=2)
        env = gymnasium_task.make(**make)
        print(env.reset().shape, env.step(np.zeros(3, int))[1].tolist())
        env.close()
        try:
            gymnasium_task.make(**make, ray_config={"object_store_memory": 10**8})
        except UserError as error:
            print(str(error)[:15])
    """
    environment = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    root = Path(__file__).parent.parent
    ran = subprocess.run([sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True, timeout=120)
    assert ran.stdout.splitlines() == ["(3, 4) [1.0, 1.0, 1.0]", "task.ray_config"], ran.stderr
    assert ray.cluster_resources()["CPU"] == 2


def test_teams_of_rl_games_in_workers() -> None:
    """Also an environment that the creator makes from gymnasium's registry, where it stands since run time only."""
    env_configurations, _ = rl_games_task._rl_games_registries()
    register("Counter-v0", length=2)
    env_configurations["team"] = {"env_creator": lambda **kwargs: Team(**kwargs), "vecenv_type": "RAY"}
    env_configurations["made"] = {"env_creator": lambda **kwargs: gymnasium.make("Counter-v0"), "vecenv_type": "RAY"}
    try:
        common: dict[str, Any] = {"num_envs": 3, "seed": 0, "device": "cpu", "num_workers": 2}
        env = rl_games_task.make(env_name="team", env_config={"length": 1}, **common)
        assert env.reset()["states"].shape == (3, 3)
        obs, rewards, dones, infos = env.step(np.arange(6))
        assert rewards.tolist() == [[a, 10 * a] for a in range(6)]
        assert infos["time_outs"].tolist() == [True] * 6
        assert infos["terminal_obs"]["obs"].tolist() == [[0, 1], [1, 1]] * 3
        assert env.get_action_masks().shape == (6, 3)
        env.close()
        env = rl_games_task.make(env_name="made", **{**common, "num_workers": 1})
        env.reset()
        env.step(np.zeros(3, int))
        assert env.step(np.zeros(3, int))[2].all()
        env.close()
    finally:
        del env_configurations["team"], env_configurations["made"]


def test_mistakes() -> None:
    with pytest.raises(UserError, match="Valid: 1 to num_envs"):
        build("CartPole-v1", num_workers=4)
    with pytest.raises(UserError, match=r"task\.options"):
        build("CartPole-v1", options={"gravty": 1})
    with pytest.raises(UserError, match=r"task.ray_address is 'head:1' and task.ray_config.address 'head:2'"):
        build("CartPole-v1", ray_address="head:1", ray_config={"address": "head:2"})
    with pytest.raises(UserError, match=r"task.ray_address is 'head'. Valid: host:port, or auto"):
        build("CartPole-v1", ray_address="head")
    with pytest.raises(UserError, match=r"task.ray_address.* belong to task.vecenv=ray"):
        gymnasium_task.make(num_envs=2, seed=0, device="cpu", id="CartPole-v1", vecenv="async", ray_address="head:1")
    with pytest.raises(UserError, match=r"task.ray_address belongs to RAY environments with task.vecenv=ray; here it is RAY with 'sync'"):
        rl_games_task.make(num_envs=2, seed=0, device="cpu", env_name="CartPole-v1", vecenv="sync", ray_address="head:1")
    lock = threading.Lock()
    gymnasium.registry.pop("Locked-v0", None)
    gymnasium.register("Locked-v0", entry_point=lambda **kwargs: (lock, gymnasium.make("CartPole-v1"))[1])
    with pytest.raises(UserError, match="cannot be sent to a worker"):
        build("Locked-v0")
    del gymnasium.registry["Locked-v0"]
    assert ray_local.users() == 0
