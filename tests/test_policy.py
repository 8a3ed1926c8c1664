"""What agent and player share: networks fitted to spaces, observations, actions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces

from core.errors import UserError
from core.policy import Policy, fit_to_spaces
from tests.agents import our_agent
from tests.toys import ToyVecEnv, toy_params


def policy(observation, action=None, **network):
    params = toy_params()
    params["network"].update(network)
    action = action or spaces.Box(-2.0, 2.0, (2,), np.float32)
    return Policy(params, {"observation_space": observation, "action_space": action}, 3, "cpu")


@pytest.mark.parametrize(("shape", "permuted"), [((4, 84, 84), False), ((84, 84, 4), True)])
def test_cnn_auto_reads_pictures_whichever_way_round(shape, permuted):
    p = policy(spaces.Box(0, 255, shape, np.uint8), cnn="auto")
    convolutions = [m for m in p.model.modules() if isinstance(m, torch.nn.Conv2d)]
    assert [c.out_channels for c in convolutions] == [32, 64, 64]
    assert convolutions[0].in_channels == 4
    obs = torch.randint(0, 256, (3, *shape), dtype=torch.uint8)
    assert p.act(obs)["actions"].shape == (3, 2)
    assert p.preprocess(obs).max() <= 1.0


def test_cnn_auto_is_nothing_for_flat_observations():
    assert (
        "cnn"
        not in fit_to_spaces({"network": {"name": "actor_critic", "cnn": "auto", "space": {"discrete": {}}}}, "discrete", (4,))["network"]
    )


def test_a_network_for_other_observations_is_told():
    with pytest.raises(UserError, match=r"flat observations, but the task's have shape \(4, 84, 84\)"):
        policy(spaces.Box(0, 255, (4, 84, 84), np.uint8))
    with pytest.raises(UserError, match="a Dict of a, b"):
        policy(spaces.Dict({"a": spaces.Box(0, 1, (2,)), "b": spaces.Box(0, 1, (3,))}))
    layer = {"filters": 8, "kernel_size": 40, "strides": 4, "padding": 0}
    cnn = {"type": "conv2d", "activation": "relu", "initializer": {"name": "default"}, "permute_input": False, "convs": [layer]}
    with pytest.raises(UserError, match=r"cannot be built for observations of shape \(4, 20, 20\)"):
        policy(spaces.Box(0, 255, (4, 20, 20), np.uint8), cnn=cnn)


def test_actions_are_clipped_and_stretched():
    p = policy(spaces.Box(-1, 1, (3,)), spaces.Box(np.array([0.0, -4.0], np.float32), np.array([2.0, 4.0], np.float32)))
    assert p.env_actions(torch.tensor([[-3.0, 0.5], [1.0, -1.0]])).tolist() == [[0.0, 2.0], [2.0, -4.0]]


def test_a_single_row_keeps_its_dimension():
    for kind in ("continuous", "discrete", "multi_discrete"):
        env = ToyVecEnv(num_envs=1, action=kind)
        p = Policy(toy_params(kind, num_envs=1), env.get_env_info(), 1, "cpu")
        result = p.act(torch.zeros(1, 3))
        assert result["neglogpacs"].shape == (1,)
        assert result["actions"].shape == {"continuous": (1, 2), "discrete": (1,), "multi_discrete": (1, 2)}[kind]
        assert p.best_actions(result).shape == result["actions"].shape


def test_extras_are_in_eval_mode_while_collecting_and_in_train_mode_while_updating(tmp_path, monkeypatch):
    from algos.agent import Agent
    from algos.options import AgentOptions
    from core import registry

    class Watching(Agent):
        def setup(self):
            self.net, self.modes = self.register("net", torch.nn.Linear(1, 1)), []

        def before_step(self, n):
            self.modes.append(self.net.training)

        def extra_update(self, batch):
            self.modes.append(self.net.training)
            return {}

    entry = registry.AlgoEntry("watching", Watching, AgentOptions, "default", None, registry.ACTION_KINDS)
    monkeypatch.setitem(registry.algos._entries, "watching", entry)
    agent = our_agent(toy_params(max_epochs=2), ToyVecEnv(), tmp_path, "watching")
    agent.train()
    assert agent.modes == ([False] * 16 + [True]) * 2


def test_diagnostics_work_with_moving_advantage_statistics(tmp_path):
    agent = our_agent(toy_params(use_diagnostics=True, normalize_rms_advantage=True), ToyVecEnv(), tmp_path)
    agent.train()
    assert {"diagnostics/exp_var", "diagnostics/clip_frac/0", "diagnostics/rms_advantage/mean"} <= set(agent.diagnostics.diag_dict)


def test_mean_over_mask(tmp_path):
    agent = our_agent(toy_params(), ToyVecEnv(), tmp_path)
    values, mask = torch.tensor([1.0, 3.0, 50.0, 50.0]), torch.tensor([1.0, 1.0, 0.0, 0.0])
    assert agent.mean(values, mask).item() == 2.0
    agent.options.mean_over_mask = False
    assert agent.mean(values, mask).item() == 1.0  # rl_games: divided by all four
