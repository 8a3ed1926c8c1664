"""Legacy gym: the real package, and environments of its old API registered with it."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces as new_spaces

from core.errors import UserError
from tests.command import SMALL, command

pytest.importorskip("gym")
from tasks import gym_task

gym = gym_task._gym()


class Old(gym.Env):  # type: ignore[misc, name-defined]  # untyped
    """Four values, plain reset, `seed` and `render(mode)`, as before gym 0.26. Observation [step, draw at reset], reward the step."""

    metadata = {"render.modes": ["rgb_array"]}  # noqa: RUF012  # as old gym declares it
    observation_space = gym.spaces.Box(-9.0, 99.0, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, length: int = 100, says_time_out: bool = False) -> None:
        self.length, self.says_time_out = length, says_time_out
        self.rng = np.random.default_rng()

    def seed(self, seed: int | None = None) -> list[int | None]:
        self.rng = np.random.default_rng(seed)
        return [seed]

    def reset(self) -> np.ndarray:
        self.t, self.draw = 0, self.rng.uniform()
        return self._obs()

    def step(self, action: int) -> tuple[np.ndarray, float, bool, dict[str, Any]]:
        self.t += 1
        over = self.t >= self.length
        return self._obs(), float(self.t), over, {"TimeLimit.truncated": True} if over and self.says_time_out else {}

    def render(self, mode: str = "human") -> np.ndarray:
        assert mode == "rgb_array"
        return np.zeros((4, 5, 3), np.uint8)

    def _obs(self) -> np.ndarray:
        return np.array([self.t, self.draw], np.float32)


@pytest.fixture(autouse=True)
def _registered() -> None:
    for id, limit in (("Old-v0", None), ("OldLimited-v0", 3)):
        gym.envs.registry.pop(id, None)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            gym.register(id, entry_point=Old, max_episode_steps=limit)


def build(id: str | None, num_envs: int = 2, **more: Any) -> Any:
    return gym_task.make(num_envs=num_envs, seed=0, device="cpu", id=id, **more)


@pytest.mark.parametrize("vecenv", ["sync", "async"])
def test_four_values_become_ends_and_time_outs(vecenv: str) -> None:
    for options, time_out in (({"length": 2}, False), ({"length": 2, "says_time_out": True}, True)):
        env = build("Old-v0", options=options, vecenv=vecenv)
        env.reset()
        env.step(np.array([0, 1]))
        obs, rewards, dones, infos = env.step(np.array([0, 1]))
        env.close()
        assert dones.all()
        assert (infos["time_outs"] == time_out).all()
        np.testing.assert_array_equal(rewards, [2, 2])
        np.testing.assert_array_equal(infos["terminal_obs"][:, 0], [2, 2])
        np.testing.assert_array_equal(obs[:, 0], [0, 0])


def test_the_registered_limit_and_its_replacement() -> None:
    for more, steps in (({}, 3), ({"max_episode_steps": 5}, 5)):
        env = build("OldLimited-v0", **more)
        env.reset()
        assert env.max_episode_steps == steps
        for step in range(1, steps + 1):
            _, _, dones, infos = env.step(np.array([0, 0]))
            assert (dones == (step == steps)).all()
        assert infos["time_outs"].all()
    assert build("OldLimited-v0", max_episode_steps=-1).max_episode_steps is None


def test_seed_is_called_and_tells_environments_apart() -> None:
    first, again = build("Old-v0").reset(), build("Old-v0").reset()
    np.testing.assert_array_equal(first, again)
    assert first[0, 1] != first[1, 1]


def test_an_old_environment_is_drawn() -> None:
    env = build("Old-v0", num_envs=1, render_mode="rgb_array")
    env.reset()
    assert env.render().shape == (4, 5, 3)


def test_gyms_own_cartpole_is_gymnasiums_step_by_step() -> None:
    from tasks import gymnasium_task

    ours, theirs = build("CartPole-v1"), gymnasium_task.make(num_envs=2, seed=0, device="cpu", id="CartPole-v1")
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(ours.reset(), theirs.reset())
    for _ in range(300):
        actions = rng.integers(0, 2, 2)
        for mine, other in zip(ours.step(actions)[:3], theirs.step(actions)[:3], strict=True):
            np.testing.assert_array_equal(mine, other)


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        (gym.spaces.Discrete(3), new_spaces.Discrete(3)),
        (gym.spaces.MultiDiscrete([2, 3]), new_spaces.MultiDiscrete([2, 3])),
        (gym.spaces.MultiBinary(4), new_spaces.MultiBinary(4)),
        (gym.spaces.Box(-1.0, 2.0, (2, 3), np.float32), new_spaces.Box(-1.0, 2.0, (2, 3), np.float32)),
        (gym.spaces.Dict({"a": gym.spaces.Discrete(2)}), new_spaces.Dict({"a": new_spaces.Discrete(2)})),
        (gym.spaces.Tuple([gym.spaces.Discrete(2)]), new_spaces.Tuple([new_spaces.Discrete(2)])),
        (new_spaces.Discrete(5), new_spaces.Discrete(5)),
    ],
    ids=lambda space: str(space)[:12],
)
def test_spaces(space: Any, expected: new_spaces.Space) -> None:
    assert gym_task.space_of(space) == expected


@pytest.mark.parametrize(
    ("id", "more", "message"),
    [
        (None, {}, "task.id is missing"),
        ("CartPol-v1", {}, "Did you mean 'CartPole-v1'"),
        ("no_such_module:Old-v0", {}, "cannot import 'no_such_module'"),
        ("Old-v0", {"options": {"lenght": 2}}, "task.options: .*'lenght'"),
        ("Old-v0", {"vecenv": "thread"}, "unknown vecenv 'thread'"),
    ],
)
def test_mistakes(id: str | None, more: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(id, **more)


def test_it_trains_and_plays(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert command("task=gym", "task.id=CartPole-v1", "train=PPO", *SMALL, "max_epochs=2", f"run_dir={run}")["epochs"] == 2
    assert command("test=True", f"checkpoint={run / 'nn' / 'last.pth'}", "player.games_num=4")["episodes"] == 4
