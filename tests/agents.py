"""Builds agents for tests: ours and stock rl_games', on the same environment and config."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rl_games.algos_torch.a2c_continuous import A2CAgent
from rl_games.algos_torch.a2c_discrete import DiscreteA2CAgent
from rl_games.common import env_configurations, vecenv
from rl_games.common.algo_observer import DefaultAlgoObserver
from rl_games.common.tr_helpers import DefaultRewardsShaper

from algos.agent import Agent
from core import registry
from core.config import algo_options
from core.context import RunContext
from core.observers import Observers
from core.policy import Policy
from core.quiet import quiet
from core.vecenv import VecEnv, action_kind


def seed_all(seed: int = 7) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed)


def our_agent(params: dict[str, Any], env: VecEnv, path: Path, algo: str = "ppo", observers: Any = ()) -> Agent:
    """An agent of ours in the run directory `path`, checked as a run is, not yet trained. Seeded as the stock one."""
    registry.discover()
    (path / "nn").mkdir(parents=True, exist_ok=True)
    entry = registry.algos.get(algo)
    config = params["config"]
    policy = (entry.policy or Policy)(copy.deepcopy(params), env.get_env_info(), config["num_actors"], config["device"])
    entry.cls.check_run(algo_options(entry, config), policy, env)
    seed_all(params["seed"])
    context = RunContext(entry, path, Observers(observers), cfg={})
    return entry.cls.for_actions(action_kind(env.action_space))(copy.deepcopy(params), env, context)


def stock_agent(params: dict[str, Any], env: VecEnv, path: Path) -> Any:
    """rl_games' own agent, as its Runner builds it."""
    params = copy.deepcopy(params)
    vecenv.register("TOY", lambda config_name, num_actors, **kwargs: env)
    env_configurations.register("toy", {"vecenv_type": "TOY", "env_creator": lambda **kwargs: None})
    config = params["config"]
    config.update(
        reward_shaper=DefaultRewardsShaper(**config["reward_shaper"]),
        features={"observer": DefaultAlgoObserver()},
        train_dir=str(path),
        full_experiment_name="stock",
    )
    seed_all(params["seed"])
    agent_class = A2CAgent if params["algo"]["name"] == "a2c_continuous" else DiscreteA2CAgent
    with quiet():
        return agent_class(base_name="run", params=params)


def train_stock(agent: Any) -> Any:
    with quiet():
        agent.train()
    return agent


def weights(agent: Any) -> dict[str, torch.Tensor]:
    result = dict(agent.model.state_dict())
    if getattr(agent, "has_central_value", False):
        result.update({f"central.{k}": v for k, v in agent.central_value_net.state_dict().items()})
    return result


def assert_equal_weights(ours: Any, theirs: Any) -> None:
    """Bit by bit, name by name."""
    a, b = weights(ours), weights(theirs)
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), f"'{name}' differs by up to {(a[name].double() - b[name].double()).abs().max()}"
