"""What holds for every kind of environment: seeds, and what the time limit does to the returns that a policy learns from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from algos.batch import flat
from core import registry
from core.build import make_env
from core.vecenv import VecEnv, action_kind
from tests.agents import our_agent
from tests.kinds import CASES, Case, register
from tests.sim_stand_ins import installed
from tests.task_envs import LENGTH
from tests.toys import toy_params

GAMMA = 0.9
HORIZON = 2 * (LENGTH + 1) + 3  # two whole episodes, however the environment resets, and a part of one
TRANSITIONS = 1000
kinds = pytest.mark.parametrize("case", [pytest.param(case, id=name, marks=case.marks) for name, case in CASES.items()])

ENDINGS = [
    pytest.param(case, cut_off, id=f"{name}-{'time_out' if cut_off else 'termination'}", marks=case.marks)
    for name, case in CASES.items()
    for cut_off in (True, False)
    if (case.cut_off if cut_off else case.ends)
]


@pytest.fixture(autouse=True, scope="module")
def _environments(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    registry.discover()
    register()
    with installed(tmp_path_factory.mktemp("packages")):
        yield


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    """Ray starts once for all of its tests, not once for each."""
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    yield
    ray.shutdown()


def build(case: Case, options: dict[str, Any], seed: int | None = 0, num_envs: int = 2) -> VecEnv:
    if case.needs:
        pytest.importorskip(case.needs)
    if case.register:
        case.register()
    return make_env({"task": {"kind": case.kind, "num_envs": num_envs, **options}}, num_envs, seed, "cpu")


# ---- seeds -----------------------------------------------------------------------------------------------------------


def play(env: VecEnv) -> list[np.ndarray]:
    """TRANSITIONS random steps, counted over the environments: (rows, ...) each of observations, rewards, dones, time-outs."""
    space: Any = env.action_space
    rng = np.random.default_rng(7)
    rows = env.num_envs * env.num_agents
    seen = _leaves(env.reset())
    for _ in range(TRANSITIONS // env.num_envs):
        if action_kind(space) == "continuous":
            low, high = np.maximum(space.low, -1e3), np.minimum(space.high, 1e3)
            actions: Any = np.repeat(rng.uniform(low, high, (1, *space.shape)).astype(np.float32), rows, axis=0)
        else:
            actions = np.full(rows, rng.integers(0, space.n))
        obs, rewards, dones, infos = env.step(torch.as_tensor(actions) if env.is_torch else actions)
        seen += [*_leaves(obs), *(np.asarray(part).copy() for part in (rewards, dones, infos["time_outs"]))]
    return seen


def _leaves(obs: Any) -> list[np.ndarray]:
    return [leaf for part in obs.values() for leaf in _leaves(part)] if isinstance(obs, dict) else [np.asarray(obs).copy()]


@kinds
def test_one_seed_is_one_history_and_no_two_environments_share_it(case: Case) -> None:
    runs = []
    for seed in (3, 3, 4):
        env = build(case, case.random, seed)
        runs.append(play(env))
        env.close()
    first, again, other = runs
    assert len(first) >= 4 * TRANSITIONS // 2
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert any(not np.array_equal(a, b) for a, b in zip(first, other, strict=True))
    # all rows are given the same actions: only their first states tell them apart
    assert any(not np.array_equal(seen[: case.agents], seen[case.agents :]) for seen in first if seen.dtype == np.float32)


# ---- returns in closed form ------------------------------------------------------------------------------------------


def known_value(agent: Any, counts: bool) -> None:
    """Makes the critic V(o) = 10 + 3 o[0] where environments count, and 10 where they do not."""
    weights = agent.model.state_dict()
    for name, weight in weights.items():
        weight.zero_()
        if name.endswith("value.bias"):
            weight.fill_(10.0)
    if counts:
        next(weight for name, weight in weights.items() if "actor_mlp" in name and name.endswith("weight"))[0, 0] = 1.0
        next(weight for name, weight in weights.items() if name.endswith("value.weight"))[0, 0] = 3.0


def expected(counts: bool, cut_off: bool, next_step: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """(HORIZON,) the returns that the definition gives, and which rows are transitions.

    From step t of an episode of L steps: the sum of gamma^k r over the L - t rewards that are left, and, where a time limit cut the
    episode off or the rollout stopped there, gamma^(L - t) V of the observation that it stopped at.
    """
    returns, valid = torch.zeros(HORIZON), torch.ones(HORIZON, dtype=torch.bool)
    period = LENGTH + 1 if next_step else LENGTH
    for row in range(HORIZON):
        t = row % period
        if t == LENGTH:  # the row in which a next-step environment resets
            valid[row] = False
            continue
        steps = min(LENGTH - t, HORIZON - row)
        rewards = [float(t + k + 1) if counts else 1.0 for k in range(steps)]
        returns[row] = sum(GAMMA**k * reward for k, reward in enumerate(rewards))
        stopped_at = t + steps
        if stopped_at < LENGTH or cut_off:
            returns[row] += GAMMA**steps * (10.0 + 3.0 * stopped_at if counts else 10.0)
    return returns, valid


@pytest.mark.parametrize(("case", "cut_off"), ENDINGS)
def test_returns_are_those_of_the_definition(case: Case, cut_off: bool, tmp_path: Path) -> None:
    env = build(case, (case.cut_off if cut_off else case.ends) or {})
    try:
        batches = _batches_of(env, case, tmp_path)
    finally:
        env.close()
    returns, valid = expected(case.counts, cut_off, env.reset_mode == "next_step")
    rows = 2 * case.agents
    kept = flat(valid[:, None].expand(-1, rows))
    torch.testing.assert_close(batches[0].returns[:, 0], flat(returns[:, None].expand(-1, rows))[kept], rtol=1e-5, atol=1e-4)


def _batches_of(env: VecEnv, case: Case, tmp_path: Path) -> list[Any]:
    """The batch of one epoch of PPO whose critic is `known_value` and whose lambda is 1."""
    rows = 2 * case.agents
    params = toy_params(action=action_kind(env.action_space), horizon_length=HORIZON, max_epochs=1)
    params["network"]["mlp"] = {"units": [4], "activation": "None", "initializer": {"name": "default"}}
    params["network"]["separate"] = False
    params["config"].update(num_actors=2, minibatch_size=HORIZON * rows, gamma=GAMMA, tau=1.0, mini_epochs=1)
    params["config"].update(normalize_input=False, normalize_value=False, value_bootstrap=True, reward_shaper={"scale_value": 1.0})
    agent = our_agent(params, env, tmp_path)
    known_value(agent, case.counts)
    batches: list[Any] = []
    agent.transform_batch = lambda batch: batches.append(batch) or batch  # type: ignore[method-assign]
    agent.train()
    return batches
