"""What an environment declares against what it gives: the first observation, and bounds of actions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from core import first_obs
from core.errors import UserError
from core.vecenv import VecEnv
from tests.agents import our_agent
from tests.command import command
from tests.toys import ToyVecEnv, toy_params


class Given(VecEnv):
    """Returns what it was made with."""

    def __init__(self, obs: Any, space: spaces.Space, num_envs: int = 2, agents: int = 1, state_space: spaces.Space | None = None) -> None:
        self.obs, self.observation_space, self.num_envs, self.num_agents, self.state_space = obs, space, num_envs, agents, state_space

    def reset(self) -> Any:
        return self.obs


BOX = spaces.Box(np.array([-1.0, -np.inf]), np.array([1.0, np.inf]), dtype=np.float32)
PICTURE = spaces.Box(0, 1, (2, 2), np.float32)


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (Given(np.array([[0.0, 9.0], [1.5, 0.0]]), BOX), r"observation is outside its space: 1\.5 at \[0\] of environment 1, declared is -1 to 1"),
        (Given(torch.tensor([[-3.0, 9.0], [1.0, 0.0]]), BOX), r"-3 at \[0\] of environment 0"),
        (Given(np.zeros((2, 3)), BOX), r"has the shape \(2, 3\), and its space .* asks for \(2, 2\)"),
        (Given(np.zeros((2, 2)), BOX, num_envs=1, agents=2, state_space=None), None),
        (Given(np.array([[0, 0], [0, 0], [0, 0], [2.0, 0]]), BOX, agents=2), "environment 1"),
        (Given({"image": np.full((2, 2, 2), 2.0)}, spaces.Dict({"image": PICTURE})), r"observation's part 'image' is outside .* 2 at \[0, 0\]"),
        (Given({"picture": np.zeros((2, 2, 2))}, spaces.Dict({"image": PICTURE})), "no part 'image', which its space declares; there is: picture"),
        (Given({"obs": np.zeros((2, 2)), "states": np.full((2, 2), 7.0)}, BOX, state_space=BOX), r"first state is outside its space: 7 at \[0\]"),
        (Given({"obs": np.zeros((2, 2)), "states": np.zeros((2, 2))}, BOX, state_space=BOX), None),
        (Given(np.full((2, 2), 1.00005), BOX), None),  # a bound in float32
        (Given(np.full((2, 2), np.nan), BOX), None),  # named by the check of every step
    ],
)  # fmt: skip
def test_the_first_observation(env: Given, message: str | None) -> None:
    if message is None:
        assert first_obs.reset(env) is env.obs
        return
    with pytest.raises(UserError, match=message):
        first_obs.reset(env)
    env.checks_obs = False
    assert first_obs.reset(env) is env.obs


class Sloppy(gymnasium.Env):
    """Declares [0, 1] and starts at 5."""

    observation_space = spaces.Box(0.0, 1.0, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        return np.array([5.0], np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        return np.array([5.0], np.float32), 1.0, False, False, {}


@pytest.mark.filterwarnings("ignore:.*WARN.*:UserWarning")  # gymnasium's checker says the same, once, among other lines
def test_training_stops_at_it_and_goes_on_where_it_is_allowed(tmp_path: Path) -> None:
    gymnasium.registry.pop("Sloppy-v0", None)
    gymnasium.register("Sloppy-v0", entry_point=Sloppy, max_episode_steps=5)
    words = ["task=gymnasium", "task.id=Sloppy-v0", "num_envs=2", "max_epochs=1", "train.params.config.horizon_length=16"]
    with pytest.raises(UserError, match=r"task\.check_obs=false"):
        command(*words, f"run_dir={tmp_path / 'a'}")
    assert command(*words, "task.check_obs=false", f"run_dir={tmp_path / 'b'}")["epochs"] == 1


def test_actions_without_finite_bounds_are_refused_unless_they_are_handed_over_as_they_are(tmp_path: Path) -> None:
    env = ToyVecEnv()
    env.action_space = spaces.Box(np.array([-2.0, -np.inf]), np.array([2.0, np.inf]), dtype=np.float32)
    with pytest.raises(UserError, match=r"action 1 has the bounds -inf to inf.*clip_actions=false"):
        our_agent(toy_params(max_epochs=1), env, tmp_path)
    agent = our_agent(toy_params(max_epochs=1, clip_actions=False), env, tmp_path)
    assert agent.train()["epochs"] == 1
