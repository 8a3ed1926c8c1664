"""What a stock rl_games YAML names in `config.env_name` and `config.env_config`, behind this project's VecEnv."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import torch

from core.errors import UserError, unknown
from core.registry import register_task
from core.vecenv import Obs, VecEnv, tree_map
from tasks import envpool_task
from tasks.ray_vecenv import RayVecEnv, with_address
from tasks.row_vecenv import LocalVecEnv
from tasks.spaces import float_obs, float_space

# stock keys of `env_config` for ENVPOOL that say what our kind knows by itself
ENVPOOL_IMPLIED = ("has_lives", "env_type")


@register_task("rl_games")
def make(
    *,
    num_envs: int,
    seed: int | None,
    device: str,
    render_mode: str | None = None,
    env_name: str | None = None,
    env_config: dict[str, Any] | None = None,
    vecenv: str = "ray",
    num_workers: int | None = None,
    ray_address: str | None = None,
) -> VecEnv:
    """An environment of rl_games' own registry, also one registered at run time with `env_configurations.register`.

    Its vecenv type decides: RAY is driven by our workers (its creator may return old-gym or gymnasium environments), ENVPOOL by our
    envpool kind, and any other type by the class that `vecenv.register` holds for it.

    Args:
        env_name: key of rl_games.common.env_configurations.configurations.
        env_config: keyword arguments of its creator; for RAY also `seed` and `ray_config`, as in rl_games.
        vecenv: ray, or sync to step a RAY environment in this process.
        num_workers: Ray workers; default: one per CPU.
        ray_address: a Ray cluster that runs already (`ray start`): host:port or auto; for RAY with vecenv=ray.

    Raises UserError for an unknown name or vecenv type, and with the creator's own traceback where it raises.
    """
    configurations, vecenv_classes = _rl_games_registries()
    if not env_name:
        raise UserError("task.env_name is missing (in an rl_games YAML: params.config.env_name). Example: CartPole-v1")
    if env_name not in configurations:
        raise unknown("rl_games environment", env_name, configurations, "task.env_name")
    if vecenv not in ("ray", "sync"):
        raise unknown("vecenv", vecenv, ("ray", "sync"), "task.vecenv")
    config = dict(env_config or {})
    config_seed = config.pop("seed", None)
    seed = config_seed if config_seed is not None else seed
    vecenv_type = configurations[env_name]["vecenv_type"]
    if ray_address and (vecenv_type, vecenv) != ("RAY", "ray"):
        raise UserError(f"task.ray_address belongs to RAY environments with task.vecenv=ray; here it is {vecenv_type} with '{vecenv}'")
    if vecenv_type == "ENVPOOL":
        return _envpool(num_envs, seed, device, render_mode, config)
    if vecenv_type == "RAY":
        ray_config = with_address(config.pop("ray_config", None), ray_address)
        maker = CreatorMaker(configurations[env_name]["env_creator"], config)
        if vecenv == "sync":
            return LocalVecEnv(maker, num_envs, seed, render_mode)
        return RayVecEnv(maker, num_envs, seed, render_mode, num_workers, ray_config)
    if vecenv_type not in vecenv_classes:
        raise unknown("vecenv type", vecenv_type, vecenv_classes, f"the rl_games configuration '{env_name}'")
    if seed is not None and env_config is not None:  # rl_games, too, hands a seed only to those that take an env_config
        config["seed"] = seed
    inner = vecenv_classes[vecenv_type](env_name, num_envs, **config)
    return inner if isinstance(inner, VecEnv) else StockVecEnv(inner, num_envs, device)


def _rl_games_registries() -> tuple[dict[str, Any], dict[str, Any]]:
    """Environment names and vecenv types. Imported here, as they bring seconds of other imports."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates what rl_games' test networks use
        from rl_games.common import env_configurations, vecenv
    return env_configurations.configurations, vecenv.vecenv_config


