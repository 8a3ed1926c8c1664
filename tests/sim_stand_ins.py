"""What Isaac Lab, ManiSkill and IsaacGymEnvs look like from outside, as their sources have it: the adapters are tested on these.

In all of them a row counts: x grows by the action, the reward is x, and an episode terminates at x >= 3 and is cut off after `limit` steps;
`RULES` has others. Like the real ones they write into the same tensors in every step, and draw from the generators that the real ones do.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from tests.task_envs import LENGTH


@dataclasses.dataclass
class Rules:
    """limit: steps until the cut. ends: x that terminates. pace: x grows by it, and not by the action. draws: x starts in [0, 1)."""

    limit: int = 4
    ends: float = 3.0
    pace: float | None = None
    draws: bool = False


RULES = {
    "Count": Rules(),
    "Steps": Rules(limit=LENGTH, ends=1000, pace=1.0),
    "StepsToEnd": Rules(limit=1000, ends=LENGTH, pace=1.0),
    "Drawn": Rules(limit=20, ends=1000, draws=True),
}


class Counting:
    """The world that all of them simulate: x (N,), steps (N,), and k (N,), the number of the running episode."""

    def __init__(self, num_envs: int, rules: Rules, device: Any = "cpu") -> None:
        self.rules = rules
        self.x, self.k = torch.zeros(num_envs, device=device), torch.full((num_envs,), -1.0, device=device)
        self.steps = torch.zeros(num_envs, dtype=torch.long, device=device)

    def begin(self, rows: torch.Tensor) -> None:
        self.x[rows] = torch.rand(len(rows), device=self.x.device) if self.rules.draws else 0.0
        self.steps[rows] = 0
        self.k[rows] += 1

    def advance(self, actions: torch.Tensor) -> None:
        self.x += actions[:, 0] if self.rules.pace is None else self.rules.pace
        self.steps += 1

    @property
    def ended(self) -> torch.Tensor:
        return self.x >= self.rules.ends

    @property
    def late(self) -> torch.Tensor:
        return self.steps >= self.rules.limit

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
        self.world = Counting(self.num_envs, cfg.rules, self.device)
        self.single_observation_space = spaces.Dict(policy=spaces.Box(-np.inf, np.inf, (2,)), critic=spaces.Box(-np.inf, np.inf, (3,)))
        self.single_action_space = spaces.Box(-np.inf, np.inf, (1,))
        self.obs_buf = {n: torch.zeros(self.num_envs, size, device=self.device) for n, size in (("policy", 2), ("critic", 3))}
        self.reward_buf = torch.zeros(self.num_envs, device=self.device)
        self.seeds: list[Any] = []
        self.closed = 0
        self._seed(cfg.seed)
        self._prepare()

    @staticmethod
    def _seed(seed: int | None) -> None:
        if seed is not None:
            torch.manual_seed(seed)

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
        self._seed(seed)
        self._reset_idx(torch.arange(self.num_envs, device=self.device))
        return self._observations(), {}

    def _observations(self) -> dict[str, torch.Tensor]:
        return self.observation_manager.compute(update_history=True)

    def step(self, action: torch.Tensor) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        self.world.advance(action)
        terminated, time_outs = self.world.ended, self.world.late
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
    rules = dataclasses.replace(RULES[LAB_IDS[task_name][1]])
    cfg = types.SimpleNamespace(rules=rules, seed=None, is_finite_horizon=task_name.startswith("Isaac-Finite"))
    cfg.sim, cfg.scene = types.SimpleNamespace(device=device), types.SimpleNamespace(num_envs=num_envs)
    return cfg


# ---- ManiSkill ---------------------------------------------------------------------------------------------------------


class SkillEnv(gymnasium.Env):
    """mani_skill.envs.sapien_env.BaseEnv: a batch behind gymnasium.make, partial resets by env_idx, no reset of its own."""

    def __init__(self, num_envs: int = 1, obs_mode: str = "state", sim_backend: str = "auto", rules: str = "Count", **kwargs: Any) -> None:
        if sim_backend == "physx_cpu" and num_envs > 8:
            raise RuntimeError("too many for the CPU")
        if kwargs:
            raise TypeError(f"unexpected keyword {sorted(kwargs)}")
        self.num_envs, self.obs_mode = num_envs, obs_mode
        self.device = torch.device("cuda" if sim_backend == "physx_cuda" else "cpu")
        self.world = Counting(num_envs, RULES[rules], self.device)
        self.single_observation_space = spaces.Box(-np.inf, np.inf, (2,))
        self.single_action_space = spaces.Box(-1.0, 1.0, (1,))
        self.seeds: list[Any] = []

    def _obs(self) -> Any:
        if self.obs_mode == "state":
            return self.world.obs
        picture = torch.full((self.num_envs, 4, 4, 3), 7, dtype=torch.uint8, device=self.device)
        return {"agent": {"qpos": self.world.obs}, "sensor_data": picture}

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self.seeds.append(seed)
        drawn = contextlib.nullcontext() if seed is None else torch.random.fork_rng()
        with drawn:  # without a seed the global generator is drawn from
            if seed is not None:
                torch.manual_seed(seed)
            self.world.begin((options or {}).get("env_idx", torch.arange(self.num_envs, device=self.device)))
        return self._obs(), {}

    def step(self, actions: torch.Tensor) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        self.world.advance(actions)
        success = self.world.ended
        return self._obs(), self.world.x.clone(), success.clone(), self.world.late, {"success": success}

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
            obs, infos = self.reset(options={"env_idx": torch.arange(self.num_envs, device=dones.device)[dones]})
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

    def __init__(self, num_envs: int, rl_device: str, num_states: int, rules: Rules, bonus: float) -> None:
        """bonus: paid in every step, that of a reset included."""
        self.num_envs, self.rl_device, self.num_states, self.bonus = num_envs, rl_device, num_states, bonus
        self.max_episode_length = rules.limit
        self.world = Counting(num_envs, rules, rl_device)
        self.action_space = spaces.Box(-1.0, 1.0, (1,))
        self.obs_buf, self.rew_buf = torch.zeros(num_envs, 2, device=rl_device), torch.zeros(num_envs, device=rl_device)
        self.reset_buf = torch.ones(num_envs, dtype=torch.long, device=rl_device)
        self.obs_dict: dict[str, torch.Tensor] = {}
        self.extras: dict[str, Any] = {}
        self.frames = 0

    def zero_actions(self) -> torch.Tensor:
        return torch.zeros(self.num_envs, 1, device=self.rl_device)

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
        self.rew_buf.copy_(self.world.x + self.bonus)
        late = self.world.steps >= self.max_episode_length - 1
        self.reset_buf.copy_((late | self.world.ended).long())
        self.extras["time_outs"] = late & (self.reset_buf != 0)
        return self._told(), self.rew_buf, self.reset_buf, self.extras

    def set_train_info(self, env_frames: int, *args: Any, **kwargs: Any) -> None:
        self.frames = env_frames


def make_gym_task(*, seed: int, task: str, num_envs: int, sim_device: str, rl_device: str, cfg: Any, **kwargs: Any) -> GymTask:
    """isaacgymenvs.make, which reads the task's part of the configuration only."""
    env = cfg.task.env
    assert cfg.task.name == task
    assert env.numEnvs == num_envs
    rules = Rules(env.episodeLength, env.get("ends", 3.0), env.get("pace"), env.get("draws", False))
    return GymTask(num_envs, rl_device, env.get("numStates", 0), rules, env.get("bonus", 0.5))


