"""That what runs also learns: problems solved in seconds by every way through the agent, and the long ones on request."""

from __future__ import annotations

import numpy as np
import pytest
from gymnasium import spaces

from core.vecenv import VecEnv
from tests.agents import our_agent
from tests.command import command
from tests.toys import toy_params


class Mirror(VecEnv):
    """Say what you see. Reward 1 for the right answer (0 for a random one on average), one step or, with `delay`, one step later:
    then the answer must be remembered."""

    def __init__(self, action, reset_mode="same_step", delay=0, num_envs=16):
        self.num_envs, self.reset_mode, self.delay, self.action = num_envs, reset_mode, delay, action
        self.rng = np.random.RandomState(0)
        self.observation_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.action_space = {
            "continuous": spaces.Box(-1.0, 1.0, (2,), np.float32),
            "discrete": spaces.Discrete(2),
            "multi_discrete": spaces.Tuple([spaces.Discrete(2), spaces.Discrete(2)]),
        }[action]
        self.waiting = np.zeros(num_envs, bool)

    def reset(self):
        self.age = np.zeros(self.num_envs, int)
        return self._draw()

    def step(self, actions):
        actions = np.asarray(actions).reshape(self.num_envs, -1)
        right = (self.seen > 0).astype(int)
        if self.action == "continuous":
            rewards = 1.0 - np.abs(actions - self.seen).mean(axis=1) * 1.5
        elif self.action == "discrete":
            rewards = 2.0 * (actions[:, 0] == right[:, 0]) - 1.0
        else:
            rewards = 2.0 * (actions == right).mean(axis=1) - 1.0
        done = self.age >= self.delay
        rewards = np.where(done & ~self.waiting, rewards, 0.0).astype(np.float32)
        done &= ~self.waiting
        self.age += 1
        infos = {"time_outs": np.zeros(self.num_envs, bool)}
        old, was_waiting = self.seen.copy(), self.waiting.copy()
        fresh = self._draw()
        if self.reset_mode == "same_step":
            self.age[done] = 0
            shown = np.where(done[:, None], fresh, 0.0)
            self.seen = np.where(done[:, None], fresh, old)
        else:
            self.waiting = done.copy()
            self.age[was_waiting] = 0
            self.seen = np.where(was_waiting[:, None], fresh, old)
            shown = np.where(was_waiting[:, None], fresh, 0.0)
        return shown.astype(np.float32), rewards, done, infos

    def _draw(self):
        self.seen = self.rng.uniform(-1.0, 1.0, (self.num_envs, 2)).astype(np.float32)
        return self.seen


@pytest.mark.parametrize("reset_mode", ["same_step", "next_step"])
@pytest.mark.parametrize(
    ("algo", "action", "rnn"),
    [
        ("ppo", "continuous", None),
        ("rpo", "continuous", None),
        ("ppo", "discrete", None),
        ("ppo", "multi_discrete", None),
        ("ppo", "discrete", "gru"),
    ],
)
def test_learns_to_say_what_it_sees(algo, action, rnn, reset_mode, tmp_path):
    """With memory, what it saw one step ago: without memory the best mean reward would be 0."""
    params = toy_params(
        action, num_envs=16, rnn=rnn, learning_rate=5e-3, max_epochs=30, mini_epochs=4 if rnn else 2, minibatch_size=64, entropy_coef=0.0,
        gamma=0.9, reward_shaper={}, games_to_track=200,
    )  # fmt: skip
    agent = our_agent(params, Mirror(action, reset_mode, delay=1 if rnn else 0), tmp_path, algo)
    assert agent.train()["return_mean"] > (0.4 if algo == "rpo" else 0.6)  # RPO keeps exploring: that is what it is for


@pytest.mark.long
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_ppo_solves_cartpole_within_300k_frames(seed, tmp_path):
    result = command("task=CartPole", "train=PPO", f"seed={seed}", "max_frames=300_000", f"run_dir={tmp_path}/run")
    assert result["frames"] <= 301_024
    played = command("test=True", f"checkpoint={tmp_path}/run/nn/last.pth", "player.games_num=100")
    assert played["return"]["mean"] >= 475


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_ppo_learns_halfcheetah_in_a_million_frames(tmp_path):
    command("task=HalfCheetah", "train=PPO", "seed=1", "max_frames=1_000_000", f"run_dir={tmp_path}/run")
    played = command("test=True", f"checkpoint={tmp_path}/run/nn/last.pth", "player.games_num=20")
    assert played["return"]["mean"] >= 2000


@pytest.mark.long
def test_attention_learns_cartpole(tmp_path):
    result = command(
        "task=TorchCartPole", "num_envs=32", "train.params.network.name=attention", "max_frames=150_000", f"run_dir={tmp_path}/run"
    )
    assert result["return_best"] >= 300
