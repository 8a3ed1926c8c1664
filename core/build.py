"""What a checked config names, built: environments and policy, seeds and threads. Each usable alone."""

from __future__ import annotations

import inspect
import os
import random
from typing import Any

import numpy as np
import torch

from core import registry
from core.errors import UserError
from core.hidden import HiddenObs
from core.policy import Policy
from core.ranks import Ranks, local_world_size
from core.registry import AlgoEntry
from core.vecenv import VecEnv, action_kind


def make_env(cfg: dict[str, Any], num_envs: int, seed: int | None, device: str, render_mode: str | None = None) -> VecEnv:
    """The task's environments. Raises UserError for an unknown kind, or whatever the kind refuses."""
    task = cfg["task"]
    factory = registry.task_factory(task["kind"])
    options = {key: value for key, value in task.items() if key in inspect.signature(factory).parameters}
    options.pop("num_envs", None)
    env = factory(num_envs=num_envs, seed=seed, device=device, render_mode=render_mode, **options)
    if task.get("hidden_obs"):
        try:
            env = HiddenObs(env, task["hidden_obs"])
        except UserError:
            env.close()
            raise
    env.checks_obs = task.get("check_obs", True)
    return env


def make_rank_env(ranks: Ranks, cfg: dict[str, Any], params: dict[str, Any]) -> VecEnv:
    """The training environments of one rank. Rank r's environment i is seeded as environment r * num_envs + i of a single process,
    so that no two are alike."""
    num_envs = params["config"]["num_actors"]
    offset = ranks.rank * num_envs
    task = dict(cfg["task"])
    own = task.get("env_config")
    if offset and isinstance(own, dict) and isinstance(own.get("seed"), int):  # rl_games' YAMLs may give a seed there, which counts
        task["env_config"] = {**own, "seed": own["seed"] + offset}
    return make_env({**cfg, "task": task}, num_envs, params["seed"] + offset, params["config"]["device"])


def make_policy(
    entry: AlgoEntry, params: dict[str, Any], env: VecEnv, num_envs: int, device: str, state: dict[str, Any], sigma: float | None = None
) -> Policy:
    """The algorithm's policy for `env`, with a checkpoint's weights."""
    policy = (entry.policy or Policy)(params, env.get_env_info(), num_envs, device)
    policy.load(state)
    override_sigma(policy.model, sigma)
    policy.model.eval()
    return policy


def check_actions(entry: AlgoEntry, env: VecEnv) -> str:
    """The action kind of the task. Raises UserError where the algorithm cannot act in it."""
    try:
        kind = action_kind(env.action_space)
    except ValueError as error:
        raise UserError(f"task: {error}") from error
    if kind not in entry.actions:
        able = ", ".join(name for name in registry.algos if kind in registry.algos.get(name).actions)
        raise UserError(
            f"algorithm '{entry.name}' needs {' or '.join(entry.actions)} actions, but the task's are {kind} ({env.action_space}). "
            f"Algorithms for {kind} actions: {able}"
        )
    return kind


def override_sigma(model: torch.nn.Module, sigma: float | None) -> None:
    """rl_games' --sigma: sets a fixed log standard deviation. Raises UserError where the network has none."""
    if sigma is None:
        return
    network: Any = getattr(model, "a2c_network", None)
    if not getattr(network, "fixed_sigma", False):
        raise UserError("sigma can only be set for a network with fixed_sigma: true")
    with torch.no_grad():
        network.sigma.fill_(float(sigma))


def seed_everything(seed: int, deterministic: bool = False) -> None:
    """Seeds Python, NumPy and torch (seed 0 too); `deterministic` asks torch for deterministic kernels."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it torch refuses matrix products on a GPU
    if torch.are_deterministic_algorithms_enabled() != deterministic:  # the setter imports torch's compiler, which takes a second
        torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = not deterministic
    torch.set_float32_matmul_precision("highest" if deterministic else "high")


def set_threads(params: dict[str, Any]) -> None:
    """rl_games' `params.torch_threads`: a number, 0 for torch's own choice, 'auto' for at most four; the ranks of a machine share it."""
    threads = params.get("torch_threads", "auto")
    if threads == "auto":
        threads = max(1, min(4, (os.cpu_count() or 1) // local_world_size()))
    if threads:
        torch.set_num_threads(int(threads))
