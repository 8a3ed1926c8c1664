"""An MJCF file and a few torch functions become N environments: the base class of the task kind `warp`."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium import spaces

from core import checkpoint
from core.errors import UserError
from core.vecenv import Obs, VecEnv, tree_map
from tasks import offscreen
from tasks.warp_physics import Physics


class WarpVecEnv(VecEnv):
    """Same-step reset. Nothing is copied to the host inside `step`; on a CPU worlds are reset only where one ended.

    `data` below is `tasks.warp_physics.Physics`: `data.qpos` (N, nq), `data.xpos` (N, nbody, 3) and every other array of MuJoCo's data.
    `self.model` is the mujoco.MjModel (`self.model.body("torso").id`), `self.dt` the seconds of a step, `self.generator` draws.
    """

    reset_mode = "same_step"
    is_torch = True
    max_episode_steps: int  # there always is one

    # ---- to write ---------------------------------------------------------------------------------------------------
    mjcf: ClassVar[str]  # a path, beside the module or from here; the name of one of gymnasium's models; or the XML itself
    frame_skip: ClassVar[int] = 5  # physics steps per step
    time_limit: ClassVar[int] = 1000  # steps per episode unless task.max_episode_steps says otherwise
    physics: ClassVar[dict[str, Any]] = {}  # attributes of MJCF's <option> to replace, e.g. {"solver": "Newton"}

    def observe(self, data: Any) -> Obs:
        """(N, O), or {"obs": (N, O), "states": (N, S)} with what only a central value sees."""
        raise NotImplementedError

    def reward(self, data: Any, actions: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        """(N,) of the step that ended. actions (N, nu); before (N, K): what `remember` gave when it began."""
        raise NotImplementedError

    def terminated(self, data: Any) -> torch.Tensor:
        """(N,) bool. Time limits are not its business."""
        return torch.zeros(self.num_envs, dtype=torch.bool, device=self.device)

    def remember(self, data: Any) -> torch.Tensor:
        """(N, K): what the next step's reward compares with, such as a position that gives a speed."""
        return torch.zeros((self.num_envs, 0), device=self.device)

    def initial(self) -> tuple[torch.Tensor, torch.Tensor]:
        """qpos (N, nq) and qvel (N, nv) of a first state in every world; `self.qpos0` (nq,) is the model's own."""
        return self.qpos0.expand(self.num_envs, -1), torch.zeros((self.num_envs, self.model.nv), device=self.device)

    # ---- the same for all -------------------------------------------------------------------------------------------

    def __init__(
        self,
        model: Any,
        num_envs: int,
        seed: int | None,
        device: str,
        render_mode: str | None = None,
        max_episode_steps: int | None = None,
        frame_skip: int | None = None,
        nconmax: int | None = None,
        njmax: int | None = None,
    ) -> None:
        self.model, self.num_envs, self.device, self.render_mode = model, num_envs, device, render_mode
        self.max_episode_steps = max_episode_steps or self.time_limit
        skip = frame_skip or self.frame_skip
        self.dt = float(model.opt.timestep) * skip
        self.generator = torch.Generator(device=device)
        if seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(seed)
        self.qpos0 = torch.as_tensor(model.qpos0, dtype=torch.float32, device=device)
        self.action_space = controls(model)
        self.data = Physics(model, num_envs, device, skip, nconmax, njmax)
        self.steps = torch.zeros(num_envs, dtype=torch.int64, device=device)
        self._renderer: Any = None
        self._before: torch.Tensor
        self._obs: Obs
        self._begin_all()
        self._set_spaces()

    def uniform(self, *shape: int) -> torch.Tensor:
        """(N, ...) numbers in [-1, 1)."""
        return torch.rand((self.num_envs, *shape), generator=self.generator, device=self.device) * 2.0 - 1.0

    def normal(self, *shape: int) -> torch.Tensor:
        """(N, ...) numbers with mean 0 and standard deviation 1."""
        return torch.randn((self.num_envs, *shape), generator=self.generator, device=self.device)

    def reset(self) -> Obs:
        self._begin_all()
        return self._obs

    def step(self, actions: Any) -> tuple[Obs, torch.Tensor, torch.Tensor, dict[str, Any]]:
        actions = torch.as_tensor(actions, dtype=torch.float32, device=self.device)
        data = self.data
        data.step(actions)
        terminal = self._observe()
        rewards = self.reward(data, actions, self._before).to(torch.float32, copy=True)  # it may be a view of what a reset writes into
        terminated = self.terminated(data)
        steps = self.steps + 1
        truncated = steps >= self.max_episode_steps
        dones = terminated | truncated
        before, obs = self._remember(), terminal
        first = self.initial()  # drawn for every row, whether it needs one or not: asking which do would wait for a GPU
        if self.device != "cpu" or bool(dones.any()):
            data.reset(dones, *first)
            obs = tree_map(lambda new, old: _where(dones, new, old), self._observe(), terminal)
            before = _where(dones, self._remember(), before)
        self.steps = torch.where(dones, torch.zeros_like(steps), steps)
        self._before, self._obs = before, obs
        return obs, rewards.clone(), dones, {"time_outs": truncated & ~terminated, "terminal_obs": terminal}

    def _begin_all(self) -> None:
        everywhere = torch.ones(self.num_envs, dtype=torch.bool, device=self.device)
        self.data.reset(everywhere, *self.initial())
        self.steps = torch.zeros_like(self.steps)
        self._before, self._obs = self._remember(), self._observe()

    def _observe(self) -> Obs:
        return tree_map(_own, self.observe(self.data))

    def _remember(self) -> torch.Tensor:
        return _own(self.remember(self.data))

    def _set_spaces(self) -> None:
        both = isinstance(self._obs, dict)
        self.observation_space = _box(self._obs["obs"] if both else self._obs)
        if both:
            self.state_space = _box(self._obs["states"])

    # ---- saved states -----------------------------------------------------------------------------------------------

    def current_obs(self) -> Obs:
        """What `reset` or `step` returned last; after `set_env_state`, what the saved run saw."""
        return self._obs

    @property
    def can_save_state(self) -> bool:
        return True

    def get_env_state(self) -> dict[str, Any]:
        return {
            "physics": self.data.state(),
            "steps": self.steps,
            "before": self._before,
            "obs": self._obs,
            "generator": self.generator.get_state(),
        }

    def set_env_state(self, env_state: dict[str, Any] | None) -> None:
        """Goes on where `get_env_state` was called. Raises UserError for the state of other environments."""
        if env_state is None:  # rl_games hands over what a checkpoint without state holds
            return
        physics = env_state["physics"].to(self.device)
        if physics.shape != (ours := self.data.state()).shape:
            raise UserError(
                f"the saved state is of {physics.shape[0]} environments with {physics.shape[1]} numbers each, "
                f"the task's are {ours.shape[0]} with {ours.shape[1]}: resume with the same number and the same model"
            )
        self.data.set_state(physics)
        self.steps, self._before = env_state["steps"].to(self.device), env_state["before"].to(self.device)
        self._obs = tree_map(lambda part: part.to(self.device), env_state["obs"])
        checkpoint.set_generator(self.generator, env_state["generator"])

    # ---- pictures ---------------------------------------------------------------------------------------------------

    def render(self) -> np.ndarray:
        """World 0, (480, 480, 3), from the model's camera `track` if it has one."""
        import mujoco

        if self._renderer is None:
            offscreen.prepare(needs_mujoco=True)
            from gymnasium.envs.mujoco.mujoco_rendering import MujocoRenderer

            self._drawn = mujoco.MjData(self.model)
            self._renderer = MujocoRenderer(self.model, self._drawn, width=480, height=480)
        self._drawn.qpos[:] = self.data.qpos[0].cpu().numpy()
        mujoco.mj_forward(self.model, self._drawn)
        return self._renderer.render("rgb_array")

    def close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None


def controls(model: Any) -> spaces.Box:
    """Box (nu,) of the actuators' ctrlrange. Raises UserError for an actuator without one: actions are scaled to it."""
    free = [model.actuator(i).name or f"number {i}" for i in range(model.nu) if not model.actuator_ctrllimited[i]]
    if model.nu == 0 or free:
        what = "has no actuator" if not free else f"has no ctrlrange for its actuator {', '.join(free)}"
        raise UserError(f"task.mjcf: the model {what}, and a policy's actions are scaled to it")
    low, high = model.actuator_ctrlrange.astype(np.float32).T
    return spaces.Box(low, high, dtype=np.float32)


def _own(tensor: torch.Tensor) -> torch.Tensor:
    """A copy: what a task gives may be the simulator's own memory, which the reset writes into."""
    return tensor.to(torch.float32).clone()


def _where(rows: torch.Tensor, new: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
    return torch.where(rows.view(-1, *[1] * (new.dim() - 1)), new, old)


def _box(rows: torch.Tensor) -> spaces.Box:
    return spaces.Box(-np.inf, np.inf, tuple(rows.shape[1:]), np.float32)
