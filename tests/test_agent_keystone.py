"""The keystone: with the options at rl_games' values, the default hooks are rl_games 1.6.5, bit by bit."""

from __future__ import annotations

import pytest
import torch

from tests.agents import assert_equal_weights, our_agent, stock_agent, train_stock, weights
from tests.toys import ToyVecEnv, toy_params

CASES = {
    "continuous": ({}, {}),
    "discrete": ({"action": "discrete"}, {}),
    "multi_discrete": ({"action": "multi_discrete"}, {}),
    "lstm": ({"rnn": "lstm"}, {}),
    "lstm_discrete": ({"action": "discrete", "rnn": "lstm"}, {}),
    "gru": ({"rnn": "gru"}, {}),
    "central_value": ({"central": True}, {"states": True}),
    "central_value_discrete": ({"action": "discrete", "central": True}, {"states": True}),
    "agents": ({}, {"agents": 2, "num_envs": 4}),
    "agents_central_value": ({"central": True}, {"agents": 2, "num_envs": 4, "states": True}),
    "two_values": ({}, {"value_size": 2}),
    "standard_schedule": ({"schedule_type": "standard", "use_smooth_clamp": True, "normalize_value": False}, {}),
    "linear_schedule": ({"lr_schedule": "linear", "schedule_entropy": True, "max_epochs": 5}, {}),
    "next_step_rows": ({}, {"reset_mode": "next_step"}),
    "no_normalizers": ({"normalize_input": False, "normalize_value": False, "clip_value": False, "truncate_grads": False}, {}),
    "regularisation": ({"bound_loss_type": "regularisation", "normalize_advantage": False, "weight_decay": 0.01}, {}),
    "action_masks": ({"action": "discrete", "use_action_masks": True}, {"masks": True}),
}


@pytest.mark.parametrize("case", CASES)
def test_weights_equal_stock_after_three_epochs(case, tmp_path):
    settings, env_settings = CASES[case]
    num_envs = env_settings.get("num_envs", 8)
    action = settings.get("action", "continuous")
    params = toy_params(**{"num_envs": num_envs, **settings})
    env_settings = {"num_envs": num_envs, "action": action, **env_settings}
    theirs = train_stock(stock_agent(params, ToyVecEnv(**env_settings), tmp_path))
    params["config"]["compat"] = "rl_games"
    ours = our_agent(params, ToyVecEnv(**env_settings), tmp_path / "ours")
    initial = {name: tensor.clone() for name, tensor in weights(ours).items()}
    ours.train()
    assert_equal_weights(ours, theirs)
    assert any(not torch.equal(initial[name], tensor) for name, tensor in weights(ours).items()), "nothing was trained"
