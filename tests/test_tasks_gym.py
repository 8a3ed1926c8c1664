"""The legacy gym in all its APIs: ends, seeds, spaces, pictures, and no notice on the screen."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from core import registry
from core.errors import UserError
from tests.command import SMALL, command

pytest.importorskip("gym")
from tasks import gym_task, old_gym
from tests.old_gym_envs import Between, New, Odd, Old, gym, register

APIS = {"Old-v0": Old, "Between-v0": Between, "New-v0": New}


def build(id: str, num_envs: int = 2, seed: int | None = 0, render_mode: str | None = None, **options: Any) -> Any:
    return gym_task.make(num_envs=num_envs, seed=seed, device="cpu", id=id, render_mode=render_mode, **options)


def inner(env: Any, index: int = 0) -> Any:
    return env._group.envs[index].env.unwrapped._inner


# ---- episode ends -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("id", APIS)
@pytest.mark.parametrize("vecenv", ["sync", "async"])
def test_termination(id: str, vecenv: str) -> None:
    env = build(register(id, APIS[id]), vecenv=vecenv)
    assert env.reset()[:, 0].tolist() == [0, 0]
    for step in (1, 2):
        obs, rewards, dones, infos = env.step(np.array([0, 1]))
        assert obs[:, 0].tolist() == [step, step]
        assert rewards.tolist() == [0, 1]
        assert infos["scores"].tolist() == [step, step]
        assert not dones.any()
    obs, _, dones, infos = env.step(np.array([0, 1]))
    assert dones.all()
    assert not infos["time_outs"].any()
    assert obs[:, 0].tolist() == [0, 0]
    assert infos["terminal_obs"][:, 0].tolist() == [3, 3]
    assert obs.dtype == np.float32
    env.close()


@pytest.mark.parametrize("id", APIS)
def test_a_truncation_of_its_own_is_a_time_out(id: str) -> None:
    env = build(register(id, APIS[id], length=9, cut_at=2))
    env.reset()
    assert not env.step(np.zeros(2, int))[3]["time_outs"].any()
    _, _, dones, infos = env.step(np.zeros(2, int))
    assert dones.all()
    assert infos["time_outs"].all()


@pytest.mark.parametrize("id", APIS)
def test_time_limits(id: str) -> None:
    """The registered one, one in its place, and none; each of them for four values as for five."""
    register(id, APIS[id], max_episode_steps=2, length=6)
    for limit, last in ((None, 2), (4, 4), (-1, 6)):
        env = build(id, max_episode_steps=limit)
        env.reset()
        ends = [env.step(np.zeros(2, int))[2:] for _ in range(last)]
        assert [dones.all() for dones, _ in ends] == [False] * (last - 1) + [True]
        assert ends[-1][1]["time_outs"].all() == (last < 6)


def test_ending_and_running_out_of_time_at_once_is_no_time_out() -> None:
    for env in (build(register("New-v0", New, length=2, cut_at=2)), build(register("Old-v0", Old, max_episode_steps=3, length=3))):
        env.reset()
        ends = [env.step(np.zeros(2, int)) for _ in range(3)]
        dones, infos = next((d, i) for _, _, d, i in ends if d.any())
        assert dones.all()
        assert not infos["time_outs"].any()


def test_what_was_registered_may_have_gyms_wrappers() -> None:
    """They take five values only, and gym's checker needs NumPy 1: neither is in the way. A limit among them holds."""
    register("Inside-v0", Old, max_episode_steps=2, length=9)
    wrapped = gym.wrappers.TimeLimit(gym.wrappers.OrderEnforcing(gym.wrappers.env_checker.PassiveEnvChecker(Old(length=9))), 2)
    env = build(register("Wrapped-v0", lambda: wrapped), num_envs=1)
    env.reset()
    env.step(np.zeros(1, int))
    _, _, dones, infos = env.step(np.zeros(1, int))
    assert dones.all()
    assert infos["time_outs"].all()
    checked = gym.wrappers.RecordEpisodeStatistics(gym.wrappers.env_checker.PassiveEnvChecker(New(length=2)))
    env = build(register("Checked-v0", lambda: checked), num_envs=1)
    env.reset()
    env.step(np.zeros(1, int))
    assert env.step(np.zeros(1, int))[2].all()


# ---- seeds --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("id", [*APIS, "CartPole-v1"])
def test_same_seed_same_transitions(id: str) -> None:
    if id in APIS:
        register(id, APIS[id])
    runs = []
    for seed in (3, 3, 4):
        env = build(id, seed=seed)
        runs.append(np.concatenate([env.reset(), *[env.step(np.array([step % 2] * 2))[0] for step in range(60)]]))
    assert (runs[0] == runs[1]).all()
    assert (runs[0] != runs[2]).any()
    assert (runs[0][0] != runs[0][1]).any()  # two environments of one run
    assert (build(id, seed=None).reset() != build(id, seed=None).reset()).any()


