"""ManiSkill 3: `task=maniskill task.id=PickCube-v1`. docs/tasks/simulators.md

Tested on the real one with its CPU simulation, which has one environment, and on a stand-in with several: untested on its GPU simulation.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from core.errors import UserError, unknown
from core.registry import register_task
from core.vecenv import Obs, VecEnv
from tasks.batched_torch import BatchedTorch

SEVERAL_ON_CPU = (
    "task=gymnasium task.id={id} modules=[mani_skill.envs] task.wrappers=[mani_skill.utils.wrappers.gymnasium.CPUGymWrapper] "
    "'task.options={{obs_mode: state}}' task.vecenv=ray"
)


class ManiSkillVecEnv(BatchedTorch):
    """A `ManiSkillVectorEnv` behind our contract: same-step reset, its `final_observation` is what episodes ended in."""

    def __init__(self, env: Any, seed: int, device: str, obs_group: str | None, state_group: str | None, render_mode: str | None) -> None:
        self._env = env
        torch.manual_seed(seed)  # what ManiSkill draws the later episodes from
        first, _ = env.reset(seed=seed)
        super().__init__(env.num_envs, device, first, env.single_action_space, 1.0, obs_group, state_group, render_mode)

    def reset(self) -> Obs:
        return self.read(self._env.reset()[0])

    def step(self, actions: Any) -> tuple[Obs, Any, Any, dict[str, Any]]:
        raw, rewards, terminated, truncated, told = self._env.step(actions)
        obs = self.read(raw)
        rewards, dones, infos = self.outcome(rewards, terminated, truncated)
        infos["terminal_obs"] = self.read(told["final_observation"]) if "final_observation" in told else obs
        success = told.get("final_info", told).get("success")  # at the end of the step, before a reset
        if success is not None:
            infos["success"] = success.view(-1).clone()
        return obs, rewards, dones, infos

    def render(self) -> np.ndarray:
        return self._env.render()[0].cpu().numpy()

    def close(self) -> None:
        if self._env is not None:
            self._env.close()
            self._env = None


@register_task("maniskill", needs_modules=("mani_skill",), extra="maniskill")
def make(
    *,
    num_envs: int,
    seed: int | None,
    device: str,
    render_mode: str | None = None,
    id: str | None = None,
    obs_mode: str = "state",
    control_mode: str | None = None,
    reward_mode: str | None = None,
    max_episode_steps: int | None = None,
    ignore_terminations: bool = False,
    obs_group: str | None = None,
    state_group: str | None = None,
    options: dict[str, Any] | None = None,
) -> VecEnv:
    """N environments of ManiSkill 3, on PhysX's GPU simulation where the device is one; on the CPU that is one environment.

    Torch's global generator is seeded: ManiSkill draws from it whenever a reset is given no seed.

    Args:
        id: of its registry, also of a package that registers there and stands in `modules`.
        obs_mode, control_mode, reward_mode, max_episode_steps: of gymnasium.make; null: the task's own.
        ignore_terminations: episodes go on after success and failure, to the time limit.
        obs_group, state_group: parts of Dict observations (obs_mode other than state) for the policy and for a central value.
        options: further keyword arguments of gymnasium.make.

    Raises UserError for an unknown id or group, and for what ManiSkill refuses.
    """
    import gymnasium
    import mani_skill.envs  # noqa: F401  # registers the tasks
    from mani_skill.utils.registration import REGISTERED_ENVS
    from mani_skill.vector.wrappers.gymnasium import ManiSkillVectorEnv

    if id not in REGISTERED_ENVS:
        raise unknown("ManiSkill task", str(id), REGISTERED_ENVS, "task.id")
    wanted = {"control_mode": control_mode, "reward_mode": reward_mode, "max_episode_steps": max_episode_steps, "render_mode": render_mode}
    keywords = {
        "obs_mode": obs_mode,
        "sim_backend": "physx_cuda" if device.startswith("cuda") else "physx_cpu",
        **{key: value for key, value in wanted.items() if value is not None},
        **(options or {}),
    }
    try:
        env = gymnasium.make(str(id), num_envs=num_envs, **keywords)
    except (AssertionError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        several = num_envs > 1 and keywords["sim_backend"] == "physx_cpu"
        hint = f". Several on a CPU, each in a process: {SEVERAL_ON_CPU.format(id=id)}" if several else ""
        raise UserError(f"ManiSkill refuses task.id '{id}' with num_envs {num_envs} and {keywords}: {error}{hint}") from error
    batch = ManiSkillVectorEnv(env, auto_reset=True, ignore_terminations=ignore_terminations)
    entropy = int(np.random.SeedSequence().generate_state(1)[0] // 2) if seed is None else seed
    return ManiSkillVecEnv(batch, entropy, device, obs_group, state_group, render_mode)
