"""The torch environments: those with a gymnasium twin have its physics; all go on bit by bit from a saved state, at any number."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

import tasks.torch_envs
from core.errors import UserError
from tasks.torch_task import ENVS, make

N = 64
IDS = ("Acrobot", "CartPole", "Pendulum", "PointMass", "Quadcopter")  # those that are there; others may be registered meanwhile
TWINS = [(id, ENVS[id].gym_id) for id in IDS if ENVS[id].gym_id]


def build(id: str, **options: Any) -> Any:
    return make(**{"num_envs": N, "seed": 1, "device": "cpu", "id": id, **options})


def actions_for(env: Any, generator: torch.Generator) -> torch.Tensor:
    """Random ones, of continuous actions some beyond the limits: they are clipped."""
    space = env.action_space
    if isinstance(space, gymnasium.spaces.Discrete):
        return torch.randint(0, int(space.n), (env.num_envs,), generator=generator)
    return 1.25 * torch.as_tensor(space.high) * (2 * torch.rand((env.num_envs, *space.shape), generator=generator) - 1)


def test_every_file_registers_its_environment() -> None:
    files = {path.stem for path in Path(tasks.torch_envs.__file__).parent.glob("*.py")} - {"__init__", "canvas", "rk4"}
    assert {ENVS[id].__module__ for id in IDS} == {f"tasks.torch_envs.{file}" for file in files}
    assert {gym_id for _, gym_id in TWINS} == {"Acrobot-v1", "CartPole-v1", "Pendulum-v1"}


@pytest.mark.parametrize(("id", "gym_id"), TWINS)
def test_physics_are_gymnasiums(id: str, gym_id: str) -> None:
    """Every step starts from the same state in both, so that float32 differences cannot grow into chaos."""
    env = build(id)
    twin: Any = gymnasium.make(gym_id).unwrapped
    twin.reset(seed=0)
    env.reset()
    generator = torch.Generator().manual_seed(0)
    for _ in range(40):
        actions = actions_for(env, generator)
        before = env.state.double().numpy()
        _, rewards, dones, infos = env.step(actions)
        for i in range(0, N, 16):
            twin.state, twin.steps_beyond_terminated = before[i].copy(), None
            obs, reward, terminated, _, _ = twin.step(actions[i].numpy())
            assert np.allclose(infos["terminal_obs"][i], obs, atol=1e-5)
            assert np.isclose(rewards[i], reward, atol=1e-4)
            assert bool(dones[i] & ~infos["time_outs"][i]) == terminated
    assert env.observation_space == twin.observation_space
    assert env.action_space == twin.action_space


def test_acrobot_is_gymnasiums_from_anywhere() -> None:
    """From states over its whole range, where angles wrap, speeds reach their limits and the tip is above the line."""
    env = build("Acrobot", num_envs=400)
    twin: Any = gymnasium.make("Acrobot-v1").unwrapped
    twin.reset(seed=0)
    generator = torch.Generator().manual_seed(0)
    limits = torch.tensor([math.pi, math.pi, *env.MAX_SPEEDS])
    env.state = limits * (2 * torch.rand((400, 4), generator=generator) - 1)
    before, actions = env.state.double().numpy(), actions_for(env, generator)
    _, rewards, dones, infos = env.step(actions)
    for i in range(400):
        twin.state = before[i].copy()
        obs, reward, terminated, _, _ = twin.step(actions[i].numpy())
        assert np.allclose(infos["terminal_obs"][i], obs, rtol=1e-4, atol=1e-4)
        assert (float(rewards[i]), bool(dones[i])) == (reward, terminated)
    assert 50 < dones.sum() < 350
    assert (infos["terminal_obs"][:, 4:].abs() == limits[2:]).any(dim=0).all()  # both limits were reached


def test_limits_are_gymnasiums() -> None:
    for id, gym_id in TWINS:
        spec = gymnasium.spec(str(gym_id))
        assert ENVS[id].time_limit == spec.max_episode_steps


def test_first_states_are_gymnasiums() -> None:
    """Uniform in +-0.05 for CartPole, +-0.1 for Acrobot, +-(pi, 1) for Pendulum: bounds kept, and reached to 1 in 100."""
    cart = build("CartPole", num_envs=4000).state
    assert 0.0495 < cart.abs().max() <= 0.05
    assert cart.min() < -0.0495
    acrobot = build("Acrobot", num_envs=4000).state
    assert 0.099 < acrobot.max() <= 0.1
    assert -0.1 <= acrobot.min() < -0.099
    pendulum = build("Pendulum", num_envs=4000).state
    high = pendulum.abs().amax(dim=0)
    assert 3.11 < high[0] <= 3.1416
    assert 0.99 < high[1] <= 1.0


def test_time_out_and_terminal_obs() -> None:
    env = build("Pendulum", max_episode_steps=2)
    env.reset()
    _, _, dones, infos = env.step(torch.zeros(N, 1))
    assert not dones.any()
    obs, _, dones, infos = env.step(torch.zeros(N, 1))
    assert dones.all()
    assert infos["time_outs"].all()
    assert (obs != infos["terminal_obs"]).any(dim=1).all()
    assert (obs == env.current_obs()).all()
    assert not env.step(torch.zeros(N, 1))[2].any()  # the count began anew


def test_reward_of_a_hanging_pendulum() -> None:
    """theta = pi (hanging), at rest, torque 2: -(pi^2 + 0 + 0.001 * 4) = -9.8736."""
    env = build("Pendulum")
    env.state = torch.tensor([[np.pi, 0.0]] * N)
    rewards = env.step(torch.full((N, 1), 2.0))[1]
    assert rewards.dtype == torch.float32
    assert torch.allclose(rewards, torch.full((N,), -9.8736), atol=1e-4)


@pytest.mark.parametrize("id", IDS)
def test_a_saved_state_continues_bit_by_bit(id: str) -> None:
    def actions(step: int) -> torch.Tensor:
        return actions_for(env, torch.Generator().manual_seed(step))

    env, other = build(id, max_episode_steps=30), build(id, max_episode_steps=30, seed=99)
    env.reset()
    for step in range(50):
        env.step(actions(step))
    saved = {key: value.clone() for key, value in env.get_env_state().items()}
    went_on = [env.step(actions(step)) for step in range(50, 120)]
    assert any(dones.any() for _, _, dones, _ in went_on)  # the restored generator has been drawn from
    other.set_env_state(saved)
    torch.manual_seed(0)  # the global generator plays no part
    for step, (obs, rewards, dones, infos) in zip(range(50, 120), went_on, strict=True):
        again = other.step(actions(step))
        assert torch.equal(again[0], obs)
        assert torch.equal(again[1], rewards)
        assert torch.equal(again[2], dones)
        assert torch.equal(again[3]["terminal_obs"], infos["terminal_obs"])
    assert env.can_save_state


def test_the_state_of_another_number_of_environments() -> None:
    with pytest.raises(UserError, match=r"of 64 environments, task.num_envs is 8"):
        build("CartPole", num_envs=8).set_env_state(build("CartPole").get_env_state())


@pytest.mark.parametrize("id", IDS)
def test_65536_at_once(id: str) -> None:
    n = 65_536
    env = build(id, num_envs=n)
    env.reset()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _ in range(3):
            obs, rewards, dones, infos = env.step(actions_for(env, generator))
    assert obs.shape == infos["terminal_obs"].shape == (n, *env.observation_space.shape)
    assert rewards.shape == dones.shape == infos["time_outs"].shape == (n,)
    assert obs.dtype == rewards.dtype == env.state.dtype == torch.float32
    assert torch.isfinite(obs).all()
    assert torch.isfinite(rewards).all()
    assert len(torch.unique(env.state[:, 0])) > n / 2  # each of them is another


@pytest.mark.parametrize("id", IDS)
def test_a_time_limit_of_ones_own(id: str) -> None:
    env = build(id, max_episode_steps=4)
    env.reset()
    still = torch.full((N, *env.action_space.shape), getattr(env, "HOVER", 0)).to(torch.float32 if env.action_space.shape else torch.int64)
    for step in range(1, 9):
        _, _, dones, infos = env.step(still)
        assert dones.tolist() == infos["time_outs"].tolist() == [step % 4 == 0] * N


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"id": "Quadcoptr"}, "unknown torch environment 'Quadcoptr' at task.id. Did you mean 'Quadcopter'.*modules="),
        ({"id": "Pendulum", "max_episode_steps": 0}, "task.max_episode_steps is 0; at least 1, or null for Pendulum's own 200"),
        (
            {"id": "CartPole", "differentiable": True},
            "'CartPole' have no gradient to follow. Those of Pendulum, PointMass, Quadcopter have",
        ),
        ({"id": "Pendulum", "options": {"mass": 2}}, "unknown option 'mass' at task.options of Pendulum. Valid: .none."),
    ],
)
def test_mistakes(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(**options)
