"""The environments of rl_games' own registry, and the rows of teams, central values and masks. All in this process."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from core.errors import UserError
from core.vecenv import VecEnv
from tasks.rl_games_task import make
from tests.task_envs import Counter, Team

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch deprecates what rl_games' test networks use
    from rl_games.common import env_configurations, vecenv


@pytest.fixture
def registered() -> Iterator[None]:
    before = dict(env_configurations.configurations), dict(vecenv.vecenv_config)
    env_configurations.register("team", {"env_creator": lambda **kwargs: Team(**kwargs), "vecenv_type": "RAY"})
    env_configurations.register("counter", {"env_creator": lambda **kwargs: Counter(**kwargs), "vecenv_type": "RAY"})
    yield
    for registry, content in zip((env_configurations.configurations, vecenv.vecenv_config), before, strict=True):
        registry.clear()
        registry.update(content)


def build(env_name: str, num_envs: int = 2, **env_config: Any) -> VecEnv:
    return make(num_envs=num_envs, seed=0, device="cpu", env_name=env_name, env_config=env_config, vecenv="sync")


@pytest.mark.parametrize("num_envs", [1, 3])
def test_a_team(registered: None, num_envs: int) -> None:
    env = build("team", num_envs, length=2)
    info = env.get_env_info()
    assert (info["agents"], info["value_size"], info["state_space"].shape) == (2, 2, (3,))
    obs = env.reset()
    assert obs["obs"].tolist() == [[0, 0], [1, 0]] * num_envs
    assert obs["states"].tolist() == [[0, 0, 0]] * num_envs  # one per environment, as rl_games hands them over
    assert env.has_action_masks()
    assert env.get_action_masks().tolist() == [[True, False, False], [True, True, False]] * num_envs

    actions = np.arange(2 * num_envs)
    obs, rewards, dones, infos = env.step(actions)
    assert obs["obs"].tolist() == [[0, 1], [1, 1]] * num_envs
    assert rewards.tolist() == [[a, 10 * a] for a in range(2 * num_envs)]  # every agent got its own action
    assert not dones.any()
    assert dones.shape == (2 * num_envs,)
    assert env.get_action_masks().tolist() == [[True, True, False], [True, True, True]] * num_envs

    obs, _, dones, infos = env.step(actions)
    assert dones.all()
    assert infos["time_outs"].tolist() == [True] * 2 * num_envs
    assert infos["battle_won"].tolist() == [1] * 2 * num_envs
    assert obs["states"].tolist() == [[0, 0, 0]] * num_envs
    assert infos["terminal_obs"]["states"].tolist() == [[2, 2, 2]] * num_envs
    assert infos["terminal_obs"]["obs"].tolist() == [[0, 2], [1, 2]] * num_envs
    assert env.get_action_masks()[:, 1].tolist() == [False, True] * num_envs  # those of the new episode


def test_a_five_tuple_environment(registered: None) -> None:
    env = build("counter", length=3)
    env.reset()
    for _ in range(2):
        env.step(np.zeros(2, int))
    obs, rewards, dones, infos = env.step(np.zeros(2, int))
    assert obs[:, :2].tolist() == [[0, 1]] * 2
    assert infos["terminal_obs"][:, :2].tolist() == [[3, 0]] * 2
    assert dones.all()
    assert not infos["time_outs"].any()
    assert infos["scores"].tolist() == [3, 3]
    assert not env.has_action_masks()


def test_time_outs_of_rl_games_own_environments() -> None:
    env = build("openai_gym", name="Pendulum-v1", max_episode_steps=3)
    env.reset()
    ends = [env.step(np.zeros((2, 1), np.float32))[3]["time_outs"].tolist() for _ in range(4)]
    assert ends == [[False] * 2, [False] * 2, [True] * 2, [False] * 2]


def test_stock_seeding_reaches_the_innermost_environment() -> None:
    """CartPoleMaskedVelocity: a wrapper of rl_games around an old-API class around gymnasium's environment."""
    first, again = (build("CartPoleMaskedVelocity-v1").reset() for _ in range(2))
    assert (first == again).all()
    assert (first[0] != first[1]).any()
    assert (first[:, [1, 3]] == 0).all()
    assert first.dtype == np.float32


def test_the_asymmetric_test_environment() -> None:
    """Old-API class that gymnasium 1.x cannot drive: stock rl_games 1.6.5 fails at its first reset."""
    env = build("test_env", name="TestAsymmetricEnv-v0", wrapped_env_name="CartPole-v1")
    obs = env.reset()
    assert (obs["obs"][:, [1, 3]] == 0).all()
    assert (obs["states"][:, [1, 3]] != 0).all()
    assert (obs["obs"][:, [0, 2]] == obs["states"][:, [0, 2]]).all()
    again = build("test_env", name="TestAsymmetricEnv-v0", wrapped_env_name="CartPole-v1").reset()
    assert (again["states"] == obs["states"]).all()  # seeded inside
    obs, rewards, dones, infos = env.step(np.zeros(2, int))
    assert infos["terminal_obs"]["states"].shape == (2, 4)
    assert rewards.tolist() == [1, 1]


