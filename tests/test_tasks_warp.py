"""MuJoCo Warp's worlds: gymnasium's environments step by step, episode ends, saved states, and the page's own task."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import gymnasium
import mujoco
import numpy as np
import pytest
import torch

from core import registry
from core.errors import UserError
from tasks.warp_task import make
from tests.command import SMALL, command

pytest.importorskip("mujoco_warp")
pytestmark = pytest.mark.timeout(900)  # kernels are compiled where no test ran before: two minutes on a free CPU

PAGE = Path(__file__).parent.parent / "docs" / "tasks" / "warp.md"
ELLIPTIC = {"cone": "elliptic"}  # pyramids differ between the two: docs/tasks/warp.md


def build(id: str = "Ant", num_envs: int = 4, seed: int | None = 1, **options: Any) -> Any:
    return make(num_envs=num_envs, seed=seed, device="cpu", id=id, **options)


def random_actions(env: Any, step: int) -> torch.Tensor:
    low, high = torch.tensor(env.action_space.low), torch.tensor(env.action_space.high)
    return low + (high - low) * torch.rand(env.num_envs, len(low), generator=torch.Generator().manual_seed(step))


@pytest.fixture(scope="module")
def swing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that the page shows."""
    path = tmp_path_factory.mktemp("own") / "swing.py"
    path.write_text(textwrap.dedent(PAGE.read_text().split("    # swing.py\n")[1].split("    python train.py")[0]))
    registry.import_outside([str(path)])
    return path


# ---- physics ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("id", ["Ant", "Humanoid"])
def test_steps_are_gymnasiums(id: str) -> None:
    """Every step starts from the same state in both, so that float32 differences cannot grow into chaos."""
    env = build(id, physics=ELLIPTIC)
    twin: Any = gymnasium.make(f"{id}-v5").unwrapped
    twin.reset(seed=0)
    twin.model.opt.cone = mujoco.mjtCone.mjCONE_ELLIPTIC
    twin.model.opt.solver = mujoco.mjtSolver.mjSOL_NEWTON
    env.reset()
    touched = 0
    for step in range(40):
        qpos, qvel, warm = (getattr(env.data, name)[0].double().numpy().copy() for name in ("qpos", "qvel", "qacc_warmstart"))
        mujoco.mj_resetData(twin.model, twin.data)
        twin.set_state(qpos, qvel)
        twin.data.qacc_warmstart[:] = warm
        # the reward's reference position: mujoco has just computed it, ours is that of the last step's last stage
        x = twin.data.xpos[1, :2] if id == "Ant" else [np.average(twin.data.xipos[:, 0], weights=twin.model.body_mass)]
        env._before[0] = torch.as_tensor(np.array(x), dtype=torch.float32)
        actions = random_actions(env, step)
        _, rewards, dones, infos = env.step(actions)
        obs, reward, terminated, _, _ = twin.step(actions[0].double().numpy())
        ours = infos["terminal_obs"][0].double().numpy()
        position, velocity = slice(0, len(qpos) - 2), slice(len(qpos) - 2, len(qpos) - 2 + len(qvel))
        assert np.allclose(ours[position], obs[position], atol=1e-5, rtol=1e-5)
        assert np.allclose(ours[velocity], obs[velocity], atol=1e-4, rtol=1e-4)
        assert np.abs(ours - obs).max() < 5e-4 * max(10.0, np.abs(obs).max())  # contact forces reach thousands of newtons
        assert abs(float(rewards[0]) - reward) < 1e-3
        assert bool(dones[0]) == terminated
        touched += int(np.abs(obs[-78:]).max() > 0)
    assert touched > 5  # contacts took part
    assert env.observation_space.shape == twin.observation_space.shape
    assert np.array_equal(env.action_space.low, twin.action_space.low)
    assert env.max_episode_steps == gymnasium.spec(f"{id}-v5").max_episode_steps


