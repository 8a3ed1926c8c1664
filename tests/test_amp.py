"""AMP's equations 6 and 7 by hand, what its discriminator sees, and tasks that give `amp_obs` themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from algos.amp import AMPDiscriminator, AMPOptions, AMPPlayer
from core import registry
from core.errors import UserError
from core.policy import Policy
from tests.agents import our_agent
from tests.test_discriminator import judge, toy_agent
from tests.toys import ToyVecEnv, toy_params


def test_equation_6_by_hand():
    disc = judge(AMPDiscriminator, AMPOptions())
    # demonstrated: ((0 - 1)^2 + (3 - 1)^2) / 2 = 2.5; the policy's: ((-1 + 1)^2 + (1 + 1)^2) / 2 = 2
    assert disc.loss(torch.tensor([-1.0, 1.0]), torch.tensor([0.0, 3.0])).item() == 4.5
    assert disc.loss(torch.tensor([-1.0]), torch.tensor([1.0])).item() == 0.0


def test_equation_7_by_hand():
    disc = judge(AMPDiscriminator, AMPOptions())
    # 1 - 0.25 (d - 1)^2: 1 at 1, 0.75 at 0, 0 at -1 and 3, and never below
    assert disc.reward(torch.tensor([1.0, 0.0, 2.0, -1.0, 3.0, -5.0])).tolist() == [1.0, 0.75, 0.75, 0.0, 0.0, 0.0]


def test_it_sees_chosen_features_of_both_states_and_no_action():
    obs, following = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[4.0, 5.0, 6.0]])
    assert judge(AMPDiscriminator, AMPOptions()).inputs(obs, None, following).tolist() == [[1, 2, 3, 4, 5, 6]]
    some = judge(AMPDiscriminator, AMPOptions(amp_features=[2, 0]))
    assert some.inputs(obs, None, following).tolist() == [[3, 1, 6, 4]]
    assert some.stats.running_mean.shape == (4,)


@pytest.mark.parametrize("reset_mode", ["same_step", "next_step"])
def test_the_second_state_of_a_last_step_is_the_old_episodes(reset_mode, tmp_path):
    agent = toy_agent("amp", tmp_path, reset_mode, max_epochs=1)
    agent.train()
    rollout = agent.rollout
    ended = rollout.dones_after.bool()[:-1]
    following, shown = agent.judged(rollout)[..., 3:][:-1], rollout.obs[1:]
    assert ended.any()
    assert torch.equal(following[~ended], shown[~ended])
    # same-step: the rollout shows the next episode's first; next-step: the old one's last, in the row that only resets
    assert torch.equal(following[ended], shown[ended]) is (reset_mode == "next_step")


@pytest.mark.parametrize("given", [[], [1, 1], [-1]])
def test_bad_features_are_named(given):
    with pytest.raises(ValueError, match="amp_features is"):
        AMPOptions(amp_features=given)


def test_features_beyond_the_observation_are_named():
    with pytest.raises(UserError, match=r"amp_features has 3, but the task's observations have 3 numbers"):
        judge(AMPDiscriminator, AMPOptions(amp_features=[0, 3]))


# ---- tasks that give amp_obs ------------------------------------------------------------------------------------------------


class Motion(ToyVecEnv):
    """As IsaacGymEnvs' AMP tasks: describes each transition by four numbers of its own, whatever the policy sees."""

    def get_env_info(self) -> dict[str, Any]:
        return {**super().get_env_info(), "amp_observation_space": spaces.Box(-np.inf, np.inf, (4,), np.float32)}

    def step(self, actions: Any) -> Any:
        obs, rewards, dones, infos = super().step(actions)
        self.told = self.rng.randn(self.rows, 4).astype(np.float32)
        return obs, rewards, dones, {**infos, "amp_obs": self.told}


def motion_agent(tmp_path: Any, **config: Any) -> Any:
    np.savez(tmp_path / "motion.npz", amp_obs=np.random.RandomState(0).randn(50, 4).astype(np.float32) + 2.0)
    params = toy_params(**{"max_epochs": 2, "demos": f"{tmp_path}/motion.npz", "disc_steps": 2, "disc_batch_size": 8, **config})
    return our_agent(params, Motion(), tmp_path, "amp")


def test_a_task_may_describe_its_transitions_itself(tmp_path):
    agent = motion_agent(tmp_path)
    assert agent.fast.step_reason == "'on_step' is overridden"  # infos are read at every step, on such a task only
    agent.train()
    assert agent.judged(agent.rollout).shape == (16, 8, 4)
    assert np.array_equal(agent.rollout.amp_obs[-1].numpy(), agent.vec_env.told)
    assert agent.demos.shape == (50, 4)
    assert "next_obs" not in agent.rollout.fields


def test_its_player_reads_them_too(tmp_path):
    agent = motion_agent(tmp_path)
    agent.train()
    env = Motion(num_envs=2)
    params = {**toy_params(), "config": agent.config}
    policy = Policy(params, env.get_env_info(), 2, "cpu")
    policy.model.load_state_dict(agent.model.state_dict())
    player = AMPPlayer(policy, env, games_num=2, deterministic=True, seed=0)
    player.restore_extras({"disc": agent.disc.state_dict()})
    told = []
    env_step, env.seed = env.step, lambda seed: None
    env.step = lambda actions: told.append(None) or env_step(actions)
    result = player.run()
    assert sum(len(scores) for scores in player.scores) == 2 * len(told)
    assert 0.0 <= result["imitation_reward_mean"] <= 1.0
    last = torch.as_tensor(env.told)
    with torch.no_grad():
        assert torch.equal(player.scores[-1], agent.disc.eval()(last))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"amp_obs": np.zeros((5, 3), np.float32)}, r"'amp_obs' has shape \(5, 3\), but the task's has 4 numbers"),
        ({"amp_obs": np.zeros((0, 4), np.float32)}, r"'amp_obs' has shape \(0, 4\)"),
        ({"obs": np.zeros((5, 4), np.float32)}, "an array of that name is needed"),
        (None, "an array of that name is needed"),
    ],
)
def test_demonstrations_without_fitting_amp_obs_are_refused(content, told, tmp_path):
    if content is not None:
        np.savez(tmp_path / "other.npz", **content)
    env = Motion()
    policy = Policy(toy_params(), env.get_env_info(), 8, "cpu")
    entry = registry.algos.get("amp")
    with pytest.raises(UserError, match=told):
        entry.cls.check_run(AMPOptions(demos=f"{tmp_path}/other.npz"), policy, env)
