"""Differentiable torch environments: gradients of the rewards through `step`, what stops them, and what they cost where none is asked for."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from algos.agent import Agent
from tasks.torch_task import ENVS, PointMass, make
from tests.test_graphs import agent_of, assert_same, run

SMOOTH = ("Pendulum", "PointMass", "Quadcopter")
N = 3


def build(id: str, **options: Any) -> Any:
    return make(**{"num_envs": N, "seed": 1, "device": "cpu", "id": id, "differentiable": True, **options})


def in_float64(env: Any) -> Any:
    """Finite differences in float32 would be rounding alone."""
    for name, value in vars(env).items():
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            setattr(env, name, value.double())
    return env


def some_actions(env: Any, steps: int) -> torch.Tensor:
    """(T, N, A) within the limits, float64."""
    uniform = torch.rand((steps, N, *env.action_space.shape), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (0.8 * torch.as_tensor(env.action_space.high) * (2 * uniform - 1)).requires_grad_()


def rollout(env: Any, actions: torch.Tensor) -> torch.Tensor:
    """(T, N) rewards."""
    return torch.stack([env.step(action)[1] for action in actions])


def test_those_that_are_smooth() -> None:
    assert tuple(name for name in ("Acrobot", "CartPole", *SMOOTH) if ENVS[name].smooth) == SMOOTH


@pytest.mark.parametrize("id", SMOOTH)
def test_gradients_are_finite_differences(id: str) -> None:
    """Of every reward of four steps with respect to every action, and of the last observation, which a critic would see."""
    env = in_float64(build(id))
    start = env.state

    def function(actions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        env.state, env.steps = start, torch.zeros_like(env.steps)
        rewards = rollout(env, actions)
        return rewards, env.current_obs()

    assert torch.autograd.gradcheck(function, (some_actions(env, 4),), eps=1e-6, atol=1e-6)


def test_the_gradient_of_one_push() -> None:
    """1 m left of the target, at rest, pushed with half the force of 4 N for 0.05 s.

    a = 2, x = -1 + 2 * 0.05^2 / 2 = -0.9975, v = 0.1; dx/du = 0.005, dv/du = 0.2;
    d reward / du = -(2 * -0.9975 * 0.005 + 0.2 * 0.1 * 0.2 + 0.02 * 0.5) = 0.009975 - 0.004 - 0.01 = -0.004025.
    """
    env = PointMass(num_envs=1, seed=0, device="cpu", differentiable=True)
    env.state = torch.tensor([[-1.0, 0.0, 0.0, 0.0, 0.0, 0.0]])
    action = torch.tensor([[0.5, 0.0]], requires_grad=True)
    rewards = env.step(action)[1]
    assert rewards.item() == pytest.approx(-(0.9975**2 + 0.001 + 0.0025), abs=1e-6)
    rewards.sum().backward()
    assert action.grad is not None
    assert action.grad[0].tolist() == pytest.approx([-0.004025, 0.0], abs=1e-6)


@pytest.mark.parametrize("id", SMOOTH)
def test_no_gradient_passes_a_reset(id: str) -> None:
    env = build(id, max_episode_steps=3)
    actions = some_actions(env, 6).detach().float().requires_grad_()
    rewards = rollout(env, actions)
    (before,) = torch.autograd.grad(rewards[:3].sum(), actions, retain_graph=True)
    (after,) = torch.autograd.grad(rewards[3:].sum(), actions)
    assert (before[:3].abs().amax(dim=(1, 2)) > 0).all()
    assert (before[3:] == 0).all()
    assert (after[:3] == 0).all()
    assert (after[3:].abs().amax(dim=(1, 2)) > 0).all()


def test_a_reset_of_one_row_leaves_the_others_their_past() -> None:
    env = build("Quadcopter")
    env.state[0, 2] = -1.0  # in the ground: its first step ends the episode
    actions = some_actions(env, 2).detach().float().requires_grad_()
    rewards = rollout(env, actions)
    (gradient,) = torch.autograd.grad(rewards[1].sum(), actions)
    assert (gradient[0, 0] == 0).all()
    assert (gradient[0, 1:] != 0).any(dim=1).all()


def test_detach_forgets_the_past() -> None:
    env = build("Pendulum")
    actions = some_actions(env, 4).detach().float().requires_grad_()
    rollout(env, actions[:2])
    assert env.state.requires_grad
    assert not env.get_env_state()["state"].requires_grad
    env.detach()
    rewards = rollout(env, actions[2:])
    (gradient,) = torch.autograd.grad(rewards.sum(), actions)
    assert (gradient[:2] == 0).all()
    assert (gradient[2:] != 0).any(dim=2).all()


@pytest.mark.parametrize(("differentiable", "grad"), [(False, True), (True, False)])
def test_no_graph_is_built_where_none_is_asked_for(differentiable: bool, grad: bool) -> None:
    env = build("Quadcopter", differentiable=differentiable)
    actions = torch.zeros((N, 4), requires_grad=True)
    with torch.set_grad_enabled(grad):
        obs, rewards, _, infos = env.step(actions)
        assert torch.is_grad_enabled() is grad
    for x in (obs, rewards, infos["terminal_obs"], env.state):
        assert x.grad_fn is None
        assert not x.requires_grad


@pytest.mark.parametrize("id", SMOOTH)
def test_training_is_the_same_with_it(id: str, tmp_path: Any, monkeypatch: Any) -> None:
    """PPO's epochs, bit by bit, and no graph is left behind."""
    seen = []
    for differentiable in (False, True):
        env = ENVS[id](num_envs=8, seed=3, device="cpu", max_episode_steps=9, differentiable=differentiable)
        agent = agent_of(monkeypatch, tmp_path / str(differentiable), Agent, env=env)
        seen.append(run(agent, 3))
        assert env.state.grad_fn is None
    assert_same(*seen)


def test_hidden_observations_stay_differentiable() -> None:
    from core.hidden import HiddenObs

    env = HiddenObs(build("Pendulum"), [2])
    assert env.differentiable
    action = torch.zeros((N, 1), requires_grad=True)
    env.step(action)
    obs, rewards, _, _ = env.step(action)
    assert rewards.requires_grad
    assert obs["obs"].requires_grad
    env.detach()
    assert not env.env.state.requires_grad
    assert not HiddenObs(build("Pendulum", differentiable=False), [2]).differentiable