def test_sixty_physics_steps_on_their_own() -> None:
    """No state is handed over in between: an Ant with constant torques falls, touches ground and bounces for 0.6 s as mujoco's does."""
    env = build("Ant", num_envs=1, physics=ELLIPTIC, frame_skip=1, max_episode_steps=100)
    env.reset()
    model, data = env.model, mujoco.MjData(env.model)
    data.qpos[:], data.qvel[:] = env.data.qpos[0].numpy(), env.data.qvel[0].numpy()
    actions = torch.linspace(-0.5, 0.5, 8)[None]
    data.ctrl[:] = actions[0].numpy()
    touched = 0
    for _ in range(60):
        env.step(actions)
        mujoco.mj_step(model, data)
        touched += data.ncon
        assert np.abs(env.data.qpos[0].numpy() - data.qpos).max() < 2e-5
        assert np.abs(env.data.qvel[0].numpy() - data.qvel).max() < 1e-3
    assert touched > 3


def test_the_worlds_are_the_simulators_own_memory() -> None:
    env = build(num_envs=2)
    pointer = env.data.qpos.data_ptr()
    for step in range(3):
        env.step(random_actions(env, step))
    assert env.data.qpos.data_ptr() == env.data.warp_data.qpos.ptr == pointer
    assert env.data.records
    with pytest.raises(AttributeError, match="no array 'qposs'"):
        _ = env.data.qposs


def test_first_states_are_gymnasiums() -> None:
    """Ant: positions uniform in +-0.1 around the model's, velocities normal with 0.1."""
    env = build(num_envs=2000)
    env.reset()
    noise = (env.data.qpos - env.qpos0).abs()
    assert 0.099 < noise.max() <= 0.1001
    assert abs(float(env.data.qvel.std()) - 0.1) < 2e-3


# ---- episodes --------------------------------------------------------------------------------------------------------


def test_time_out_and_terminal_obs() -> None:
    env = build(max_episode_steps=2)
    env.reset()
    assert not env.step(random_actions(env, 0))[2].any()
    obs, rewards, dones, infos = env.step(random_actions(env, 1))
    assert dones.all()
    assert infos["time_outs"].all()
    assert (obs != infos["terminal_obs"]).any(dim=1).all()
    assert torch.equal(obs[:, :13], env.data.qpos[:, 2:])
    assert (obs[:, 27:] == 0).all()  # no contact forces yet
    assert torch.equal(obs, env.current_obs())
    assert (rewards.dtype, dones.dtype, obs.dtype) == (torch.float32, torch.bool, torch.float32)
    assert not env.step(random_actions(env, 2))[2].any()  # the count began anew


def test_only_the_worlds_that_ended_begin_anew() -> None:
    """World 1 is lifted out of the healthy range; the others go on exactly as they do without it."""
    env, other = build(), build()
    for e in (env, other):
        e.reset()
        e.step(random_actions(e, 0))
    env.data.qpos[1, 2] = 1.5
    obs, _, dones, infos = env.step(random_actions(env, 1))
    same, *_ = other.step(random_actions(env, 1))
    assert dones.tolist() == [False, True, False, False]
    assert not infos["time_outs"].any()
    assert infos["terminal_obs"][1, 0] > 1.0
    assert 0.64 < obs[1, 0] < 0.86
    assert torch.equal(obs[[0, 2, 3]], same[[0, 2, 3]])
    assert torch.equal(obs[[0, 2, 3]], infos["terminal_obs"][[0, 2, 3]])
    for step in range(2, 6):  # also after the reset's forward pass, which covers all worlds
        obs, same = env.step(random_actions(env, step))[0], other.step(random_actions(env, step))[0]
        assert torch.equal(obs[[0, 2, 3]], same[[0, 2, 3]])


def test_what_was_returned_stays_as_it_was() -> None:
    env = build()
    env.reset()
    obs, rewards, dones, infos = env.step(random_actions(env, 0))
    kept = [value.clone() for value in (obs, rewards, dones, infos["terminal_obs"])]
    env.step(random_actions(env, 1))
    assert all(torch.equal(a, b) for a, b in zip(kept, (obs, rewards, dones, infos["terminal_obs"]), strict=True))


def test_same_seed_same_transitions() -> None:
    def play(seed: int) -> list[torch.Tensor]:
        env = build(seed=seed, max_episode_steps=5)
        return [env.reset(), *(env.step(random_actions(env, step))[0] for step in range(12))]

    first, again, other = play(3), play(3), play(4)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert (first[0] != other[0]).any()
    assert (first[0][0] != first[0][1]).any()