def test_seed_is_called_once_with_seed_and_index() -> None:
    env = build(register("Old-v0", Old, length=1), seed=7)
    env.reset()
    env.step(np.zeros(2, int))
    assert [inner(env, i).seeds for i in (0, 1)] == [[7], [8]]
    env = build(register("Between-v0", Between), seed=7)
    env.reset()
    assert inner(env).seeds == [7, ("reset", 7)]


def test_spaces_that_an_environment_draws_from_are_seeded() -> None:
    register("Odd-v0", Odd, observation=gym.spaces.Box(-1, 1, (3,), np.float32), action=gym.spaces.Discrete(2))
    first, again, other = (build("Odd-v0", seed=seed).reset() for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()


# ---- spaces -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (gym.spaces.Box(-1, 2, (2, 3), np.float64), spaces.Box(-1, 2, (2, 3), np.float64)),
        (gym.spaces.Box(0, 255, (4, 4, 3), np.uint8), spaces.Box(0, 255, (4, 4, 3), np.uint8)),
        (gym.spaces.Box(np.array([-np.inf, 0]), np.array([1, np.inf]), dtype=np.float64), spaces.Box(np.array([-np.inf, 0]), np.array([1, np.inf]), dtype=np.float64)),
        (gym.spaces.Discrete(4), spaces.Discrete(4)),
        (gym.spaces.Discrete(4, start=2), spaces.Discrete(4, start=2)),
        (gym.spaces.MultiDiscrete([2, 5]), spaces.MultiDiscrete([2, 5])),
        (gym.spaces.MultiBinary(3), spaces.MultiBinary(3)),
        (gym.spaces.MultiBinary((2, 3)), spaces.MultiBinary((2, 3))),
        (gym.spaces.Tuple([gym.spaces.Discrete(2), gym.spaces.Discrete(3)]), spaces.Tuple([spaces.Discrete(2), spaces.Discrete(3)])),
        (gym.spaces.Dict(a=gym.spaces.Discrete(2), b=gym.spaces.Dict(c=gym.spaces.MultiBinary(1))), spaces.Dict(a=spaces.Discrete(2), b=spaces.Dict(c=spaces.MultiBinary(1)))),
        (spaces.Discrete(3), spaces.Discrete(3)),  # an environment half converted
    ],
)  # fmt: skip
def test_spaces(theirs: Any, ours: spaces.Space) -> None:
    assert old_gym.convert(theirs) == ours
    assert ours.contains(theirs.sample())


@pytest.mark.parametrize(
    ("observation", "shape"),
    [
        (gym.spaces.Discrete(4), (4,)),
        (gym.spaces.Tuple([gym.spaces.Box(-1, 1, (2,), np.float32), gym.spaces.Discrete(3)]), (5,)),
        (gym.spaces.Tuple([gym.spaces.Discrete(2), gym.spaces.Dict(a=gym.spaces.Discrete(3))]), (5,)),  # looks like (observation, info)
        (gym.spaces.Box(0, 255, (8, 8, 3), np.uint8), (8, 8, 3)),
    ],
)
def test_observations(observation: Any, shape: tuple[int, ...]) -> None:
    env = build(register("Odd-v0", Odd, observation=observation, action=gym.spaces.Discrete(2)))
    obs = env.reset()
    assert env.observation_space.shape == shape
    assert obs.shape == (2, *shape)
    assert env.step(np.zeros(2, int))[0].dtype == (np.uint8 if len(shape) == 3 else np.float32)


def test_a_dict_stays_a_dict() -> None:
    parts = gym.spaces.Dict(place=gym.spaces.Box(-1, 1, (2,), np.float64), room=gym.spaces.Discrete(3))
    obs = build(register("Odd-v0", Odd, observation=parts, action=gym.spaces.Discrete(2))).reset()
    assert {key: value.shape for key, value in obs.items()} == {"place": (2, 2), "room": (2, 3)}


@pytest.mark.parametrize(
    ("action", "row", "given"),
    [
        (gym.spaces.Discrete(3, start=5), 2, 7),
        (gym.spaces.MultiDiscrete([2, 3]), [1, 2], [1, 2]),
        (gym.spaces.MultiBinary(2), [0, 1], [0, 1]),
        (gym.spaces.Tuple([gym.spaces.Discrete(2), gym.spaces.Discrete(4)]), [1, 3], (1, 3)),
        (gym.spaces.Box(-1, 1, (2, 1), np.float32), [0.5, -0.5], [[0.5], [-0.5]]),
    ],
)
def test_actions(action: Any, row: Any, given: Any) -> None:
    env = build(register("Odd-v0", Odd, observation=gym.spaces.Discrete(2), action=action))
    env.reset()
    env.step(np.array([row, row], dtype=np.float32 if isinstance(action, gym.spaces.Box) else np.int64))
    assert np.allclose(inner(env).last, given)