# ---- as packages -------------------------------------------------------------------------------------------------------

LAB_IDS = {  # the class and the rules of each
    "Isaac-Count-v0": ("LabEnv", "Count"),
    "Isaac-Count-Direct-v0": ("DirectLabEnv", "Count"),
    "Isaac-Finite-v0": ("LabEnv", "Count"),
    "Isaac-Steps-v0": ("LabEnv", "Steps"),
    "Isaac-StepsToEnd-v0": ("LabEnv", "StepsToEnd"),
    "Isaac-Drawn-v0": ("LabEnv", "Drawn"),
}
SKILL_IDS = {"PickCube-v1": "Count", "Steps-v1": "Steps", "StepsToEnd-v1": "StepsToEnd", "Drawn-v1": "Drawn"}
_GYM_TASK = "name: {}\nenv: {{numEnvs: '${{...num_envs}}', {}}}\n"
# what the real packages are imported as, and what their modules do
PACKAGES = {
    "isaaclab/__init__.py": "",
    "isaaclab/app.py": "STARTED = []\nclass AppLauncher:\n    def __init__(self, **options):\n        STARTED.append(options)\n        self.app = self\n",
    "isaaclab_tasks/__init__.py": "from isaaclab.app import STARTED\nassert STARTED, 'imported before Isaac Sim runs'\n",
    "isaaclab_tasks/utils.py": "from tests.sim_stand_ins import parse_env_cfg\n",
    "mani_skill/__init__.py": "",
    "mani_skill/envs.py": "",
    "mani_skill/utils/registration.py": f"REGISTERED_ENVS = dict.fromkeys({[*SKILL_IDS, 'PushCube-v1']})\n",
    "mani_skill/vector/wrappers/gymnasium.py": "from tests.sim_stand_ins import ManiSkillVectorEnv\n",
    "isaacgym/__init__.py": "",
    "isaacgymenvs/__init__.py": "from tests.sim_stand_ins import make_gym_task as make\n",
    "isaacgymenvs/cfg/config.yaml": (
        "num_envs: ''\nseed: 42\nsim_device: 'cuda:0'\nrl_device: 'cuda:0'\npipeline: gpu\ndefaults:\n  - task: Ant\n  - _self_\n"
    ),
    "isaacgymenvs/cfg/task/Ant.yaml": _GYM_TASK.format("Ant", "episodeLength: 5"),
    "isaacgymenvs/cfg/task/Hand.yaml": _GYM_TASK.format("Hand", "episodeLength: 5, numStates: 3"),
    # a VecTask's episode of length L has L - 1 steps
    "isaacgymenvs/cfg/task/Steps.yaml": _GYM_TASK.format("Steps", f"episodeLength: {LENGTH + 1}, ends: 1000, pace: 1, bonus: 0"),
    "isaacgymenvs/cfg/task/StepsToEnd.yaml": _GYM_TASK.format("StepsToEnd", f"episodeLength: 1000, ends: {LENGTH}, pace: 1, bonus: 0"),
    "isaacgymenvs/cfg/task/Drawn.yaml": _GYM_TASK.format("Drawn", "episodeLength: 20, ends: 1000, draws: true"),
}


