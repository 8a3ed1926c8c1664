"""What each step led to (`keeps_next_obs`), on both rollouts and both ways to reset; functions that `setup` gives the agent are overrides."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import tests.test_fast
from algos.agent import Agent
from core.errors import UserError
from tests.test_fast import T, agent_of
from tests.toys import ToyVecEnv


class Keeping(Agent):
    def setup(self):
        self.keeps_next_obs = True

    def combine_rewards(self, rollout):
        self.seen = rollout.next_obs.clone()
        return super().combine_rewards(rollout)

    def transform_batch(self, batch):
        self.batch = batch
        return batch


class KeepingPlainly(Keeping):
    def on_step(self, transition):
        """Does nothing; that it is there plays the plain rollout."""


class GivenOnStep(Keeping):
    def setup(self):
        super().setup()
        self.calls = 0
        self.on_step = self.count

    def count(self, transition):
        self.calls += 1


class Recording(ToyVecEnv):
    """Keeps what each step truly led to: after a same-step reset the old episode's last observation."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.successors = []

    def step(self, actions):
        obs, rewards, dones, infos = super().step(actions)
        self.successors.append(np.where(dones[:, None], infos.get("terminal_obs", obs), obs))
        return obs, rewards, dones, infos


class Forgetful(ToyVecEnv):
    def step(self, actions):
        obs, rewards, dones, infos = super().step(actions)
        return obs, rewards, dones, {}


@pytest.mark.parametrize("reset_mode", ["same_step", "next_step"])
@pytest.mark.parametrize("cls", [Keeping, KeepingPlainly, GivenOnStep])
def test_the_successor_of_a_last_step_is_the_old_episodes_last_observation(cls, reset_mode, tmp_path, monkeypatch):
    monkeypatch.setattr(tests.test_fast, "ToyVecEnv", Recording)
    agent = agent_of(cls, tmp_path, monkeypatch, env={"reset_mode": reset_mode}, max_epochs=2)
    assert (agent.fast.step_reason is None) is (cls is Keeping)
    agent.train()
    truth = torch.as_tensor(np.stack(agent.vec_env.successors[-T:]))
    assert agent.rollout.dones_after.any()
    assert torch.equal(agent.seen, truth)
    kept = truth.transpose(0, 1)[agent.rollout.valid.t()]  # the batch's rows: environment by environment, reset rows left out
    assert torch.equal(agent.batch.next_obs, kept)


def test_a_function_that_setup_gives_is_a_hook(tmp_path, monkeypatch):
    agent = agent_of(GivenOnStep, tmp_path, monkeypatch, max_epochs=2)
    agent.train()
    assert agent.fast.step_reason == "'on_step' is overridden"
    assert agent.calls == 2 * T


def test_a_same_step_environment_without_last_observations_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(tests.test_fast, "ToyVecEnv", Forgetful)
    with pytest.raises(UserError, match=r"Forgetful ends episodes but has no infos\['terminal_obs'\]"):
        agent_of(Keeping, tmp_path, monkeypatch).train()
