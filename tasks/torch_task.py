"""Environments written in torch: `task=TorchCartPole`. N at a time on any device, and their state can be saved.

One file each in `tasks/torch_envs/`; what they have in common is `TorchVecEnv`. One of your own: docs/tasks/torch.md.
"""

from __future__ import annotations

import inspect
from typing import Any

from core.errors import UserError, unknown
from core.registry import register_task
from core.vecenv import VecEnv
from tasks.torch_envs import Acrobot, CartPole, Pendulum, PointMass, Quadcopter
from tasks.torch_vecenv import ENVS, TorchVecEnv, register_torch_env

__all__ = ["ENVS", "Acrobot", "CartPole", "Pendulum", "PointMass", "Quadcopter", "TorchVecEnv", "make", "register_torch_env"]


@register_task("torch", ids_of_kind=lambda: ENVS)
def make(
    *,
    num_envs: int,
    seed: int | None,
    device: str,
    render_mode: str | None = None,
    id: str | None = None,
    max_episode_steps: int | None = None,
    differentiable: bool = False,
    options: dict[str, Any] | None = None,
) -> VecEnv:
    """N environments that live on `device`.

    Args:
        id: Acrobot, CartPole, Pendulum, PointMass, Quadcopter, or a name of your own (`register_torch_env`).
        max_episode_steps: replaces the environment's own limit.
        differentiable: gradients pass through `step`; smooth environments only.
        options: keyword arguments of the environment's own `__init__`; those of `tasks/torch_envs` have none.

    Raises UserError for an unknown id or option, a limit below 1, and where gradients of the environment would tell nothing.
    """
    if id not in ENVS:
        error = unknown("torch environment", str(id), ENVS, "task.id")
        raise UserError(f"{error}. One of your own has to be registered first: modules=[my_env.py] (docs/tasks/torch.md)")
    cls = ENVS[id]
    if max_episode_steps is not None and max_episode_steps < 1:
        raise UserError(f"task.max_episode_steps is {max_episode_steps}; at least 1, or null for {id}'s own {cls.time_limit}")
    if differentiable and not cls.smooth:
        smooth = sorted(name for name, env in ENVS.items() if env.smooth)
        raise UserError(f"task.differentiable: the rewards of task.id '{id}' have no gradient to follow. Those of {', '.join(smooth)} have")
    own = inspect.signature(cls).parameters
    valid = [
        name
        for name, parameter in own.items()
        if parameter.kind is not parameter.VAR_KEYWORD and name not in inspect.signature(TorchVecEnv).parameters
    ]
    for name in options or {}:
        if name not in valid:
            raise unknown("option", name, valid, f"task.options of {id}")
    return cls(
        num_envs=num_envs,
        seed=seed,
        device=device,
        render_mode=render_mode,
        max_episode_steps=max_episode_steps,
        differentiable=differentiable,
        **(options or {}),
    )