@contextlib.contextmanager
def installed(root: Path) -> Iterator[None]:
    """As if the three were installed, in the folder `root`."""
    from tasks import isaaclab_task

    for name, content in PACKAGES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    specs = {id: gymnasium.registry.pop(id) for id in (*LAB_IDS, *SKILL_IDS) if id in gymnasium.registry}
    for id, (cls, _) in LAB_IDS.items():
        own = {"env_cfg_entry_point": "somewhere:Cfg"}
        gymnasium.register(id, entry_point=f"tests.sim_stand_ins:{cls}", kwargs=own, disable_env_checker=True)
    for id, rules in SKILL_IDS.items():
        gymnasium.register(id, entry_point="tests.sim_stand_ins:SkillEnv", kwargs={"rules": rules}, disable_env_checker=True)
    real = _taken_out()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(root)
            patch.setattr(isaaclab_task, "_app", None)
            yield
    finally:
        _taken_out()
        sys.modules.update(real)
        for id in (*LAB_IDS, *SKILL_IDS):
            del gymnasium.registry[id]
        gymnasium.registry.update(specs)


def _taken_out() -> dict[str, Any]:
    """Has Python forget the modules of the three; returns what it knew."""
    names = [name for name in sys.modules if name.split(".")[0] in ("isaaclab", "isaaclab_tasks", "mani_skill", "isaacgym", "isaacgymenvs")]
    return {name: sys.modules.pop(name) for name in names}