@dataclasses.dataclass
class CreatorMaker:
    """Calls rl_games' `env_creator`; travels to other processes."""

    creator: Callable[..., Any]
    config: dict[str, Any]

    def __call__(self, index: int, render_mode: str | None) -> Any:
        """Environment `index`. Creators take no render mode; `OneEnv` sets it.

        Raises UserError where gymnasium knows no such environment (any more), or lacks a package for it.
        """
        try:
            return self.creator(**self.config)
        except gymnasium.error.Error as error:
            raise UserError(
                f"rl_games' environment cannot be made: {error} Name another one in train.params.config.env_config, or give task="
            ) from error


class StockVecEnv(VecEnv):
    """A vectorised environment that registered itself with rl_games (Isaac Gym and its like), taken to reset in the same step.

    Where its infos hold no `terminal_obs`, the observation before the step stands in: a time-out is then bootstrapped as rl_games does.
    """

    reset_mode = "same_step"

    def __init__(self, inner: Any, num_envs: int, device: str) -> None:
        self._inner = inner
        self.num_envs = num_envs
        self.device = device
        info = inner.get_env_info()
        self.observation_space = float_space(info["observation_space"])
        self.action_space = info["action_space"]
        self.state_space = info.get("state_space")
        self.num_agents = info.get("agents", 1)
        self.value_size = info.get("value_size", 1)
        self._first: Obs | None = inner.reset()  # only an observation tells whether this is NumPy or torch
        self.is_torch = any(isinstance(leaf, torch.Tensor) for leaf in _leaves(self._first))
        self._before = self._copy(self._first)

    def reset(self) -> Obs:
        obs, self._first = (self._inner.reset() if self._first is None else self._first), None
        obs = self._cast(obs)
        self._before = self._copy(obs)
        return obs

    def step(self, actions: Any) -> tuple[Obs, Any, Any, dict[str, Any]]:
        self._first = None
        obs, rewards, dones, raw = self._inner.step(actions)
        obs = self._cast(obs)
        # rl_games' own Ray environments hand over a list, one dict per environment
        infos = dict(raw) if isinstance(raw, dict) else {"time_outs": _time_outs_of(raw, self.num_agents)}
        if "time_outs" not in infos:
            infos["time_outs"] = torch.zeros_like(dones, dtype=torch.bool) if self.is_torch else np.zeros(len(dones), dtype=bool)
        infos.setdefault("terminal_obs", self._before)
        self._before = self._copy(obs)
        return obs, rewards, dones, infos

    def has_action_masks(self) -> bool:
        return self._inner.has_action_masks()

    def get_action_masks(self) -> Any:
        return self._inner.get_action_masks()

    def set_train_info(self, env_frames: int, *args: Any, **kwargs: Any) -> None:
        self._inner.set_train_info(env_frames, *args, **kwargs)

    def get_env_state(self) -> Any:
        return self._inner.get_env_state()

    def set_env_state(self, env_state: Any) -> None:
        self._inner.set_env_state(env_state)

    def close(self) -> None:
        if hasattr(self._inner, "close"):
            self._inner.close()

    def _cast(self, obs: Obs) -> Obs:
        return obs if self.is_torch else float_obs(obs)

    def _copy(self, obs: Obs) -> Obs:
        """Simulators write every observation into the same buffer."""
        return tree_map(torch.clone if self.is_torch else np.array, obs)


def _envpool(num_envs: int, seed: int | None, device: str, render_mode: str | None, config: dict[str, Any]) -> VecEnv:
    """rl_games' names for EnvPool's arguments to ours."""
    for key in ENVPOOL_IMPLIED:
        config.pop(key, None)
    return envpool_task.make(
        num_envs=num_envs,
        seed=seed,
        device=device,
        render_mode=render_mode,
        id=config.pop("env_name", None),
        flatten_obs=config.pop("flatten_obs", False),
        use_dict_obs_space=config.pop("use_dict_obs_space", False),
        num_threads=config.pop("num_threads", 0),
        options=config,
    )


def _leaves(obs: Obs) -> list[Any]:
    return [leaf for value in obs.values() for leaf in _leaves(value)] if isinstance(obs, dict) else [obs]


def _time_outs_of(infos: list[dict[str, Any]], num_agents: int) -> np.ndarray:
    return np.repeat([bool(np.any(info.get("time_outs", False))) for info in infos], num_agents)
