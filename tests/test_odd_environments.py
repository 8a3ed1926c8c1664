"""Environments that do legal but rare things: what the policy sees and what they get must stay what both sides declared."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from algos.fast_collect import Given
from core import registry
from core.errors import UserError
from core.observers import Episode
from players.default import Player
from players.video import picture
from tasks import gym_task
from tasks.env_group import _columns
from tasks.gymnasium_task import portable_entry_point
from tasks.one_env import find_attr
from tasks.row_vecenv import LocalVecEnv
from tasks.spaces import normalize_spaces
from tasks.vecenvs import make_vecenv
from tests.agents import our_agent, weights
from tests.command import command
from tests.test_agent_defects import DictBuilder, DictNetwork
from tests.toys import ToyVecEnv, toy_params


class Odd(gymnasium.Env):
    """Says and returns what it was made with; keeps the last action."""

    def __init__(
        self, obs: Any = 0.0, space: Any = None, action: Any = None, reward: Any = 0.0, info: Any = None, mask: Any = None
    ) -> None:
        self.obs, self.reward, self.report, self.last = obs, reward, info or {}, None
        self.observation_space = space or spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.action_space = action or spaces.Discrete(2)
        if mask is not None:
            self.get_action_mask = lambda: mask

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return self.obs, {}

    def step(self, action: Any) -> Any:
        self.last = action
        return self.obs, self.reward, False, False, self.report


def local(**odd: Any) -> LocalVecEnv:
    return LocalVecEnv(lambda index, render_mode: normalize_spaces(Odd(**odd)), 2)


# ---- actions ----------------------------------------------------------------------------------------------------------


class Writes(ToyVecEnv):
    """Uses the array of actions for itself."""

    def step(self, actions: Any) -> Any:
        result = super().step(actions.copy())
        actions[...] = 0
        return result


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("action", ["continuous", "discrete", "multi_discrete"])
def test_an_environment_may_write_into_its_actions(action: str, fused: bool, tmp_path: Path) -> None:
    trained = []
    for env in (ToyVecEnv(action=action), Writes(action=action)):
        params = toy_params(action=action)
        params["config"].update(clip_actions=False, fused=fused)
        agent = our_agent(params, env, tmp_path / type(env).__name__)
        torch.manual_seed(0)
        agent.train()
        trained.append(weights(agent))
    torch.testing.assert_close(*trained, rtol=0, atol=0)


def test_stretched_actions_stay_within_bounds(tmp_path: Path) -> None:
    env = ToyVecEnv()
    env.action_space = spaces.Box(np.float32([-0.3, 0.1, -2.7]), np.float32([0.7, 0.3, 0.9]), dtype=np.float32)
    policy = our_agent(toy_params(), env, tmp_path).policy
    ends = policy.env_actions(torch.tensor([[-5.0] * 3, [5.0] * 3]))
    assert all(env.action_space.contains(row) for row in ends.numpy())
    torch.testing.assert_close(ends, torch.tensor(np.stack([env.action_space.low, env.action_space.high])))


def test_bounds_of_the_largest_floats_are_endless(tmp_path: Path) -> None:
    env = ToyVecEnv()
    most = np.finfo(np.float32).max
    env.action_space = spaces.Box(-most, most, (2,), np.float32)
    with pytest.raises(UserError, match=r"action 0 has the bounds -3\.40282e\+38"):
        our_agent(toy_params(), env, tmp_path)


def test_actions_of_float64_keep_their_own_bounds() -> None:
    env = Odd(action=spaces.Box(-0.1, 0.1, (2,), np.float64))
    outer = normalize_spaces(env)
    assert outer.action_space.dtype == np.float32
    outer.step(np.float32([-0.1, 0.1]))
    assert env.last.dtype == np.float64
    assert env.action_space.contains(env.last)
    outer.step(np.float32([0.05, 0.0]))
    np.testing.assert_allclose(env.last, [0.05, 0.0], rtol=1e-6)


def test_a_box_of_integers_is_a_choice_for_each() -> None:
    env = Odd(action=spaces.Box(np.array([[-1], [3]]), np.array([[1], [5]]), dtype=np.int64))
    outer = normalize_spaces(env)
    assert outer.action_space == spaces.MultiDiscrete([3, 3])
    outer.step(np.array([0, 2]))
    assert env.last.tolist() == [[-1], [5]]
    assert env.action_space.contains(env.last)
    ends = np.iinfo(np.int64)
    for low, high in ((0, 5000), (ends.min, ends.max)):
        with pytest.raises(UserError, match="choice among at most 1024"):
            normalize_spaces(Odd(action=spaces.Box(low, high, (2,), np.int64)))


# ---- observations, rewards, infos ---------------------------------------------------------------------------------------

BYTES, FLOATS = spaces.Box(0, 10, (2,), np.uint8), spaces.Box(0, 255, (2,), np.float32)


@pytest.mark.parametrize(
    ("space", "obs", "dtype"),
    [(BYTES, np.array([3, 4]), np.uint8), (FLOATS, np.array([3, 4], np.uint8), np.float32), (FLOATS, np.array([3.0, 4.0]), np.float32)],
)
def test_observations_have_the_type_that_is_declared(space: Any, obs: Any, dtype: Any) -> None:
    """Bytes are divided by 255: the policy would else see other numbers in training than in playing."""
    env = local(space=space, obs=obs)
    for seen in (env.reset(), env.step(np.zeros(2, np.int64))[0]):
        assert seen.dtype == dtype
        assert seen.tolist() == [[3, 4]] * 2


def test_fractions_are_no_bytes() -> None:
    with pytest.raises(UserError, match="observation of type float64, and its space declares bytes"):
        local(space=BYTES, obs=np.array([0.5, 1.0])).reset()


def test_a_reward_is_one_number() -> None:
    env = local(obs=np.zeros(1), reward=np.zeros(3))
    env.reset()
    with pytest.raises(UserError, match=r"a reward of shape \(3,\), not one number"):
        env.step(np.zeros(2, np.int64))


def test_rewards_may_stand_in_a_column() -> None:
    field = torch.zeros(4, 2)
    Given(field).put(1, np.array([[1.0], [2.0]]))
    Given(field).put(2, torch.tensor([[3.0], [4.0]]))
    assert field.tolist() == [[0, 0], [1, 2], [3, 4], [0, 0]]


def test_what_infos_may_hold() -> None:
    assert _columns([(0, {"path": [[(1, 2), (3,)]], "n": 5})], 1, 1).keys() == {"n"}  # a ragged list is no number
    stats = Episode(None)
    stats.after_init(SimpleNamespace(num_agents=1, games_to_track=5))
    stats.process_infos({"episode": np.array([1, 2])}, torch.zeros(0))
    assert stats.metrics() == {}


class PartNamedObs(ToyVecEnv):
    """Dict observations, one part of which is called as what wraps observations beside states."""

    def __init__(self) -> None:
        super().__init__(dict_obs=True)
        parts = self.observation_space.spaces
        self.observation_space = spaces.Dict({"obs": parts["a"], "states": parts["b"]})

    def _obs(self, position: Any) -> Any:
        obs = super()._obs(position)
        return {"obs": obs["a"], "states": obs["b"]}


class ReadsBoth(DictNetwork):
    def forward(self, inputs: Any) -> Any:
        obs = inputs["obs"]
        return super().forward({"obs": {"a": obs["obs"], "b": obs["states"]}})


class ReadsBothBuilder(DictBuilder):
    def build(self, name: str, **kwargs: Any) -> Any:
        return ReadsBoth()


def test_a_part_of_an_observation_may_be_called_obs(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(registry.networks._entries, "reads_both", ReadsBothBuilder)
    env, params = PartNamedObs(), toy_params()
    params["network"]["name"] = "reads_both"
    agent = our_agent(params, env, tmp_path)
    agent.train()
    assert agent.obs["obs"].keys() == {"obs", "states"}
    player = Player(agent.policy, env, games_num=1, deterministic=True, seed=0)
    assert player.without_states(env.reset()).keys() == {"obs", "states"}
    assert player.run()["episodes"] == 1


def test_an_observation_that_is_not_finite_is_named_while_playing(tmp_path: Path) -> None:
    env = ToyVecEnv()
    agent = our_agent(toy_params(), env, tmp_path)
    player = Player(agent.policy, env, games_num=1, deterministic=True, seed=0)
    obs = np.zeros((8, 3), np.float32)
    obs[5, 1] = np.nan
    with pytest.raises(UserError, match="an observation is not finite: nan in environment 5, while playing"):
        player._see(obs)


def test_a_mask_has_a_boolean_for_each_choice() -> None:
    with pytest.raises(UserError, match=r"an action mask of shape \(3,\); wanted is a boolean for each of the 2 choices"):
        local(obs=np.zeros(1), mask=np.ones(3, bool)).reset()


# ---- failures ------------------------------------------------------------------------------------------------------------


class Exits(Odd):
    def step(self, action: Any) -> Any:
        sys.exit(0)


class Fails(Odd):
    def close(self) -> None:
        raise RuntimeError("cannot close")


def test_an_environment_that_exits_has_failed() -> None:
    env = LocalVecEnv(lambda index, render_mode: Exits(obs=np.zeros(1)), 1)
    env.reset()
    with pytest.raises(UserError, match="SystemExit: 0"):
        env.step(np.zeros(1, np.int64))


def raising(index: int, render_mode: str | None) -> Any:
    raise RuntimeError("no such file")


@pytest.mark.parametrize("vecenv", ["sync", "async", "ray"])
def test_an_environment_that_cannot_be_built(vecenv: str) -> None:
    with pytest.raises(UserError, match="no such file"):
        make_vecenv(raising, 2, 0, None, vecenv=vecenv)


def test_a_close_that_raises_does_not_stop_a_run() -> None:
    env = make_vecenv(lambda index, render_mode: Fails(obs=np.zeros(1)), 2, 0, None, vecenv="async", num_workers=1)
    env.reset()
    env.close()


def test_an_environment_may_hold_itself() -> None:
    env = Odd(obs=np.zeros(1))
    env.env = env
    assert find_attr(env, "no_such_thing") is None
    LocalVecEnv(lambda index, render_mode: env, 1).reset()


class Drawing:
    def __init__(self, frame: Any) -> None:
        self.render = lambda: frame


def test_pictures_for_a_video() -> None:
    assert picture(Drawing(np.full((4, 6), 7, np.uint8))).shape == (4, 6, 3)
    assert picture(Drawing(np.zeros((4, 6, 4), np.uint8))).shape == (4, 6, 3)
    for frame, named in (
        (None, "NoneType"),
        (np.zeros((4, 6, 3)), r"float64 and shape \(4, 6, 3\)"),
        (np.zeros(3, np.uint8), r"shape \(3,\)"),
    ):
        with pytest.raises(UserError, match=rf"render\(\) returned .*{named}"):
            picture(Drawing(frame))


def test_an_outside_module_has_no_name_in_other_processes() -> None:
    sys.modules["outside_odd"] = sys.modules[__name__]
    try:
        assert portable_entry_point("outside_odd:Odd") is Odd
        assert portable_entry_point("numpy:array") == "numpy:array"
        assert portable_entry_point(Odd) is Odd
    finally:
        del sys.modules["outside_odd"]
    assert gym_task.portable_entry_point is portable_entry_point


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["task=envpool", "task.id=CartPole-v1", "task.options={max_episode_steps:0}"],
            "task.options.max_episode_steps=0: EnvPool takes 1",
        ),
        (["task=envpool", "task.id=CartPole-v1", "task.num_threads=-1"], "task.num_threads=-1: valid are 0"),
        (["task=gymnasium", "task.id=.odd:Odd-v0"], "cannot import '.odd'"),
        (["task=gymnasium", "task.id=broken_module:Odd-v0"], "cannot read 'broken_module'"),
        (["task=pettingzoo", "task.id=.odd"], "unknown PettingZoo environment '.odd'"),
    ],
)
def test_mistakes_are_told_before_a_run(arguments: list[str], message: str, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "broken_module.py").write_text("def (:\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match=message):
        command(*arguments, "train=PPO", f"run_dir={tmp_path / 'run'}")
    assert not (tmp_path / "run").exists()


def test_envpool_seeds_beyond_31_bits() -> None:
    from tasks import envpool_task

    env = envpool_task.make(num_envs=2, seed=3_000_000_000, device="cpu", render_mode=None, id="CartPole-v1")
    env.reset()
    env.close()
