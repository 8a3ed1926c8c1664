"""The quadcopter against mechanics worked out by hand: fall, hover, torques, conserved quantities, limits, reward."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from tasks.torch_task import Quadcopter
from tests.command import command

NONE, FULL = -1.0, 1.0
G, M = 9.81, 0.028
INERTIA = torch.tensor([16.571710e-6, 16.655602e-6, 29.261652e-6])
TARGET = [0.0, 0.0, 1.0]
AT_REST = [0.0, 0.0, 0.0]
LEVEL = [1.0, 0.0, 0.0, 0.0]


def env(n: int = 1) -> Quadcopter:
    return Quadcopter(num_envs=n, seed=0, device="cpu")


def state(position: Any = TARGET, velocity: Any = AT_REST, attitude: Any = LEVEL, rates: Any = AT_REST) -> torch.Tensor:
    return torch.tensor([[*position, *velocity, *attitude, *rates]])


def after(actions: list[float], steps: int, start: torch.Tensor) -> torch.Tensor:
    """(13,) of the physics alone, which knows no end of an episode."""
    simulator, now = env(), start
    for _ in range(steps):
        now = simulator._advance(now, torch.tensor([actions]))[0]
    return now[0]


def rotation(q: torch.Tensor) -> torch.Tensor:
    """(3, 3): body to world."""
    w, x, y, z = q.tolist()
    return torch.tensor(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def test_free_fall() -> None:
    """0.3 s without thrust, thrown upwards with 1 m/s and forward with 0.5: z = 1 + 0.3 - 9.81 * 0.09 / 2 = 0.85855, v = 1 - 2.943."""
    fallen = after([NONE] * 4, 30, state(velocity=[0.5, 0.0, 1.0]))
    assert fallen[:6].tolist() == pytest.approx([0.15, 0.0, 0.85855, 0.5, 0.0, -1.943], abs=1e-5)
    assert fallen[6:].tolist() == [*LEVEL, *AT_REST]


def test_hover_keeps_still() -> None:
    """Each motor carries 0.028 * 9.81 / 4 = 0.06867 N of its 0.1597 N: action 2 * 0.43 - 1 = -0.14."""
    assert pytest.approx(-0.14, abs=1e-4) == Quadcopter.HOVER
    assert torch.allclose(after([Quadcopter.HOVER] * 4, 100, state()), state()[0], atol=1e-5)


def test_full_thrust_rises() -> None:
    """4 * 0.1597 N / 0.028 kg - 9.81 m/s^2 = 13.004 m/s^2: 0.13004 m/s after one step of 0.01 s, 0.65 mm higher."""
    risen = after([FULL] * 4, 1, state())
    assert risen[[2, 5]].tolist() == pytest.approx([1.00065, 0.13004], abs=1e-5)


@pytest.mark.parametrize(
    ("actions", "torque"),
    [
        ([NONE, NONE, FULL, FULL], [2 * 0.1597 * 0.046 / math.sqrt(2), 0.0, 0.0]),  # the left motors lift: it rolls to the right
        ([NONE, FULL, FULL, NONE], [0.0, 2 * 0.1597 * 0.046 / math.sqrt(2), 0.0]),  # the rear ones: nose down
        ([NONE, FULL, NONE, FULL], [0.0, 0.0, 2 * 0.1597 * 0.005964552]),  # those that turn clockwise: it turns counter-clockwise
    ],
)
def test_a_pure_torque_gives_the_acceleration_of_the_inertia(actions: list[float], torque: list[float]) -> None:
    """Roll: 0.3194 N * 0.03253 m = 0.01039 N m; over 16.57e-6 kg m^2 that is 627 rad/s^2. From rest the axes do not mix."""
    rates = after(actions, 1, state())[10:]
    assert torch.allclose(rates, 0.01 * torch.tensor(torque) / INERTIA, rtol=1e-5, atol=1e-6)
    if torque[0]:
        assert rates[0].item() == pytest.approx(6.27, abs=0.005)


def test_the_thrust_points_where_the_body_does() -> None:
    """Rolled to the right by 30 degrees about x (forward), it is pulled to the right, that is -y: -sin 30 * 4 * 0.1597 / 0.028 = -11.407."""
    half = math.radians(15)
    pulled = after([FULL] * 4, 1, state(attitude=[math.cos(half), math.sin(half), 0.0, 0.0]))
    lift = 4 * 0.1597 / M
    assert (pulled[3:6] / 0.01).tolist() == pytest.approx([0.0, -0.5 * lift, math.cos(math.radians(30)) * lift - G], abs=1e-3)


def test_a_turn_about_one_axis() -> None:
    """Without thrust, 2 rad/s about x for half a second is an angle of 1 rad."""
    turned = after([NONE] * 4, 50, state(rates=[2.0, 0.0, 0.0]))
    assert turned[6:10].tolist() == pytest.approx([math.cos(0.5), math.sin(0.5), 0.0, 0.0], abs=1e-5)


def test_tumbling_keeps_energy_and_angular_momentum() -> None:
    """In free fall, about all three axes at once: half w I w and R I w stay, though w itself does not."""
    start = state(rates=[6.0, -9.0, 4.0])
    end = after([NONE] * 4, 100, start)
    energy = [float((0.5 * INERTIA * rates.square()).sum()) for rates in (start[0, 10:], end[10:])]
    momentum = [rotation(s[6:10]) @ (INERTIA * s[10:]) for s in (start[0], end)]
    assert energy[1] == pytest.approx(energy[0], rel=1e-4)
    assert torch.allclose(momentum[1], momentum[0], rtol=1e-3, atol=1e-8)
    assert (end[10:] - start[0, 10:]).abs().max() > 1.0
    mechanical = [0.5 * M * float(s[3:6].square().sum()) + M * G * float(s[2]) for s in (start[0], end)]
    assert mechanical[1] == pytest.approx(mechanical[0], rel=1e-4)


def test_attitudes_stay_normalised() -> None:
    simulator = env(256)
    generator = torch.Generator().manual_seed(0)
    assert torch.allclose(simulator.state[:, 6:10].norm(dim=1), torch.ones(256))
    for _ in range(200):
        simulator.step(4 * torch.rand((256, 4), generator=generator) - 2)
        assert torch.allclose(simulator.state[:, 6:10].norm(dim=1), torch.ones(256), atol=1e-6)


def test_first_states() -> None:
    first = env(4000).state
    distance = (first[:, :3] - torch.tensor(TARGET)).abs()
    assert 0.49 < distance.max() <= 0.5
    assert 0.49 < first[:, 3:6].abs().max() <= 0.5
    assert 0.99 < first[:, 10:].abs().max() <= 1.0
    tilts = torch.stack([rotation(q)[2, 2] for q in first[:, 6:10]]).acos()
    assert math.radians(22) < tilts.max() <= 2 * math.atan(0.15 * math.sqrt(2))
    headings = torch.stack([torch.atan2(rotation(q)[1, 0], rotation(q)[0, 0]) for q in first[:, 6:10]])
    assert headings.min() < -3
    assert headings.max() > 3


@pytest.mark.parametrize(
    ("what", "start"),
    [
        ("the ground", state(position=[0.0, 0.0, 0.001], velocity=[0.0, 0.0, -1.0])),
        ("2 m away", state(position=[1.999, 0.0, 1.0], velocity=[1.0, 0.0, 0.0])),
        ("flipped", state(attitude=[math.cos(0.7850), math.sin(0.7850), 0.0, 0.0], rates=[3.0, 0.0, 0.0])),  # 89.95 degrees
        ("spinning", state(rates=[0.0, 0.0, 35.0])),
        ("not a number", state(velocity=[math.nan, 0.0, 0.0])),
        (None, state(position=[1.9, 0.0, 1.0], attitude=[math.cos(0.7), math.sin(0.7), 0.0, 0.0], rates=[0.0, 0.0, 34.0])),
    ],
    ids=str,
)
def test_an_episode_ends(what: str | None, start: torch.Tensor) -> None:
    simulator = env()
    simulator.state = start
    _, _, dones, infos = simulator.step(torch.full((1, 4), Quadcopter.HOVER))
    assert bool(dones) == (what is not None)
    assert not infos["time_outs"].any()
    assert torch.isfinite(simulator.state).all()  # the next episode has begun


def test_reward() -> None:
    """1 on the target at rest. 0.2 m away at 0.4 m/s and 2 rad/s: 1 / (1 + 10 * 0.04 + 0.5 * 0.16 + 0.05 * 4) = 1 / 1.68."""
    simulator = env(2)
    simulator.state = torch.cat([state(), state(position=[0.2 - 0.004, 0.0, 1.0], velocity=[0.4, 0.0, 0.0], rates=[0.0, 0.0, 2.0])])
    rewards = simulator.step(torch.full((2, 4), Quadcopter.HOVER))[1]
    assert rewards.tolist() == pytest.approx([1.0, 1 / 1.68], abs=1e-4)


def test_observation() -> None:
    """Turned to the left by 90 degrees (forward is the world's y): the target, 0.3 m along x and 0.2 m up, is to its right."""
    half = math.sqrt(0.5)
    seen = env()._observe(
        state(position=[-0.3, 0.0, 0.8], velocity=[0.0, 0.5, 0.0], attitude=[half, 0.0, 0.0, half], rates=[1.0, 2.0, 3.0])
    )
    assert seen[0].tolist() == pytest.approx([0.0, -0.3, 0.2, 0.5, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 2.0, 3.0], abs=1e-6)
    rolled = env()._observe(state(attitude=[math.cos(0.1), math.sin(0.1), 0.0, 0.0]))  # 0.2 rad to the right: upwards is to its left
    assert rolled[0, 6:9].tolist() == pytest.approx([0.0, math.sin(0.2), math.cos(0.2)], abs=1e-6)


def test_the_heading_changes_no_observation() -> None:
    """The whole scene turned about the vertical through the target looks the same from the body."""
    simulator = env(64)
    before = simulator._observe(simulator.state)
    c, s = math.cos(1.0), math.sin(1.0)
    turn = torch.tensor([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])
    position, velocity, attitude, rates = simulator.state.split([3, 3, 4, 3], dim=1)
    w, x, y, z = attitude.unbind(dim=1)
    a, b = math.cos(0.5), math.sin(0.5)
    turned = torch.stack([a * w - b * z, a * x - b * y, a * y + b * x, a * z + b * w], dim=1)
    target = torch.tensor(TARGET)
    again = simulator._observe(torch.cat([(position - target) @ turn.T + target, velocity @ turn.T, turned, rates], dim=1))
    assert torch.allclose(again, before, atol=1e-5)


def test_the_picture_shows_what_moves() -> None:
    simulator = Quadcopter(num_envs=1, seed=0, device="cpu", render_mode="rgb_array")
    simulator.state = state()
    there = simulator.render()
    assert there.shape == (500, 500, 3)
    simulator.state = state(position=[0.5, 0.0, 1.2])
    elsewhere = simulator.render()
    red = (there[..., 0] > 150) & (there[..., 1] < 120)  # the front rotors
    red_elsewhere = (elsewhere[..., 0] > 150) & (elsewhere[..., 1] < 120)
    assert red.sum() > 100
    (rows, columns), (rows_elsewhere, columns_elsewhere) = red.nonzero(), red_elsewhere.nonzero()
    assert columns_elsewhere.mean() > columns.mean() + 20
    assert rows_elsewhere.mean() < rows.mean() - 20  # higher up


@pytest.mark.long
def test_ppo_learns_to_hover(tmp_path: Any) -> None:
    command("task=TorchQuadcopter", "max_frames=700_000", "device=cpu", "train.params.torch_threads=1", f"run_dir={tmp_path}/run")
    played = command("test=True", f"checkpoint={tmp_path}/run/nn/best.pth", "player.games_num=32")
    assert played["return"]["mean"] > 350  # random actions crash with some 4, standing still half a metre away is worth 140