def test_wrappers_are_gymnasiums() -> None:
    env = build("CartPole-v1", wrappers=[{"name": "FrameStackObservation", "stack_size": 4}])
    assert env.reset().shape == (2, 4, 4)


# ---- pictures, and the real one -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("id", ["Old-v0", "New-v0"])
def test_pictures(id: str) -> None:
    env = build(register(id, APIS[id]), render_mode="rgb_array")
    env.reset()
    env.step(np.zeros(2, int))
    assert env.can_render
    assert (env.render() == 1).all()
    assert not build(id).can_render


def test_cartpole_is_gymnasiums() -> None:
    """The same physics, limits and seeds, step by step."""
    env = build("CartPole-v1", render_mode="rgb_array")
    twins = [gymnasium.make("CartPole-v1") for _ in range(2)]
    obs = env.reset()
    theirs = [twin.reset(seed=seed)[0] for seed, twin in enumerate(twins)]
    assert np.allclose(obs, theirs)
    for step in range(8):
        obs = env.step(np.array([step % 2] * 2))[0]
        assert np.allclose(obs, [twin.step(step % 2)[0] for twin in twins])
    assert env.render().shape == (400, 600, 3)
    env.close()
    assert build("CartPole-v1", max_episode_steps=None)._group.envs[0].env.spec is None  # gymnasium knows nothing of it


def test_trains_and_plays(tmp_path: Path) -> None:
    registry.discover()
    result = command("task=gym", "task.id=CartPole-v1", "train=PPO", *SMALL, "max_epochs=3", f"run_dir={tmp_path}/run")
    played = command("test=True", f"checkpoint={result['checkpoint']}", "player.games_num=3")
    assert played["episodes"] == 3
    assert played["return"] == played["length"]


def test_an_old_environment_of_the_users_own_trains_without_a_notice(tmp_path: Path) -> None:
    """As a user has it: a file that imports gym and registers, and worker processes that know nothing of it yet."""
    (tmp_path / "mine.py").write_text(
        "import gym\nimport numpy as np\n"
        "class Mine(gym.Env):\n"
        "    observation_space = gym.spaces.Box(-9, 9, (1,), np.float32)\n    action_space = gym.spaces.Discrete(2)\n"
        "    def seed(self, seed=None):\n        return [seed]\n"
        "    def reset(self):\n        self.x = np.zeros(1, np.float32)\n        return self.x.copy()\n"
        "    def step(self, action):\n        self.x += 2 * action - 1\n        return self.x.copy(), float(self.x[0]), bool(abs(self.x[0]) >= 9), {}\n"
        "gym.register('Mine-v0', entry_point='outside_mine:Mine', max_episode_steps=50)\n"
    )
    words = ["task=gym", "task.id=Mine-v0", "task.vecenv=async", "task.num_workers=2", "max_epochs=2", f"modules=[{tmp_path}/mine.py]"]
    root = Path(__file__).parents[1]
    ran = subprocess.run(
        [sys.executable, "train.py", *words, *SMALL, "progress=off", f"run_dir={tmp_path}/run"],
        cwd=root, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert "unmaintained" not in ran.stdout + ran.stderr
    assert "Warning" not in ran.stderr


# ---- mistakes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("id", "options", "message"),
    [
        (None, {}, "task.id is missing: which gym environment"),
        ("CartPol-v1", {}, "unknown gym environment 'CartPol-v1' at task.id. Did you mean 'CartPole-v1'"),
        ("nowhere:Thing-v0", {}, "cannot import 'nowhere'"),
        ("CartPole-v1", {"options": {"gravty": 1}}, "task.options.*gravty"),
        ("CartPole-v1", {"vecenv": "rya"}, "Did you mean 'ray'"),
        ("CartPole-v1", {"num_workers": 2}, "belong to task.vecenv=ray"),
        ("CartPole-v1", {"wrappers": ["FrameStackObservatio"]}, r"wrappers\[0\]. Did you mean"),
        ("CartPole-v1", {"render_mode": "human"}, "cannot render 'human'"),
        ("Text-v0", {}, "is none of Box, Discrete, MultiDiscrete, MultiBinary, Dict, Tuple"),
        ("Lacking-v0", {}, "task.id 'Lacking-v0' needs a package: No module named 'no_such_simulator'"),
    ],
)
def test_mistakes(id: str | None, options: dict[str, Any], message: str) -> None:
    register("Text-v0", Odd, observation=gym.spaces.Text(5), action=gym.spaces.Discrete(2))
    register("Lacking-v0", "no_such_simulator:Env")
    if options.get("render_mode") == "human":
        id = register("New-v0", New)
    with pytest.raises(UserError, match=message):
        gym_task.make(**{"num_envs": 2, "seed": 0, "device": "cpu", "id": id, **options})
