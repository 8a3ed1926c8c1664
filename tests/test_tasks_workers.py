"""What holds wherever environments step: in this process or in others, whose results arrive in shared memory."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from core.errors import UserError
from tasks import env_group, gymnasium_task, process_vecenv, rows
from tasks.process_vecenv import ProcessVecEnv
from tasks.row_vecenv import LocalVecEnv
from tasks.worker_link import Broken, Link, serve
from tests.task_envs import Counter, Team, register

MODES = ["sync", "async"]


def build(vecenv: str, id: str = "CartPole-v1", num_envs: int = 5, seed: int | None = 0, **options: Any) -> Any:
    options = {"num_workers": 2, **options} if vecenv == "async" else options
    return gymnasium_task.make(num_envs=num_envs, seed=seed, device="cpu", id=id, vecenv=vecenv, **options)


@pytest.mark.parametrize("id", ["CartPole-v1", "Pendulum-v1"])
def test_every_step_is_gymnasiums(id: str) -> None:
    """Against gymnasium's own vector environment: the same episodes to the last bit, in this process as in two others."""
    theirs = gymnasium.vector.SyncVectorEnv(
        [lambda: gymnasium.make(id, max_episode_steps=37)] * 5, autoreset_mode=gymnasium.vector.AutoresetMode.SAME_STEP
    )
    ours = [build(mode, id, max_episode_steps=37, seed=3) for mode in MODES]
    obs = theirs.reset(seed=3)[0]
    assert all((env.reset() == obs).all() for env in ours)
    rng, time_outs = np.random.default_rng(0), 0
    for _ in range(100):
        discrete = isinstance(ours[0].action_space, spaces.Discrete)
        actions = rng.integers(0, 2, 5) if discrete else rng.uniform(-2, 2, (5, 1)).astype(np.float32)
        obs, rewards, terminated, truncated, raw = theirs.step(actions)
        for env in ours:
            mine, my_rewards, dones, infos = env.step(actions)
            assert (mine == obs).all()
            assert (my_rewards == rewards.astype(np.float32)).all()
            assert (dones == (terminated | truncated)).all()
            assert (infos["time_outs"] == (truncated & ~terminated)).all()
            for i in np.flatnonzero(dones):
                assert (infos["terminal_obs"][i] == raw["final_obs"][i]).all()
            assert (infos["terminal_obs"][~dones] == obs[~dones]).all()
        time_outs += int(infos["time_outs"].sum())
    assert time_outs > 0
    for env in [theirs, *ours]:
        env.close()


@pytest.mark.parametrize("vecenv", MODES)
def test_what_a_step_returned_stays_as_it_was(vecenv: str) -> None:
    """The next step writes into the same memory."""
    env = build(vecenv, register("Counter-v0", length=3))
    first = env.reset()
    results = [env.step(np.zeros(5, int)) for _ in range(3)]
    env.step(np.zeros(5, int))
    assert first[:, 0].tolist() == [0] * 5
    assert [obs[0, 0] for obs, _, _, _ in results] == [1, 2, 0]
    assert [rewards[0] for _, rewards, _, _ in results] == [1, 2, 3]
    assert [dones.any() for _, _, dones, _ in results] == [False, False, True]
    assert results[2][3]["terminal_obs"][:, 0].tolist() == [3] * 5
    env.close()


def test_teams_with_masks_and_a_central_state_in_processes() -> None:
    env = ProcessVecEnv(lambda index, render_mode: Team(length=2 + index), 3, 0, None, 2)
    assert env.reset()["states"].shape == (3, 3)
    for step in (1, 2, 3):
        obs, rewards, dones, infos = env.step(np.arange(6))
        assert rewards.tolist() == [[a, 10 * a] for a in range(6)]
        # environment i times out in step 2 + i
        assert infos["time_outs"].tolist() == dones.tolist() == [step == 2] * 2 + [step == 3] * 2 + [False] * 2
        assert infos["battle_won"].tolist() == dones.astype(int).tolist()
        assert infos["terminal_obs"]["states"][:, 0].tolist() == [step if step < 3 else 1, step, step]
        assert obs["states"][:, 0].tolist() == [step if step < 2 else step - 2, step if step < 3 else 0, step]
        assert env.get_action_masks()[:, 1].tolist() == [t for state in obs["states"][:, 0] for t in (state > 0, True)]
    env.close()


