"""The torch environments are gymnasium's physics, and go on bit by bit from a saved state."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from core.errors import UserError
from tasks.torch_task import ENVS, make

N = 64


def build(id: str, **options: Any) -> Any:
    return make(**{"num_envs": N, "seed": 1, "device": "cpu", "id": id, **options})


@pytest.mark.parametrize(("id", "gym_id"), [("CartPole", "CartPole-v1"), ("Pendulum", "Pendulum-v1")])
def test_physics_are_gymnasiums(id: str, gym_id: str) -> None:
    """Every step starts from the same state in both, so that float32 differences cannot grow into chaos."""
    env = build(id)
    twin: Any = gymnasium.make(gym_id).unwrapped
    twin.reset(seed=0)
    env.reset()
    rng = np.random.default_rng(0)
    for _ in range(40):
        if id == "CartPole":
            actions: Any = rng.integers(0, 2, N)
        else:
            actions = rng.uniform(-2.5, 2.5, (N, 1)).astype(np.float32)  # beyond the limit: it is clipped
        before = env.state.double().numpy()
        _, rewards, dones, infos = env.step(torch.as_tensor(actions))
        for i in range(0, N, 16):
            twin.state, twin.steps_beyond_terminated = before[i].copy(), None
            obs, reward, terminated, _, _ = twin.step(actions[i])
            assert np.allclose(infos["terminal_obs"][i], obs, atol=1e-5)
            assert np.isclose(rewards[i], reward, atol=1e-4)
            assert bool(dones[i] & ~infos["time_outs"][i]) == terminated
    assert env.observation_space == twin.observation_space
    assert env.action_space == twin.action_space


def test_limits_are_gymnasiums() -> None:
    for cls in ENVS.values():
        assert cls.time_limit == gymnasium.spec(cls.gym_id).max_episode_steps


def test_first_states_are_gymnasiums() -> None:
    """Uniform in +-0.05 for CartPole, in +-(pi, 1) for Pendulum: bounds kept, and reached to 1 in 100."""
    cart = build("CartPole", num_envs=4000).state
    assert 0.0495 < cart.abs().max() <= 0.05
    assert cart.min() < -0.0495
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


@pytest.mark.parametrize("id", sorted(ENVS))
def test_a_saved_state_continues_bit_by_bit(id: str) -> None:
    def actions(step: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(step)
        return torch.randint(0, 2, (N,), generator=generator) if id == "CartPole" else torch.randn(N, 1, generator=generator)

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
