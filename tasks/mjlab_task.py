"""mjlab: Isaac Lab's managers on MuJoCo Warp. docs/tasks/simulators.md"""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
import torch

from core.errors import UserError, unknown
from core.registry import register_task
from core.vecenv import Obs, VecEnv
from tasks import offscreen
from tasks.batched_torch import BatchedTorch, configure, where_done

# mjlab's viewer wants rich below 15, which constraints.txt pins above
INSTALL = "pip install 'rich<15' --editable '.[mjlab]'"


class MjlabVecEnv(BatchedTorch):
    """A `ManagerBasedRlEnv` behind our contract.

    `terminal_obs=True` takes mjlab's own `auto_reset=False`: its step then returns the observations that episodes ended in, and the
    worlds that ended are reset here, at once, which costs another forward pass in the steps where one did. With False mjlab resets by
    itself, and what an episode ended in is not told.
    """

    def __init__(self, env: Any, action_bound: float, obs_group: str, state_group: str | None, terminal_obs: bool) -> None:
        self._env, self._terminal = env, terminal_obs
        first, _ = env.reset()
        super().__init__(
            env.num_envs, str(env.device), first, env.single_action_space, action_bound, obs_group, state_group, env.render_mode
        )

    def reset(self) -> Obs:
        return self.read(self._env.reset()[0])

    def step(self, actions: Any) -> tuple[Obs, Any, Any, dict[str, Any]]:
        raw, rewards, terminated, truncated, _ = self._env.step(actions)
        if self._env.cfg.is_finite_horizon:  # the time limit belongs to the task: nothing follows it
            terminated, truncated = terminated | truncated, torch.zeros_like(truncated)
        obs = self.read(raw)
        rewards, dones, infos = self.outcome(rewards, terminated, truncated)
        if self._terminal:
            infos["terminal_obs"] = obs
            ended = dones.nonzero().squeeze(1)  # waits for the device, as mjlab's own reset does
            if len(ended):
                obs = where_done(dones, self.read(self._env.reset(env_ids=ended)[0]), obs)
        return obs, rewards, dones, infos

    def render(self) -> np.ndarray:
        return self._env.render()

    def close(self) -> None:
        if self._env is not None:
            self._env.close()
            self._env = None


@register_task("mjlab", needs_modules=("mjlab",), install=INSTALL)
def make(
    *,
    num_envs: int,
    seed: int | None,
    device: str,
    render_mode: str | None = None,
    id: str | None = None,
    play: bool = False,
    episode_length_s: float | None = None,
    action_bound: float = 1.0,
    obs_group: str = "actor",
    state_group: str | None = "critic",
    terminal_obs: bool = True,
    cfg: dict[str, Any] | None = None,
) -> VecEnv:
    """N worlds of an mjlab task.

    Args:
        id: of mjlab's registry, also of a package that registers tasks there and stands in `modules`.
        play: the task's configuration for playing, without noise and pushes, instead of the one for training.
        episode_length_s: replaces the task's time limit, in seconds.
        action_bound: mjlab's actions have no limits; the policy's [-1, 1] becomes +-action_bound.
        obs_group, state_group: the policy's group of observations, and a central value's.
        terminal_obs: see MjlabVecEnv; with false, train.params.config.bootstrap_from=current_obs has to be set.
        cfg: values in the task's configuration by their paths, e.g. {commands.motion.motion_file: walk.npz}.

    Raises UserError for an unknown id, group or path, and for a file that the task lacks.
    """
    if render_mode is not None:
        offscreen.prepare(needs_mujoco=True)  # before mujoco is imported
    import mjlab.tasks  # noqa: F401  # registers the tasks
    import warp
    from mjlab.envs import ManagerBasedRlEnv
    from mjlab.tasks.registry import list_tasks, load_env_cfg

    if id not in list_tasks():
        raise unknown("mjlab task", str(id), list_tasks(), "task.id")
    warp.config.log_level = warp.LOG_WARNING  # not a line per kernel
    own = load_env_cfg(id, play=play)
    configure(own, cfg or {})
    own.scene.num_envs, own.auto_reset = num_envs, not terminal_obs
    own.seed = int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else seed
    if episode_length_s is not None:
        own.episode_length_s = episode_length_s
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # a page of tables
            env = ManagerBasedRlEnv(own, device=device, render_mode=render_mode)
    except FileNotFoundError as error:
        raise UserError(f"task.id '{id}' lacks a file: {error}. Give it by its path in the configuration, task.cfg") from error
    return MjlabVecEnv(env, action_bound, obs_group, state_group, terminal_obs)
