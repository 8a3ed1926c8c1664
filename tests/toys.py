"""Small vectorised environments and configs whose behaviour is known; shared by the tests of agents."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from gymnasium import spaces

from core.vecenv import VecEnv

LENGTH = 7  # steps of an episode at most


class ToyVecEnv(VecEnv):
    """Rows drift with their action; an episode ends for real with probability 0.1 and by time-out after LENGTH steps.

    Everything is drawn from one generator, so that two copies given the same actions do the same.
    """

    def __init__(
        self, num_envs: int = 8, action: str = "continuous", reset_mode: str = "same_step", seed: int = 0, states: bool = False,
        dict_obs: bool = False, agents: int = 1, masks: bool = False, value_size: int = 1, end: float = 0.1,
    ) -> None:  # fmt: skip
        self.num_envs, self.num_agents, self.value_size = num_envs, agents, value_size
        self.rows = num_envs * agents
        self.reset_mode = reset_mode
        self.rng = np.random.RandomState(seed)
        self.end = end
        self.dict_obs, self.states, self.masks = dict_obs, states, masks
        box = spaces.Box(-10.0, 10.0, (3,), np.float32)
        self.observation_space = spaces.Dict({"a": box, "b": spaces.Box(-1.0, 1.0, (2,), np.float32)}) if dict_obs else box
        self.state_space = spaces.Box(-10.0, 10.0, (5,), np.float32) if states else None
        self.action_space = {
            "continuous": spaces.Box(-2.0, 2.0, (2,), np.float32),
            "discrete": spaces.Discrete(3),
            "multi_discrete": spaces.Tuple([spaces.Discrete(2), spaces.Discrete(3)]),
        }[action]
        self.action = action
        self.steps = np.zeros(num_envs, np.int64)
        self.pending = np.zeros(num_envs, bool)
        self.position = np.zeros((self.rows, 3), np.float32)

    def reset(self) -> Any:
        self.position = self.rng.randn(self.rows, 3).astype(np.float32)
        self.steps[:] = 0
        self.pending[:] = False
        return self._obs(self.position)

    def step(self, actions: Any) -> Any:
        actions = np.asarray(actions, np.float32).reshape(self.rows, -1)
        push = actions.sum(axis=1, keepdims=True)
        noise = self.rng.randn(self.rows, 3).astype(np.float32)
        ends = self.rng.rand(self.num_envs) < self.end
        fresh = self.rng.randn(self.rows, 3).astype(np.float32)
        position = 0.9 * self.position + 0.1 * push + 0.1 * noise
        self.steps += 1
        outs = (self.steps >= LENGTH) & ~ends
        resetting = np.repeat(self.pending, self.num_agents)
        if self.reset_mode == "next_step":
            position[resetting] = fresh[resetting]
            self.steps[self.pending] = 0
            ends, outs = ends & ~self.pending, outs & ~self.pending
        dones = ends | outs
        rewards = (-np.abs(position[:, 0]) + push[:, 0] * 0.1).astype(np.float32)
        rewards[resetting] = 0.0
        infos: dict[str, Any] = {"time_outs": np.repeat(outs, self.num_agents)}
        rows = np.repeat(dones, self.num_agents)
        if self.reset_mode == "same_step":
            infos["terminal_obs"] = self._obs(position.copy())
            position[rows] = fresh[rows]
            self.steps[dones] = 0
        else:
            self.pending = dones.copy()
        self.position = position.astype(np.float32)
        if self.value_size > 1:
            rewards = np.stack([rewards * (i + 1) for i in range(self.value_size)], axis=1)
        return self._obs(self.position), rewards, rows, infos

    def _obs(self, position: np.ndarray) -> Any:
        obs: Any = position.copy()
        if self.dict_obs:
            obs = {"a": position.copy(), "b": np.tanh(position[:, :2])}
        if self.states:
            states = np.concatenate([position, np.tanh(position[:, :2])], axis=1)[:: self.num_agents]
            return {"obs": obs, "states": states.astype(np.float32)}
        return obs

    def has_action_masks(self) -> bool:
        return self.masks

    def get_action_masks(self) -> np.ndarray:
        """The first choice of every head is forbidden."""
        sizes = {"discrete": [3], "multi_discrete": [2, 3]}[self.action]
        row = np.concatenate([[False] + [True] * (n - 1) for n in sizes])
        return np.tile(row, (self.rows, 1))


def toy_params(
    action: str = "continuous", num_envs: int = 8, rnn: str | None = None, central: bool = False, **config: Any
) -> dict[str, Any]:
    """rl_games' `params` for a ToyVecEnv, complete enough for the stock agent."""
    space: dict[str, Any] = {action: {}}
    if action == "continuous":
        space = {
            "continuous": {
                "mu_activation": "None",
                "sigma_activation": "None",
                "mu_init": {"name": "default"},
                "sigma_init": {"name": "const_initializer", "val": 0},
                "fixed_sigma": True,
            }
        }
    network: dict[str, Any] = {
        "name": "actor_critic",
        "separate": False,
        "space": space,
        "mlp": {"units": [16, 8], "activation": "elu", "initializer": {"name": "default"}},
    }
    if rnn:
        network["rnn"] = {"name": rnn, "units": 8, "layers": 1, "before_mlp": False}
    models = {"continuous": "continuous_a2c_logstd", "discrete": "discrete_a2c", "multi_discrete": "multi_discrete_a2c"}
    settings: dict[str, Any] = {
        "name": "toy",
        "env_name": "toy",
        "device": "cpu",
        "device_name": "cpu",
        "reward_shaper": {"scale_value": 0.5},
        "normalize_input": True,
        "normalize_value": True,
        "normalize_advantage": True,
        "value_bootstrap": True,
        "gamma": 0.99,
        "tau": 0.95,
        "learning_rate": 1e-3,
        "lr_schedule": "adaptive",
        "kl_threshold": 0.008,
        "grad_norm": 1.0,
        "truncate_grads": True,
        "entropy_coef": 0.01,
        "e_clip": 0.2,
        "clip_value": True,
        "num_actors": num_envs,
        "horizon_length": 16,
        "minibatch_size": 32,
        "mini_epochs": 3,
        "critic_coef": 2,
        "bounds_loss_coef": 0.001,
        "seq_length": 4,
        "max_epochs": 3,
        "save_best_after": 1000,
        "print_stats": False,
        "torch_compile": False,
    }
    if central:
        settings["central_value_config"] = {
            "minibatch_size": 32,
            "mini_epochs": 2,
            "learning_rate": 1e-3,
            "clip_value": True,
            "normalize_input": True,
            "truncate_grads": True,
            "grad_norm": 1.0,
            "network": {
                "name": "actor_critic",
                "central_value": True,
                "mlp": {"units": [16], "activation": "elu", "initializer": {"name": "default"}},
            },
        }
    settings.update(config)
    algo = "a2c_continuous" if action == "continuous" else "a2c_discrete"
    return copy.deepcopy({"seed": 7, "algo": {"name": algo}, "model": {"name": models[action]}, "network": network, "config": settings})