def test_infos_keep_types_and_gaps() -> None:
    """An integer beside a fraction becomes a fraction; what only some report is 0 in the rest; texts and odd shapes stay behind."""
    reported = [(0, {"x": 1, "v": np.ones(2), "text": "a", "odd": np.ones(2)}), (2, {"x": 0.5, "odd": np.ones(3), "wins": True})]
    columns = env_group._columns(reported, 3, 1)
    assert set(columns) == {"x", "v", "wins"}
    assert columns["x"].tolist() == [[1.0], [0.0], [0.5]]
    assert columns["v"].shape == (3, 1, 2)
    assert columns["wins"].dtype == np.bool_
    assert env_group._columns([(1, {"hp": [1.0, 2.0], "score": 3})], 2, 2)["hp"].tolist() == [[0, 0], [1, 2]]
    assert env_group._columns([(1, {"hp": [1.0, 2.0], "score": 3})], 2, 2)["score"].tolist() == [[0, 0], [3, 3]]


def test_infos_of_groups_that_report_different_things() -> None:
    class Says(Counter):
        def __init__(self, index: int) -> None:
            super().__init__()
            self.index = index

        def step(self, action: int) -> Any:
            *rest, _ = super().step(action)
            return (*rest, {"mine": 0.5} if self.index == 2 else {"all": self.index} if self.index else {})

    env = ProcessVecEnv(lambda index, render_mode: Says(index), 3, 0, None, 2)
    env.reset()
    infos = env.step(np.zeros(3, int))[3]
    assert infos["mine"].tolist() == [0, 0, 0.5]
    assert infos["all"].tolist() == [0, 1, 0]
    env.close()


class Changes(Counter):
    """The observation after the first step differs in shape or kind from the first one."""

    def __init__(self, first: np.ndarray, then: Any) -> None:
        super().__init__()
        self.first, self.then = first, then
        self.observation_space = spaces.Box(0, 255, first.shape, first.dtype.type)

    def _obs(self) -> np.ndarray:
        return self.first if self.step_number == 0 else self.then


@pytest.mark.parametrize(
    ("first", "then", "message"),
    [
        (np.zeros(3), np.zeros(1), r"shape \(1,\); the first one had \(3,\)"),  # NumPy alone would repeat it three times
        (np.zeros(3), 1.0, r"shape \(\); the first one"),
        (np.zeros(3, np.uint8), np.full(3, 0.5), "type float64; its space declares bytes"),  # NumPy alone would cut it to 0
    ],
)
def test_observations_that_change_their_kind(first: np.ndarray, then: Any, message: str) -> None:
    env = LocalVecEnv(lambda index, render_mode: Changes(first, then), 2)
    env.reset()
    with pytest.raises(UserError, match=rf"environment 0 raised in step:\n(.|\n)*{message}"):
        env.step(np.zeros(2, int))


def test_a_step_before_the_reset() -> None:
    with pytest.raises(RuntimeError, match="reset"):
        build("sync").step(np.zeros(5, int))


# ---- processes that fail ---------------------------------------------------------------------------------------------


def test_a_process_that_raises_keeps_the_others_in_step() -> None:
    env = build("async", register("Counter-v0", crash_at=2))
    env.reset()
    env.step(np.zeros(5, int))
    with pytest.raises(UserError, match=r"environment 0 raised in step, in process 0:(.|\n)*ValueError: the wheels came off"):
        env.step(np.zeros(5, int))
    assert env.reset()[:, 1].tolist() == [1] * 5  # and not an answer that was left from the step
    env.close()


def test_a_killed_process_is_named_at_once() -> None:
    env = build("async")
    env.reset()
    os.kill(env.worker_ids()[1], signal.SIGKILL)
    start = time.monotonic()
    with pytest.raises(UserError, match=r"process 1 of environments 3 to 4 died in step \(exit code -9\)"):
        env.step(np.zeros(5, int))
    env.close()
    env.close()
    assert time.monotonic() - start < 4.0
    assert multiprocessing.active_children() == []