def test_a_saved_state_continues_bit_by_bit() -> None:
    env, other = build(max_episode_steps=7), build(max_episode_steps=7, seed=99)
    env.reset()
    for step in range(10):
        env.step(random_actions(env, step))
    saved = {key: value.clone() for key, value in env.get_env_state().items()}
    went_on = [env.step(random_actions(env, step)) for step in range(10, 20)]
    assert any(dones.any() for _, _, dones, _ in went_on)
    other.set_env_state(saved)
    for step, (obs, rewards, dones, infos) in zip(range(10, 20), went_on, strict=True):
        again = other.step(random_actions(env, step))
        assert torch.equal(again[0], obs)
        assert torch.equal(again[1], rewards)
        assert torch.equal(again[2], dones)
        assert torch.equal(again[3]["terminal_obs"], infos["terminal_obs"])
    assert env.can_save_state
    with pytest.raises(UserError, match="of 4 environments"):
        build(num_envs=2).set_env_state(saved)


# ---- a task of one's own ---------------------------------------------------------------------------------------------


def test_the_pages_task(swing: Path) -> None:
    """The pole hangs at angle 0, so that a reward near -1 is the start's, and 1 would be upright."""
    env = build("Swing", num_envs=3)
    obs = env.reset()
    assert obs.shape == (3, 5)
    assert env.dt == pytest.approx(0.04)
    _, rewards, dones, infos = env.step(torch.zeros(3, 1))
    assert (rewards < -0.97).all()
    assert not dones.any()
    env.step(torch.ones(3, 1))
    assert (env.step(torch.ones(3, 1))[0][:, 3] > 0.2).all()  # pushed to the right, the cart moves there


def test_the_pages_task_trains_and_plays(swing: Path, tmp_path: Path) -> None:
    own = (f"modules=[{swing}]", "task=warp", "task.id=Swing", "train=PPO", "seed=1", *SMALL)
    result = command(*own, "num_envs=8", "max_epochs=3", f"run_dir={tmp_path / 'run'}")
    assert result["frames"] == 3 * 8 * 16
    played = command(*own, "test=True", f"checkpoint={tmp_path / 'run' / 'nn' / 'last.pth'}", "player.games_num=2", "player.num_envs=2")
    assert played["episodes"] == 2
    assert -260 < played["return"]["mean"] < 250


def test_render() -> None:
    env = build(num_envs=2, render_mode="rgb_array")
    env.reset()
    picture = env.render()
    assert picture.shape == (480, 480, 3)
    assert picture.dtype == np.uint8
    assert picture.std() > 0
    env.close()
    env.close()


# ---- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"id": "ant"}, r"unknown warp environment 'ant' at task\.id\. Did you mean 'Ant'"),
        ({"mjcf": "half_cheeta"}, r"unknown MJCF file 'half_cheeta' at task\.mjcf.*Did you mean 'half_cheetah\.xml'"),
        ({"mjcf": "<mujoco><nothing/></mujoco>"}, "MuJoCo refuses the model"),
        ({"mjcf": "<mujoco/>"}, "has no actuator"),
        ({"physics": {"solvr": "CG"}}, r"unknown physics option 'solvr' at task\.physics\. Did you mean 'solver'"),
        ({"physics": {"solver": "newtn"}}, r"task\.physics\.solver\. Did you mean 'NEWTON'|unknown solver 'newtn'"),
        ({"physics": {"timestep": "fast"}}, r"task\.physics\.timestep"),
        ({"physics": {"noslip_iterations": 3}}, "MuJoCo Warp cannot simulate this model"),
        ({"params": {"ctrl_cost": 0.1}}, r"unknown parameter 'ctrl_cost' at task\.params\. Did you mean 'ctrl_cost_weight'"),
        ({"params": {"healthy_z_range": 3}}, r"task\.params\.healthy_z_range is 3"),
    ],
)
def test_mistakes(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(**options)


def test_params_replace_the_classs_numbers() -> None:
    """Without costs and speed, a healthy step is worth what healthy_reward says."""
    zero = {"ctrl_cost_weight": 0.0, "contact_cost_weight": 0.0, "forward_reward_weight": 0, "healthy_reward": 2.5}
    env = build(params=zero)
    env.reset()
    assert env.step(random_actions(env, 0))[1].tolist() == [2.5] * 4


def test_the_kind_is_registered() -> None:
    registry.discover("tasks")
    assert registry.task_factory("warp") is make
