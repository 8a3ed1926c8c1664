"""Isaac Lab: `task=isaaclab task.id=Isaac-Ant-v0`. Written from its sources and tested on a stand-in: untested on the real one.

docs/tasks/simulators.md
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch

from core.errors import UserError, unknown
from core.registry import register_task
from core.vecenv import Obs, VecEnv
from tasks.batched_torch import BatchedTorch, configure, where_done

INSTALL = "see https://isaac-sim.github.io/IsaacLab/main/source/setup/installation (into this project's environment)"
FIRST = (
    'python -c "from isaaclab.app import AppLauncher; AppLauncher(headless=True); import runpy; '
    "runpy.run_path('train.py', run_name='__main__')\" task=isaaclab ..."
)

_app: Any = None  # Isaac Sim runs once per process, and closing it ends the process: it is never closed here


class IsaacLabVecEnv(BatchedTorch):
    """A `ManagerBasedRLEnv` or `DirectRLEnv` behind our contract. Untested on the real one.

    Both reset in the same step and keep to themselves what an episode ended in. With `terminal_obs` it is computed between the rewards
    and the reset: their `_reset_idx` is called with the rows that ended, and that call is preceded by one of the observation manager's
    `compute` or, in a direct environment, of `_get_observations`.
    """

    def __init__(self, env: Any, seed: int, action_bound: float, obs_group: str, state_group: str | None, terminal_obs: bool) -> None:
        self._env, self._inner, self._last, self._tells = env, env.unwrapped, None, terminal_obs
        first, _ = env.reset(seed=seed)
        super().__init__(
            self._inner.num_envs, str(self._inner.device), first, self._inner.single_action_space, action_bound, obs_group, state_group,
            env.render_mode,
        )  # fmt: skip
        if terminal_obs:
            self._reset_idx, self._inner._reset_idx = self._inner._reset_idx, self._look_and_reset
        self._stepping = False

    def reset(self) -> Obs:
        return self.read(self._env.reset()[0])

    def step(self, actions: Any) -> tuple[Obs, Any, Any, dict[str, Any]]:
        self._last, self._stepping = None, True
        raw, rewards, terminated, truncated, _ = self._env.step(actions)
        self._stepping = False
        if getattr(self._inner.cfg, "is_finite_horizon", False):  # the time limit belongs to the task: nothing follows it
            terminated, truncated = terminated | truncated, torch.zeros_like(truncated)
        obs = self.read(raw)
        rewards, dones, infos = self.outcome(rewards, terminated, truncated)
        if self._tells:
            infos["terminal_obs"] = obs if self._last is None else where_done(dones, self._last, obs)
        return obs, rewards, dones, infos

    def _look_and_reset(self, rows: Any) -> Any:
        if self._stepping:
            manager = getattr(self._inner, "observation_manager", None)
            self._last = self.read(self._inner._get_observations() if manager is None else manager.compute())
        return self._reset_idx(rows)

    def render(self) -> np.ndarray:
        return self._env.render()

    def close(self) -> None:
        if self._env is not None:
            self._env.close()
            self._env = None


@register_task("isaaclab", needs_modules=("isaaclab", "isaaclab_tasks"), install=INSTALL)
def make(
    *,
    num_envs: int,
    seed: int | None,
    device: str,
    render_mode: str | None = None,
    id: str | None = None,
    headless: bool = True,
    enable_cameras: bool = False,
    action_bound: float = 1.0,
    obs_group: str = "policy",
    state_group: str | None = "critic",
    terminal_obs: bool = True,
    cfg: dict[str, Any] | None = None,
) -> VecEnv:
    """N environments of Isaac Lab. Starts Isaac Sim before anything of it is imported. Untested on the real one.

    Args:
        id: registered with gymnasium by isaaclab_tasks, or by one of `modules`.
        headless, enable_cameras: of its AppLauncher; a video takes cameras.
        action_bound: a manager-based environment's actions have no limits; the policy's [-1, 1] becomes +-action_bound.
        obs_group, state_group: the policy's group of observations, and a central value's.
        terminal_obs: see IsaacLabVecEnv; with false, train.params.config.bootstrap_from=current_obs has to be set.
        cfg: values in the task's configuration by their paths, e.g. {sim.dt: 0.01}.

    Raises UserError for an unknown id, group or path.
    """
    launch(device, headless, enable_cameras or render_mode is not None)
    import gymnasium
    import isaaclab_tasks  # noqa: F401  # registers the tasks
    from isaaclab_tasks.utils import parse_env_cfg

    valid = [name for name, spec in gymnasium.registry.items() if "env_cfg_entry_point" in spec.kwargs]
    if id not in valid:
        raise unknown("Isaac Lab task", str(id), valid, "task.id")
    own = parse_env_cfg(id, device=device, num_envs=num_envs)
    configure(own, cfg or {})
    own.seed = int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else seed
    env = gymnasium.make(id, cfg=own, render_mode=render_mode, disable_env_checker=True)
    return IsaacLabVecEnv(env, own.seed, action_bound, obs_group, state_group, terminal_obs)


def launch(device: str, headless: bool, enable_cameras: bool) -> None:
    """Starts Isaac Sim unless it runs already. Raises UserError where it does not start."""
    global _app
    kit = sys.modules.get("omni.kit.app")
    if _app is not None or (kit is not None and kit.get_app().is_running()):
        return
    try:
        from isaaclab.app import AppLauncher

        _app = AppLauncher(headless=headless, enable_cameras=enable_cameras, device=device).app
    except ImportError as error:
        raise UserError(f"task.kind 'isaaclab': Isaac Sim does not start: {error}. If it has to start before torch: {FIRST}") from error
