"""ManiSkill's own environments behind the contract, on its CPU simulation. For the packages: docs/tasks/simulators.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from core.errors import UserError
from tasks.maniskill_task import SEVERAL_ON_CPU, make
from tests.command import SMALL, command

pytest.importorskip("mani_skill")
sapien = pytest.importorskip("sapien")
# ManiSkill asks NumPy about torch tensors, which torch 2.13 answers in an old way
pytestmark = [pytest.mark.long, pytest.mark.timeout(300), pytest.mark.filterwarnings("ignore::DeprecationWarning")]
try:
    sapien.render.get_device_summary()
except RuntimeError as error:
    pytest.skip(f"SAPIEN: {error}", allow_module_level=True)

LENGTH = 50  # steps of an episode of PickCube


def build(seed: int | None = 1, **options: Any) -> Any:
    return make(num_envs=1, seed=seed, device="cpu", **{"id": "PickCube-v1", **options})


def play(seed: int) -> list[tuple[Any, ...]]:
    env = build(seed)
    generator = torch.Generator().manual_seed(0)
    seen: list[tuple[Any, ...]] = [(env.reset(),)]
    for _ in range(2 * LENGTH + 1):
        obs, rewards, dones, infos = env.step(2 * torch.rand(1, 8, generator=generator) - 1)
        seen.append((obs, rewards, dones, infos["time_outs"], infos["terminal_obs"], infos["success"]))
    env.close()
    return seen


def test_same_seed_same_episodes_and_how_they_end() -> None:
    first, again, other = play(3), play(3), play(4)
    assert all(torch.equal(a, b) for ours, theirs in zip(first, again, strict=True) for a, b in zip(ours, theirs, strict=True))
    starts = [seen[step][0] for seen in (first, other) for step in (0, LENGTH, 2 * LENGTH)]
    assert all(not torch.equal(a, b) for i, a in enumerate(starts) for b in starts[:i])  # no two episodes begin alike
    for step, (obs, rewards, dones, time_outs, terminal_obs, success) in enumerate(first[1:], 1):
        assert (obs.dtype, rewards.dtype, dones.dtype) == (torch.float32, torch.float32, torch.bool)
        assert dones.item() == time_outs.item() == (step % LENGTH == 0)
        assert torch.equal(obs, terminal_obs) != dones.item()
        assert not success.item()


def test_pictures_for_the_policy_and_the_state_for_the_critic() -> None:
    env = build(obs_mode="rgb+state", obs_group="sensor_data", state_group="state")
    assert env.observation_space["base_camera"]["rgb"].shape == (128, 128, 3)
    assert env.state_space.shape == (42,)
    picture = env.reset()["obs"]["base_camera"]["rgb"]
    assert picture.dtype == torch.uint8
    assert picture.float().std() > 5  # there is something to see
    env.close()


def test_it_trains_and_plays_and_is_filmed(tmp_path: Path) -> None:
    own = ("task=maniskill", "task.id=PickCube-v1", "task.max_episode_steps=10", "train=PPO", "seed=1", *SMALL, "num_envs=1")
    result = command(*own, "max_epochs=2", f"run_dir={tmp_path / 'run'}")
    assert result["frames"] == 2 * 16
    played = command(
        *own, "test=True", f"checkpoint={tmp_path / 'run' / 'nn' / 'last.pth'}", "player.games_num=2", "player.num_envs=1", "video=True"
    )
    assert played["length"]["mean"] == 10.0
    assert "success_rate" in played
    assert list((tmp_path / "run" / "videos").glob("*.mp4"))


def test_several_on_cpus_are_gymnasiums(tmp_path: Path) -> None:
    words = [word.strip("'") for word in SEVERAL_ON_CPU.format(id="PickCube-v1").replace(": state", ":state").split()]
    result = command(*words, "task.num_workers=2", "train=PPO", "seed=1", *SMALL, "max_epochs=2", f"run_dir={tmp_path / 'run'}")
    assert result["frames"] == 2 * 4 * 16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"id": "PickCub-v1"}, r"unknown ManiSkill task 'PickCub-v1' at task\.id\. Did you mean 'PickCube-v1'"),
        ({"obs_mode": "stat"}, r"ManiSkill refuses task\.id 'PickCube-v1'.*'stat'"),
        ({"control_mode": "x"}, r"ManiSkill refuses task\.id 'PickCube-v1'.*x not in supported modes"),
        ({"reward_mode": "y"}, r"ManiSkill refuses task\.id 'PickCube-v1'.*Unsupported reward mode: y"),
        ({"options": {"robot": "x"}}, r"ManiSkill refuses task\.id 'PickCube-v1'.*robot"),
    ],
)
def test_mistakes(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(**options)


def test_several_in_one_process_take_a_gpu() -> None:
    with pytest.raises(UserError, match=r"(?s)have multiple environments.*Several on a CPU, each in a process: task=gymnasium"):
        make(num_envs=2, seed=1, device="cpu", id="PickCube-v1")
