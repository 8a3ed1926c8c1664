"""What Isaac Lab, ManiSkill and IsaacGymEnvs look like from outside, as their sources have it: the adapters are tested on these.

In all of them a row counts: x grows by the action, the reward is x, and an episode terminates at x >= 3 and is cut off after `limit` steps.
Like the real ones they write into the same tensors in every step.
"""

from __future__ import annotations

import types
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces


class Counting:
    """The world that all of them simulate: x (N,), steps (N,), and k (N,), the number of the running episode."""

    def __init__(self, num_envs: int, limit: int) -> None:
        self.limit = limit
        self.x, self.k = torch.zeros(num_envs), torch.full((num_envs,), -1.0)
        self.steps = torch.zeros(num_envs, dtype=torch.long)

    def begin(self, rows: torch.Tensor) -> None:
        self.x[rows], self.steps[rows] = 0.0, 0
        self.k[rows] += 1

    def advance(self, actions: torch.Tensor) -> None:
        self.x += actions[:, 0]
        self.steps += 1

    @property
    def obs(self) -> torch.Tensor:
        return torch.stack([self.x, self.k], dim=1)


# ---- Isaac Lab ---------------------------------------------------------------------------------------------------------


class LabEnv(gymnasium.Env):
    """isaaclab.envs.ManagerBasedRLEnv: groups of observations, five values per step, a reset within the step."""

    metadata = {"render_modes": [None, "rgb_array"]}  # noqa: RUF012

    def __init__(self, cfg: Any, render_mode: str | None = None, **kwargs: Any) -> None:
        self.cfg, self.render_mode, self.device = cfg, render_mode, cfg.sim.device
        self.num_envs = cfg.scene.num_envs
        self.world = Counting(self.num_envs, cfg.limit)
        self.single_observation_space = spaces.Dict(policy=spaces.Box(-np.inf, np.inf, (2,)), critic=spaces.Box(-np.inf, np.inf, (3,)))
        self.single_action_space = spaces.Box(-np.inf, np.inf, (1,))
        self.obs_buf = {"policy": torch.zeros(self.num_envs, 2), "critic": torch.zeros(self.num_envs, 3)}
        self.reward_buf = torch.zeros(self.num_envs)
        self.seeds: list[Any] = []
        self.closed = 0
        self._prepare()

    def _prepare(self) -> None:
        self.observation_manager = types.SimpleNamespace(compute=self._look)

    def _look(self, update_history: bool = False) -> dict[str, torch.Tensor]:
        self.obs_buf["policy"].copy_(self.world.obs)
        self.obs_buf["critic"].copy_(torch.cat([self.world.obs, self.world.steps[:, None]], dim=1))
        return self.obs_buf

    def _reset_idx(self, env_ids: torch.Tensor) -> None:
        self.world.begin(env_ids)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self.seeds.append(seed)
        self._reset_idx(torch.arange(self.num_envs))
        return self._observations(), {}

    def _observations(self) -> dict[str, torch.Tensor]:
        return self.observation_manager.compute(update_history=True)

    def step(self, action: torch.Tensor) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        self.world.advance(action)
        terminated, time_outs = self.world.x >= 3, self.world.steps >= self.world.limit
        self.reward_buf.copy_(self.world.x)
        ended = (terminated | time_outs).nonzero().squeeze(-1)
        if len(ended) > 0:
            self._reset_idx(ended)
        return self._observations(), self.reward_buf, terminated, time_outs, {"log": {}}

    def render(self) -> np.ndarray:
        return np.zeros((4, 4, 3), np.uint8)

    def close(self) -> None:
        self.closed += 1


class DirectLabEnv(LabEnv):
    """isaaclab.envs.DirectRLEnv: no observation manager."""

    def _prepare(self) -> None:
        pass

    def _get_observations(self) -> dict[str, torch.Tensor]:
        return self._look()

    def _observations(self) -> dict[str, torch.Tensor]:
        return self._get_observations()


def parse_env_cfg(task_name: str, device: str = "cuda:0", num_envs: int | None = None) -> Any:
    """isaaclab_tasks.utils.parse_env_cfg"""
    cfg = types.SimpleNamespace(limit=4, seed=None, is_finite_horizon=task_name.startswith("Isaac-Finite"))
    cfg.sim, cfg.scene = types.SimpleNamespace(device=device), types.SimpleNamespace(num_envs=num_envs)
    return cfg


# ---- ManiSkill ---------------------------------------------------------------------------------------------------------