@pytest.mark.parametrize("num_envs", [1, 2])
def test_the_rnn_test_environment(num_envs: int) -> None:
    """Multi-discrete actions, two values, Dict observations, central value, all at once."""
    env = build(
        "test_env",
        num_envs,
        name="TestRnnEnv-v0",
        multi_discrete_space=True,
        multi_head_value=True,
        multi_obs_space=True,
        use_central_value=True,
        max_steps=3,
        min_dist=4,  # a goal that three steps cannot reach, wherever it is drawn
    )
    assert env.value_size == 2
    assert isinstance(env.action_space, spaces.Tuple)
    assert isinstance(env.state_space, spaces.Dict)
    obs = env.reset()
    assert obs["obs"]["pos"].shape == (num_envs, 2)
    assert obs["states"]["info"].shape == (num_envs, 4)
    for _ in range(3):
        obs, rewards, dones, infos = env.step(np.zeros((num_envs, 2), int))
    assert rewards.shape == (num_envs, 2)
    assert dones.all()
    assert infos["scores"].tolist() == [0] * num_envs
    assert infos["terminal_obs"]["obs"]["info"][:, 3].tolist() == [3] * num_envs
    assert obs["obs"]["pos"].dtype == np.float32


def test_envpool_configurations_are_translated() -> None:
    env = make(
        num_envs=2,
        seed=0,
        device="cpu",
        env_name="envpool",
        env_config={"env_name": "Pong-v5", "has_lives": True, "use_dict_obs_space": True, "max_episode_steps": 1},
    )
    assert env.reset_mode == "next_step"
    assert list(env.observation_space.spaces) == ["last_action", "observation", "reward"]
    env.reset()
    obs, _, _, infos = env.step(np.array([3, 5]))
    assert obs["last_action"].tolist() == [3, 5]
    assert obs["reward"].shape == (2,)
    assert obs["observation"].shape == (2, 4, 84, 84)
    assert infos["time_outs"].all()
    assert env.step(np.array([3, 5]))[0]["last_action"].tolist() == [0, 0]  # the row of the reset took no action


class Simulator:
    """A batched torch environment registered with rl_games: one observation buffer, time-outs, no terminal observation."""

    def __init__(self, config_name: str, num_actors: int, **kwargs: Any) -> None:
        self.seed_given = kwargs.get("seed")
        self.obs = torch.zeros(num_actors, 1)

    def get_env_info(self) -> dict[str, Any]:
        return {"observation_space": spaces.Box(-1, 1, (1,)), "action_space": spaces.Box(-1, 1, (1,))}

    def reset(self) -> dict[str, torch.Tensor]:
        self.obs.zero_()
        return {"obs": self.obs}

    def step(self, actions: torch.Tensor) -> tuple[Any, torch.Tensor, torch.Tensor, dict[str, Any]]:
        self.obs += 1
        over = self.obs[:, 0] >= 2
        self.obs[over] = 0
        return {"obs": self.obs}, torch.ones(len(over)), over, {"time_outs": over}


def test_a_registered_simulator(registered: None) -> None:
    vecenv.register("SIM", lambda name, num_actors, **kwargs: Simulator(name, num_actors, **kwargs))
    env_configurations.register("sim", {"env_creator": lambda **kwargs: None, "vecenv_type": "SIM"})
    env: Any = build("sim", seed=5)
    assert env.is_torch
    assert env._inner.seed_given == 5
    env.reset()
    env.step(torch.zeros(2, 1))
    obs, _, dones, infos = env.step(torch.zeros(2, 1))
    assert dones.all()
    assert infos["time_outs"].all()
    assert obs["obs"].tolist() == [[0], [0]]
    assert infos["terminal_obs"]["obs"].tolist() == [[1], [1]]  # the observation before the step, not the overwritten buffer


def test_mistakes(registered: None) -> None:
    env_configurations.register("sim", {"env_creator": lambda **kwargs: None, "vecenv_type": "SIMM"})
    with pytest.raises(UserError, match="unknown vecenv type 'SIMM' at the rl_games configuration 'sim'"):
        build("sim")
    with pytest.raises(UserError, match=r"environment 0 raised in start(.|\n)*unexpected keyword argument 'lenght'"):
        build("team", lenght=3)
    env = build("counter", crash_at=1)
    env.reset()
    with pytest.raises(UserError, match=r"environment 0 raised in step(.|\n)*the wheels came off"):
        env.step(np.zeros(2, int))
    with pytest.raises(UserError, match="no get_action_mask"):
        env.get_action_masks()


@pytest.mark.filterwarnings("ignore:.*out of date:DeprecationWarning")
@pytest.mark.parametrize("vecenv", ["sync", "ray"])
def test_an_environment_that_gymnasium_dropped_is_told(vecenv: str) -> None:
    with pytest.raises(UserError, match=r"(?s)Pendulum-v1.*give task="):
        make(num_envs=2, seed=0, device="cpu", env_name="Pendulum-v0", env_config={}, vecenv=vecenv)