def test_a_process_that_is_slow_to_start_is_spoken_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_vecenv, "SLOW_START", 0.1)

    def maker(index: int, render_mode: str | None) -> gymnasium.Env:
        time.sleep(0.5 if index == 2 else 0.0)
        return Counter()

    with pytest.warns(RuntimeWarning, match=r"process 1 has been building environment 2 for 0\.1 s.*task\.vecenv=ray"):
        env = ProcessVecEnv(maker, 3, 0, num_workers=2)
    assert env.reset().shape == (3, 3)
    env.close()


def test_an_interrupted_step_leaves_no_stale_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    env = build("async", register("Counter-v0", length=9))
    env.reset()
    receive = env._links[1].receive

    def interrupt() -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(env._links[1], "receive", interrupt)
    with pytest.raises(KeyboardInterrupt):
        env.step(np.zeros(5, int))
    monkeypatch.setattr(env._links[1], "receive", receive)
    assert env.reset()[:, 1].tolist() == [1] * 5
    assert env.step(np.zeros(5, int))[1].tolist() == [1] * 5
    env.close()


def test_processes_end_with_their_parent() -> None:
    """However it ends: each of them has let go of the ends that the fork handed down."""
    code = """if True:
        import os, signal
        from tasks import gymnasium_task
        env = gymnasium_task.make(num_envs=3, seed=0, device="cpu", id="CartPole-v1", vecenv="async", num_workers=3)
        print(*env.worker_ids(), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    root = Path(__file__).parent.parent
    out = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=60).stdout
    ids = [int(word) for word in out.split()]
    assert len(ids) == 3
    deadline = time.monotonic() + 10.0
    while time.monotonic() < deadline and any(_runs(id) for id in ids):
        time.sleep(0.05)
    assert not any(_runs(id) for id in ids)


def _runs(id: int) -> bool:
    try:
        return Path(f"/proc/{id}/stat").read_text().rpartition(")")[2].split()[0] != "Z"  # a container may have nobody to reap it
    except FileNotFoundError:
        return False


def test_workers_that_are_too_many() -> None:
    with pytest.raises(UserError, match="Valid: 1 to num_envs"):
        build("async", num_workers=6)
    with pytest.raises(UserError, match="ray_config belong to task"):
        build("async", ray_config={"num_cpus": 1})


# ---- the parts below -------------------------------------------------------------------------------------------------


def test_arrays_in_one_buffer_do_not_overlap() -> None:
    obs = {"obs": np.zeros((2, 3, 5), np.float32), "states": np.zeros((2, 1, 7), np.uint8)}
    layout = rows.layout(obs, 3, 2, np.zeros((2, 3, 4), bool))
    arrays = rows.allocate(layout, 2, bytearray(rows.num_bytes(layout, 2)))
    found = rows.leaves(arrays)
    for number, leaf in enumerate(found):
        leaf[...] = number % 2 if leaf.dtype == bool else number
    assert all((leaf == (number % 2 if leaf.dtype == bool else number)).all() for number, leaf in enumerate(found))
    assert arrays["rewards"].shape == (2, 3, 2)
    assert arrays["terminal"]["states"].shape == (2, 1, 7)
    assert {leaf.ctypes.data % rows.ALIGN for leaf in found} == {found[0].ctypes.data % rows.ALIGN}


def test_a_link_breaks_when_the_other_end_is_gone() -> None:
    here, there = multiprocessing.Pipe()
    link = Link(here)  # type: ignore[arg-type]  # typeshed knows pipes by another name
    there.close()
    with pytest.raises(Broken):
        link.receive()
    with pytest.raises(Broken):
        link.send("process_id")
    here.close()
    here, there = multiprocessing.Pipe()
    here.close()
    serve(env_group.EnvGroup([0], None, False, None), there)  # type: ignore[arg-type]  # likewise; returns