class SkillEnv(gymnasium.Env):
    """mani_skill.envs.sapien_env.BaseEnv: a batch behind gymnasium.make, partial resets by env_idx, no reset of its own."""

    def __init__(self, num_envs: int = 1, obs_mode: str = "state", sim_backend: str = "auto", **kwargs: Any) -> None:
        if sim_backend == "physx_cpu" and num_envs > 8:
            raise RuntimeError("too many for the CPU")
        if kwargs:
            raise TypeError(f"unexpected keyword {sorted(kwargs)}")
        self.num_envs, self.obs_mode, self.device = num_envs, obs_mode, torch.device("cpu")
        self.world = Counting(num_envs, 4)
        self.single_observation_space = spaces.Box(-np.inf, np.inf, (2,))
        self.single_action_space = spaces.Box(-1.0, 1.0, (1,))
        self.seeds: list[Any] = []

    def _obs(self) -> Any:
        if self.obs_mode == "state":
            return self.world.obs
        picture = torch.full((self.num_envs, 4, 4, 3), 7, dtype=torch.uint8)
        return {"agent": {"qpos": self.world.obs}, "sensor_data": picture}

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self.seeds.append(seed)
        self.world.begin((options or {}).get("env_idx", torch.arange(self.num_envs)))
        return self._obs(), {}

    def step(self, actions: torch.Tensor) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        self.world.advance(actions)
        success = self.world.x >= 3
        return self._obs(), self.world.x.clone(), success.clone(), self.world.steps >= 4, {"success": success}

    def render(self) -> torch.Tensor:
        return torch.full((self.num_envs, 4, 4, 3), 9, dtype=torch.uint8)


class ManiSkillVectorEnv:
    """mani_skill.vector.wrappers.gymnasium.ManiSkillVectorEnv"""

    def __init__(self, env: Any, auto_reset: bool = True, ignore_terminations: bool = False) -> None:
        assert auto_reset
        self._env, self.ignore_terminations = env, ignore_terminations
        self.num_envs = env.unwrapped.num_envs
        self.single_action_space = env.unwrapped.single_action_space
        self.closed = 0

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        return self._env.reset(seed=seed, options=options)

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        obs, rewards, terminated, truncated, infos = self._env.step(actions)
        if self.ignore_terminations:
            terminated[:] = False
        dones = terminated | truncated
        if dones.any():
            final, final_info = _clones(obs), _clones(infos)
            obs, infos = self.reset(options={"env_idx": torch.arange(self.num_envs)[dones]})
            infos.update(final_observation=final, final_info=final_info, _final_observation=dones)
        return obs, rewards, terminated, truncated, infos

    def render(self) -> Any:
        return self._env.unwrapped.render()

    def close(self) -> None:
        self.closed += 1


def _clones(value: Any) -> Any:
    return {key: _clones(part) for key, part in value.items()} if isinstance(value, dict) else value.clone()


# ---- IsaacGymEnvs ------------------------------------------------------------------------------------------------------


class GymTask:
    """isaacgymenvs.tasks.base.vec_task.VecTask, whose tasks reset in the step after the one that ended an episode."""

    def __init__(self, num_envs: int, rl_device: str, num_states: int, limit: int) -> None:
        self.num_envs, self.rl_device, self.num_states, self.max_episode_length = num_envs, rl_device, num_states, limit
        self.world = Counting(num_envs, limit)
        self.action_space = spaces.Box(-1.0, 1.0, (1,))
        self.obs_buf, self.rew_buf = torch.zeros(num_envs, 2), torch.zeros(num_envs)
        self.reset_buf = torch.ones(num_envs, dtype=torch.long)
        self.obs_dict: dict[str, torch.Tensor] = {}
        self.extras: dict[str, Any] = {}
        self.frames = 0

    def zero_actions(self) -> torch.Tensor:
        return torch.zeros(self.num_envs, 1)

    def _told(self) -> dict[str, torch.Tensor]:
        self.obs_dict["obs"] = self.obs_buf
        if self.num_states > 0:
            self.obs_dict["states"] = torch.cat([self.obs_buf, self.world.steps[:, None]], dim=1)
        return self.obs_dict

    def reset(self) -> dict[str, torch.Tensor]:
        return self._told()

    def step(self, actions: torch.Tensor) -> tuple[Any, Any, Any, dict[str, Any]]:
        self.world.advance(actions)
        rows = self.reset_buf.nonzero().flatten()
        if len(rows) > 0:
            self.world.begin(rows)
            self.reset_buf[rows] = 0
        self.obs_buf.copy_(self.world.obs)
        self.rew_buf.copy_(self.world.x + 0.5)
        late = self.world.steps >= self.max_episode_length - 1
        self.reset_buf.copy_((late | (self.world.x >= 3)).long())
        self.extras["time_outs"] = late & (self.reset_buf != 0)
        return self._told(), self.rew_buf, self.reset_buf, self.extras

    def set_train_info(self, env_frames: int, *args: Any, **kwargs: Any) -> None:
        self.frames = env_frames


def make_gym_task(*, seed: int, task: str, num_envs: int, sim_device: str, rl_device: str, cfg: Any, **kwargs: Any) -> GymTask:
    """isaacgymenvs.make, which reads the task's part of the configuration only."""
    env = cfg.task.env
    assert cfg.task.name == task
    assert env.numEnvs == num_envs
    return GymTask(num_envs, rl_device, env.get("numStates", 0), env.episodeLength)
