"""The adapters of Isaac Lab, ManiSkill and IsaacGymEnvs on stand-ins with their interfaces: none of the three can be installed everywhere."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra

from core import registry
from core.errors import UserError
from tasks import isaacgymenvs_task, isaaclab_task, maniskill_task
from tests.command import SMALL, command
from tests.sim_stand_ins import installed


@pytest.fixture(autouse=True)
def packages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with installed(tmp_path_factory.mktemp("packages")):
        yield


def lab(id: str = "Isaac-Count-v0", num_envs: int = 3, **options: Any) -> Any:
    return isaaclab_task.make(num_envs=num_envs, seed=7, device="cpu", id=id, **options)


def skill(id: str = "PickCube-v1", num_envs: int = 3, **options: Any) -> Any:
    return maniskill_task.make(num_envs=num_envs, seed=7, device="cpu", id=id, **options)


def gym(id: str = "Ant", num_envs: int = 3, **options: Any) -> Any:
    return isaacgymenvs_task.make(num_envs=num_envs, seed=7, device="cpu", id=id, **options)


FAST_MIDDLE_SLOW = torch.tensor([[1.0], [0.75], [0.0]])  # x reaches 3 after 3 steps, after 4, never


# ---- Isaac Lab and ManiSkill: the same step ------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [lab, lambda: lab("Isaac-Count-Direct-v0"), skill], ids=["manager", "direct", "maniskill"])
def test_a_reset_in_the_same_step(build: Any) -> None:
    env = build()
    first = env.reset()
    obs_of = (lambda o: o["obs"]) if isinstance(first, dict) else (lambda o: o)
    k = float(obs_of(first)[0, 1])
    kept = []
    for step in (1, 2):
        obs, rewards, dones, infos = env.step(FAST_MIDDLE_SLOW)
        kept.append((obs_of(obs), obs_of(obs).clone(), rewards, rewards.clone()))
        assert obs_of(obs)[:, 0].tolist() == [step, 0.75 * step, 0.0]
        assert not dones.any()
        assert torch.equal(obs_of(infos["terminal_obs"]), obs_of(obs))
    obs, rewards, dones, infos = env.step(FAST_MIDDLE_SLOW)
    assert rewards.tolist() == [3.0, 2.25, 0.0]
    assert dones.tolist() == [True, False, False]
    assert not infos["time_outs"].any()
    assert obs_of(obs).tolist() == [[0.0, k + 1], [2.25, k], [0.0, k]]
    assert obs_of(infos["terminal_obs"]).tolist() == [[3.0, k], [2.25, k], [0.0, k]]
    obs, rewards, dones, infos = env.step(FAST_MIDDLE_SLOW)
    assert dones.tolist() == [False, True, True]
    assert infos["time_outs"].tolist() == [False, False, True]  # row 1 ended in the step in which its time ran out
    assert obs_of(infos["terminal_obs"])[1:].tolist() == [[3.0, k], [0.0, k]]
    assert obs_of(obs).tolist() == [[1.0, k + 1], [0.0, k + 1], [0.0, k + 1]]
    for now, then, reward, reward_then in kept:  # the simulator has written into its tensors since
        assert torch.equal(now, then)
        assert torch.equal(reward, reward_then)
    assert (rewards.dtype, dones.dtype) == (torch.float32, torch.bool)
    assert env.reset_mode == "same_step"
    env.close()
    env.close()


def test_isaac_lab_groups_bounds_and_seed() -> None:
    env = lab(action_bound=2.5)
    assert (env.observation_space.shape, env.state_space.shape) == ((2,), (3,))
    assert (env.action_space.low[0], env.action_space.high[0]) == (-2.5, 2.5)
    assert env._inner.seeds == [7]
    assert env._inner.cfg.seed == 7
    env.reset()
    env.step(torch.ones(3, 1))
    env.step(torch.ones(3, 1))
    obs, _, dones, infos = env.step(torch.ones(3, 1))
    assert dones.all()
    assert obs["states"][:, 2].tolist() == [0, 0, 0]
    assert infos["terminal_obs"]["states"][:, 2].tolist() == [3, 3, 3]
    other = lab(obs_group="critic", state_group=None)
    assert other.state_space is None
    assert other.reset().shape == (3, 3)


def test_values_of_the_tasks_configuration_by_their_paths() -> None:
    env = lab(cfg={"rules.limit": 2, "scene.num_envs": 5})
    env.reset()
    env.step(torch.zeros(5, 1))
    assert env.step(torch.zeros(5, 1))[3]["time_outs"].tolist() == [True] * 5
    with pytest.raises(UserError, match=r"unknown name 'num_env' at task\.cfg, 'scene\.num_env'\. Did you mean 'num_envs'"):
        lab(cfg={"scene.num_env": 5})


def test_isaac_sim_is_started_once_and_first() -> None:
    lab(render_mode="rgb_array")
    lab()
    app: Any = importlib.import_module("isaaclab.app")
    assert app.STARTED == [{"headless": True, "enable_cameras": True, "device": "cpu"}]


def test_isaac_lab_without_terminal_observations() -> None:
    env = lab(terminal_obs=False)
    env.reset()
    for _ in range(4):
        *_, dones, infos = env.step(torch.zeros(3, 1))
    assert dones.all()
    assert infos["time_outs"].all()
    assert "terminal_obs" not in infos


def test_a_finite_horizon_is_no_time_out() -> None:
    env = lab("Isaac-Finite-v0")
    env.reset()
    for _ in range(4):
        *_, dones, infos = env.step(torch.zeros(3, 1))
    assert dones.all()
    assert not infos["time_outs"].any()


def test_a_call_of_reset_tells_no_terminal_observation() -> None:
    env = lab()
    env.reset()
    env.step(torch.ones(3, 1))
    env.reset()
    assert torch.equal((step := env.step(torch.ones(3, 1)))[3]["terminal_obs"]["obs"], step[0]["obs"])


def test_maniskill_tells_success_and_goes_on_where_terminations_are_ignored() -> None:
    env = skill()
    env.reset()
    told = [env.step(torch.ones(3, 1))[3]["success"].tolist() for _ in range(3)]
    assert told == [[False] * 3, [False] * 3, [True] * 3]
    env = skill(ignore_terminations=True)
    env.reset()
    ends = [(step[2].tolist(), step[3]["time_outs"].tolist()) for step in (env.step(torch.ones(3, 1)) for _ in range(4))]
    assert ends[2] == ([False] * 3, [False] * 3)
    assert ends[3] == ([True] * 3, [True] * 3)
    assert env._env._env.unwrapped.seeds[0] == 7


def test_maniskill_pictures() -> None:
    env = skill(obs_mode="rgb", obs_group="sensor_data", state_group="agent")
    obs = env.reset()
    assert obs["obs"].dtype == torch.uint8
    assert env.observation_space.shape == (4, 4, 3)
    assert obs["states"]["qpos"].shape == (3, 2)
    assert env.render().shape == (4, 4, 3)


# ---- IsaacGymEnvs: the next step -----------------------------------------------------------------------------------------


def test_a_reset_in_the_next_step() -> None:
    """Limit 5 as a VecTask counts: progress 4 is the last one."""
    env = gym()
    assert env.reset_mode == "next_step"
    assert env.reset().tolist() == [[0, 0], [0, 0], [0, 0]]
    for step in (1, 2):
        obs, rewards, dones, infos = env.step(FAST_MIDDLE_SLOW)
        assert obs[:, 0].tolist() == [step, 0.75 * step, 0.0]
        assert rewards.tolist() == [step + 0.5, 0.75 * step + 0.5, 0.5]
        assert not dones.any()
        assert "terminal_obs" not in infos
    obs, _, dones, infos = env.step(FAST_MIDDLE_SLOW)
    kept = obs, obs.clone()
    assert dones.tolist() == [True, False, False]
    assert not infos["time_outs"].any()
    assert obs[0].tolist() == [3.0, 0.0]  # the last one of its episode
    obs, rewards, dones, infos = env.step(FAST_MIDDLE_SLOW)
    assert obs[0].tolist() == [0.0, 1.0]  # the action was ignored
    assert rewards.tolist() == [0.0, 3.5, 0.5]
    assert dones.tolist() == [False, True, True]
    assert infos["time_outs"].tolist() == [False, True, True]  # a VecTask cannot tell row 1, which ended in that very step, from row 2
    assert torch.equal(*kept)
    obs, _, dones, _ = env.step(FAST_MIDDLE_SLOW)
    assert obs.tolist() == [[1.0, 1.0], [0.0, 1.0], [0.0, 1.0]]
    assert not dones.any()
    assert env.reset().tolist() == [[0, 2], [0, 2], [0, 2]]


def test_isaac_gym_states_train_info_and_the_hydra_that_runs() -> None:
    with_states = gym("Hand")
    obs = with_states.reset()
    assert (obs["obs"].shape, obs["states"].shape) == ((3, 2), (3, 3))
    assert with_states.state_space.shape == (3,)
    with_states.set_train_info(123)
    assert with_states._env.frames == 123
    marker: Any = object()
    GlobalHydra.instance().hydra = marker
    try:
        gym(overrides=["task.env.episodeLength=9"])
        assert GlobalHydra.instance().hydra is marker
    finally:
        GlobalHydra.instance().hydra = None


def test_isaac_gym_after_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "isaacgym", None)
    with pytest.raises(UserError, match=r"Have it imported first: python -c \"import isaacgym, runpy"):
        gym()


# ---- all of them -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [("isaaclab", "Isaac-Count-v0"), ("maniskill", "PickCube-v1"), ("isaacgymenvs", "Hand")])
def test_they_train_and_play(words: tuple[str, str], tmp_path: Path) -> None:
    own = (f"task={words[0]}", f"task.id={words[1]}", "train=PPO", "seed=1", *SMALL)
    result = command(*own, "max_epochs=2", f"run_dir={tmp_path / 'run'}")
    assert 0 < result["frames"] <= 2 * 4 * 16
    played = command(*own, "test=True", f"checkpoint={tmp_path / 'run' / 'nn' / 'last.pth'}", "player.games_num=2", "player.num_envs=2")
    assert 3 <= played["length"]["mean"] <= 4


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: lab("Isaac-Cuont-v0"), r"unknown Isaac Lab task 'Isaac-Cuont-v0' at task\.id\. Did you mean 'Isaac-Count-v0'"),
        (lambda: lab(obs_group="polisy"), r"unknown observation group 'polisy' at task\.obs_group\. Did you mean 'policy'"),
        (lambda: lab(action_bound=-1), r"task\.action_bound has to be above 0"),
        (lambda: skill("PickCub-v1"), r"unknown ManiSkill task 'PickCub-v1' at task\.id\. Did you mean 'PickCube-v1'"),
        (lambda: skill(options={"robot": "x"}), r"ManiSkill refuses task\.id 'PickCube-v1'.*robot"),
        (lambda: skill(num_envs=9), r"too many for the CPU\. Several on a CPU.*task\.id=PickCube-v1 .*task\.vecenv=ray"),
        (lambda: skill(obs_mode="rgb"), r"unknown observation group 'None' at task\.obs_group\. Valid: agent, sensor_data"),
        (lambda: gym("Andt"), r"unknown IsaacGymEnvs task 'Andt' at task\.id\. Did you mean 'Ant'"),
        (lambda: gym(overrides=["task.env.episodeLenght=9"]), r"task\.overrides: IsaacGymEnvs' configuration refuses"),
        (lambda: gym(render_mode="rgb_array"), "not filmed"),
    ],
)
def test_mistakes(build: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build()


def test_without_the_packages_the_way_to_them_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    registry.discover("tasks")
    monkeypatch.setattr(registry.importlib.util, "find_spec", lambda name: None)  # type: ignore[attr-defined]  # as imported there
    for kind, way in {"isaaclab": "isaac-sim.github.io", "maniskill": r"'\.\[maniskill\]'", "isaacgymenvs": "IsaacGymEnvs"}.items():
        with pytest.raises(UserError, match=f"task.kind '{kind}' needs .* not installed. Try: .*{way}"):
            registry.task_factory(kind)
