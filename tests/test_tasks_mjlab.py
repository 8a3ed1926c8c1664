"""mjlab's environments behind the contract. For the packages: docs/tasks/simulators.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from core.errors import UserError
from tasks.mjlab_task import make
from tests.command import SMALL, command

pytest.importorskip("mjlab")
pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(900),  # kernels are compiled where no test ran before, and without a GPU each is launched on its own
]

BALANCE = "Mjlab-Cartpole-Balance"


def build(num_envs: int = 3, seed: int | None = 1, **options: Any) -> Any:
    return make(num_envs=num_envs, seed=seed, device="cpu", **{"id": BALANCE, **options})


def test_time_outs_and_terminal_obs() -> None:
    env = build(episode_length_s=0.15)  # 3 steps of 0.05 s
    first = env.reset()
    assert first["obs"].shape == first["states"].shape == (3, 5)
    assert env.observation_space.shape == env.state_space.shape == (5,)
    assert (env.action_space.low, env.action_space.high) == (-1, 1)
    for _ in range(2):
        obs, rewards, dones, infos = env.step(torch.ones(3, 1))
        assert not dones.any()
        assert torch.equal(obs["obs"], infos["terminal_obs"]["obs"])
    last = obs
    obs, rewards, dones, infos = env.step(torch.ones(3, 1))
    assert dones.all()
    assert infos["time_outs"].all()
    assert (rewards.dtype, dones.dtype, obs["obs"].dtype) == (torch.float32, torch.bool, torch.float32)
    terminal = infos["terminal_obs"]["obs"]
    assert (terminal[:, 3] > last["obs"][:, 3]).all()  # pushed to the right all along, the cart is faster still
    assert (obs["obs"][:, 3].abs() < terminal[:, 3]).all()  # and stands again
    assert not env.step(torch.ones(3, 1))[2].any()
    env.close()
    env.close()


def test_a_step_is_mjlabs_own_and_so_is_a_reset() -> None:
    """Until the first end, the same numbers as with mjlab's automatic reset; then the last observation is told besides."""
    ours, theirs = build(episode_length_s=0.15), build(episode_length_s=0.15, terminal_obs=False)
    torch.manual_seed(0)
    a = ours.reset()["obs"]
    torch.manual_seed(0)
    b = theirs.reset()["obs"]
    assert torch.equal(a, b)
    for step in range(3):
        torch.manual_seed(step)
        obs, rewards, dones, infos = ours.step(torch.full((3, 1), 0.5))
        torch.manual_seed(step)
        obs2, rewards2, dones2, infos2 = theirs.step(torch.full((3, 1), 0.5))
        assert torch.equal(dones, dones2)
        assert torch.allclose(rewards, rewards2)
        assert torch.allclose(obs["obs"], obs2["obs"], atol=1e-5)
        assert "terminal_obs" not in infos2


def test_same_seed_same_transitions() -> None:
    def play(seed: int) -> list[torch.Tensor]:
        env = build(seed=seed)
        return [env.reset()["obs"], *(env.step(torch.full((3, 1), 0.3))[0]["obs"] for _ in range(3))]

    first, again, other = play(3), play(3), play(4)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert (first[0] != other[0]).any()


def test_it_trains_with_a_central_value_and_plays(tmp_path: Path) -> None:
    own = ("task=mjlab", f"task.id={BALANCE}", "task.episode_length_s=0.5", "train=PPO", "seed=1", *SMALL)
    result = command(*own, "max_epochs=2", f"run_dir={tmp_path / 'run'}")
    assert result["frames"] == 2 * 4 * 16
    played = command(*own, "test=True", f"checkpoint={tmp_path / 'run' / 'nn' / 'last.pth'}", "player.games_num=2", "player.num_envs=2")
    assert played["length"]["mean"] == 10.0


def test_a_robot_whose_critic_sees_more() -> None:
    env = build(2, id="Mjlab-Velocity-Flat-Unitree-Go1", cfg={"decimation": 2})
    assert (env.observation_space.shape, env.state_space.shape, env.action_space.shape) == ((48,), (72,), (12,))
    assert env._env.cfg.decimation == 2
    env.reset()
    obs, rewards, *_ = env.step(torch.zeros(2, 12))
    assert torch.isfinite(obs["states"]).all()
    assert torch.isfinite(rewards).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"id": "Mjlab-Cartpole-Balanc"},
            r"unknown mjlab task 'Mjlab-Cartpole-Balanc' at task\.id\. Did you mean 'Mjlab-Cartpole-Balance'",
        ),
        ({"obs_group": "policy"}, r"unknown observation group 'policy' at task\.obs_group.*Valid: actor, critic"),
        ({"cfg": {"sim.mujoco.timestp": 0.01}}, r"unknown name 'timestp' at task\.cfg, 'sim\.mujoco\.timestp'\. Did you mean 'timestep'"),
        ({"id": "Mjlab-Tracking-Flat-Unitree-G1"}, r"'Mjlab-Tracking-Flat-Unitree-G1' lacks a file.*task\.cfg"),
        ({"action_bound": 0}, r"task\.action_bound has to be above 0"),
    ],
)
def test_mistakes(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(**options)
