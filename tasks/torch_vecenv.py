"""What all environments written in torch have in common, and the names that they go by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import gymnasium
import numpy as np
import torch

from core import checkpoint
from core.errors import UserError
from core.vecenv import VecEnv
from tasks import offscreen

ENVS: dict[str, type[TorchVecEnv]] = {}  # name, as in task.id -> class

Env = TypeVar("Env", bound="type[TorchVecEnv]")


def register_torch_env(name: str) -> Callable[[Env], Env]:
    """Class decorator: `task=torch task.id=<name>` builds it. In a module of your own: `modules=[my_env.py]`.

    Raises UserError for a class that is no TorchVecEnv or lacks a member, and for a name that another class has.
    """

    def wrap(cls: Env) -> Env:
        if not issubclass(cls, TorchVecEnv):
            raise UserError(f"register_torch_env('{name}'): {cls.__name__} is no TorchVecEnv (tasks/torch_vecenv.py)")
        lacking = [member for member in TO_WRITE if getattr(cls, member, None) is getattr(TorchVecEnv, member, None)]
        if lacking:
            raise UserError(f"register_torch_env('{name}'): {cls.__name__} has no {', '.join(lacking)}")
        taken = ENVS.get(name)
        if taken is not None and _origin(taken) != _origin(cls):  # the same class once more is a reload
            raise UserError(f"torch environment name '{name}' is taken by {_origin(taken)}; {_origin(cls)} needs another name")
        ENVS[name] = cls
        return cls

    return wrap


class TorchVecEnv(VecEnv):
    """Same-step reset, no copy to the host inside `step`, its own random generator.

    `state` is (N, S) float32, `steps` (N,) counts the steps of the running episodes. What changes from step to step must be a tensor on
    `device` and an attribute of the environment, or its `generator`: a CUDA graph then replays `step` without this code. All of it that
    is not in `state` has to be added to `get_env_state` and `set_env_state`.

    `differentiable`: `step` passes gradients on. Rewards, observations and `state` then depend on all actions since the last `detach`,
    through the physics; the row of an episode that ended begins anew, so that no gradient passes a reset. Nothing is recorded under
    `torch.no_grad`, as in rollouts. Without it, nothing that `step` returns has a gradient.
    """

    reset_mode = "same_step"
    is_torch = True
    capturable = True
    max_episode_steps: int  # there always is one

    # ---- to write, beside observation_space and action_space -----------------------------------------------------------
    state_size: int  # S; an environment with options may set it, and the spaces, in __init__, before super().__init__
    time_limit: ClassVar[int]  # steps per episode unless max_episode_steps says otherwise

    def _initial(self, uniform: torch.Tensor) -> torch.Tensor:
        """(N, S) first states, from (N, S) random numbers in [-1, 1)."""
        raise NotImplementedError

    def _advance(self, state: torch.Tensor, actions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """state (N, S), actions (N, ...) -> next state (N, S), rewards (N,), terminated (N,)."""
        raise NotImplementedError

    def _observe(self, state: torch.Tensor) -> torch.Tensor:
        """(N, S) -> (N, O)."""
        raise NotImplementedError

    # ---- may be written ------------------------------------------------------------------------------------------------
    smooth: ClassVar[bool] = False  # the gradients of its rewards are worth following: `differentiable` may be asked for
    gym_id: ClassVar[str | None] = None  # the gymnasium twin, which draws the picture

    def _paint(self, state: np.ndarray) -> np.ndarray:
        """(S,) of environment 0 -> its picture (H, W, 3) uint8. For environments without a gymnasium twin."""
        raise NotImplementedError(f"{type(self).__name__} cannot render")

    # ---- the same for all -------------------------------------------------------------------------------------------

    def __init__(
        self,
        num_envs: int,
        seed: int | None,
        device: str,
        render_mode: str | None = None,
        max_episode_steps: int | None = None,
        differentiable: bool = False,
    ) -> None:
        self.num_envs = num_envs
        self.device = device
        self.render_mode = render_mode
        self.max_episode_steps = max_episode_steps or self.time_limit
        self.differentiable = differentiable
        self.generator = torch.Generator(device=device)
        if seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(seed)
        self._shape = (num_envs, self.state_size)
        self.state = self._draw()
        self.steps = torch.zeros(num_envs, dtype=torch.int64, device=device)
        self._twin: gymnasium.Env | None = None

    def reset(self) -> torch.Tensor:
        self.state = self._draw()
        self.steps = torch.zeros_like(self.steps)
        return self._observe(self.state)

    def step(self, actions: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, dict[str, Any]]:
        with torch.set_grad_enabled(self.differentiable and torch.is_grad_enabled()):
            state, rewards, terminated = self._advance(self.state, torch.as_tensor(actions, device=self.device))
            self._check_shapes(state, rewards, terminated)
            steps = self.steps + 1
            truncated = steps >= self.max_episode_steps
            dones = terminated | truncated
            # every row draws a first state, whether it needs one or not: asking which do would wait for the device
            self.state = torch.where(dones[:, None], self._draw(), state)
            self.steps = torch.where(dones, torch.zeros_like(steps), steps)
            infos = {"time_outs": truncated & ~terminated, "terminal_obs": self._observe(state)}
            return self._observe(self.state), rewards, dones, infos

    def _check_shapes(self, state: torch.Tensor, rewards: torch.Tensor, terminated: torch.Tensor) -> None:
        """Rewards of (N, 1) would be spread to (N, N) somewhere else."""
        wanted = {"state": (state, self._shape), "rewards": (rewards, self._shape[:1]), "terminated": (terminated, self._shape[:1])}
        for name, (found, shape) in wanted.items():
            if tuple(found.shape) != shape:
                raise UserError(f"{type(self).__name__}._advance returned {name} of shape {tuple(found.shape)}; wanted is {shape}")

    def detach(self) -> None:
        self.state = self.state.detach()

    def current_obs(self) -> torch.Tensor:
        """(N, O): what `reset` or `step` returned last; after `set_env_state`, what the saved run saw."""
        return self._observe(self.state)

    @property
    def can_save_state(self) -> bool:
        return True

    def get_env_state(self) -> dict[str, torch.Tensor]:
        return {"state": self.state.detach(), "steps": self.steps, "generator": self.generator.get_state()}

    def set_env_state(self, env_state: dict[str, torch.Tensor]) -> None:
        """Goes on exactly where `get_env_state` was called. Raises UserError for the state of another number of environments."""
        if env_state is None:  # rl_games hands over what a checkpoint without state holds
            return
        if env_state["state"].shape != self.state.shape:
            raise UserError(
                f"the saved state is of {env_state['state'].shape[0]} environments, task.num_envs is {self.num_envs}: "
                "resume with the same number"
            )
        self.state = env_state["state"].to(self.device)
        self.steps = env_state["steps"].to(self.device)
        checkpoint.set_generator(self.generator, env_state["generator"])

    @property
    def can_render(self) -> bool:
        paints = type(self)._paint is not TorchVecEnv._paint
        return self.render_mode is not None and (self.gym_id is not None or paints)

    def render(self) -> np.ndarray:
        state = self.state[0].detach().cpu().numpy()
        if self.gym_id is None:
            return self._paint(state)
        if self._twin is None:
            offscreen.prepare(needs_mujoco=False)
            self._twin = gymnasium.make(self.gym_id, render_mode=self.render_mode)
            self._twin.reset()
        inner: Any = self._twin.unwrapped
        inner.state = state.astype(np.float64)
        return self._twin.render()  # type: ignore[return-value]  # rgb_array returns an array

    def close(self) -> None:
        if self._twin is not None:
            self._twin.close()
            self._twin = None

    def _draw(self) -> torch.Tensor:
        return self._initial(torch.rand(self._shape, generator=self.generator, device=self.device) * 2.0 - 1.0)


TO_WRITE = ("_initial", "_advance", "_observe", "time_limit")


def _origin(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
