"""Where single environments step: in this process, in processes of their own, or in Ray workers. One choice for every kind of them."""

from __future__ import annotations

from typing import Any

from core.errors import UserError, unknown
from core.vecenv import VecEnv
from tasks.one_env import Maker
from tasks.process_vecenv import ProcessVecEnv
from tasks.ray_vecenv import RayVecEnv, with_address
from tasks.row_vecenv import LocalVecEnv

VECENVS = ("sync", "async", "ray")


def check_choice(vecenv: str, num_workers: int | None, ray_config: dict[str, Any] | None, ray_address: str | None) -> None:
    """Raises UserError for an unknown `task.vecenv`, and for options that belong to another one."""
    if vecenv not in VECENVS:
        raise unknown("vecenv", vecenv, VECENVS, "task.vecenv")
    if (vecenv == "sync" and num_workers is not None) or (vecenv != "ray" and (ray_config or ray_address)):
        raise UserError(
            f"task.num_workers, task.ray_address and task.ray_config belong to task.vecenv=ray, num_workers also to async; it is '{vecenv}'"
        )


def make_vecenv(
    maker: Maker,
    num_envs: int,
    seed: int | None,
    render_mode: str | None,
    *,
    vecenv: str,
    num_workers: int | None = None,
    ray_config: dict[str, Any] | None = None,
    ray_address: str | None = None,
) -> VecEnv:
    """N environments of `maker`.

    Args:
        vecenv: sync (this process), async (several processes) or ray (workers, also on other machines).
        num_workers: processes of async or workers of ray; default: one per CPU, at most one per environment.
        ray_config: keyword arguments of ray.init; with ray only.
        ray_address: its `address`.

    Raises UserError for options that do not go together, and with what the maker says where it cannot build an environment.
    """
    check_choice(vecenv, num_workers, ray_config, ray_address)
    if vecenv == "sync":
        return LocalVecEnv(maker, num_envs, seed, render_mode)
    config = with_address(ray_config, ray_address)
    LocalVecEnv(maker, 1, seed, render_mode).close()  # the mistakes that a user can make show here, before workers start
    if vecenv == "async":
        return ProcessVecEnv(maker, num_envs, seed, render_mode, num_workers)
    return RayVecEnv(maker, num_envs, seed, render_mode, num_workers, config)
