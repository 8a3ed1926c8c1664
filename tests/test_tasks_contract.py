"""What every task kind promises: time-outs, terminal observations, reset modes, seeds, and errors that a user can act on."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
import yaml
from gymnasium import spaces

from core import registry, schema
from core.build import make_env
from core.errors import UserError
from core.vecenv import VecEnv, action_kind
from tasks import envpool_task
from tests.task_envs import Odd, register

CFG = Path(__file__).parent.parent / "cfg" / "task"
GENERIC: dict[str, dict[str, Any]] = {
    "gymnasium": {"id": "CartPole-v1"},
    "envpool": {"id": "CartPole-v1"},
    "torch": {"id": "CartPole"},
    "gym": {"id": "CartPole-v1"},
    "pettingzoo": {"id": "mpe2.simple_spread_v3"},
    "warp": {"id": "Ant"},
    "mjlab": {"id": "Mjlab-Cartpole-Balance"},
    "maniskill": {"id": "PickCube-v1"},
    "brax": {"id": "fast"},
    "from_train": {"env_name": "CartPole-v1", "vecenv": "sync", "num_envs": 2},
}


@pytest.fixture(autouse=True, scope="module")
def _shelves() -> None:
    registry.discover("tasks")


def build(kind: str, num_envs: int = 2, seed: int | None = 0, **options: Any) -> VecEnv:
    options = {"device": "cpu", "render_mode": None, **options}
    return registry.tasks.get(kind)(num_envs=num_envs, seed=seed, **options)


def actions_for(env: VecEnv, rng: np.random.Generator) -> Any:
    n = env.num_envs * env.num_agents
    space: Any = env.action_space
    if action_kind(space) == "continuous":
        actions: Any = rng.uniform(space.low, space.high, (n, *space.shape)).astype(np.float32)
    elif action_kind(space) == "discrete":
        actions = rng.integers(0, space.n, n)
    else:
        actions = np.stack([rng.integers(0, k, n) for k in space.nvec], axis=1)
    return torch.as_tensor(actions) if env.is_torch else actions


def play(env: VecEnv, steps: int) -> list[np.ndarray]:
    """Observations, rewards and dones of `steps` random steps that are the same for every environment."""
    rng = np.random.default_rng(7)
    seen = [np.asarray(env.reset())]
    for _ in range(steps):
        obs, rewards, dones, _ = env.step(actions_for(env, rng))
        seen += [np.asarray(obs), np.asarray(rewards), np.asarray(dones)]
    return seen


def read(path: Path) -> dict[str, Any]:
    """A task's YAML on top of those that its `defaults` name."""
    own = yaml.safe_load(path.read_text())
    below = [read(CFG / f"{name}.yaml") for name in own.pop("defaults", [])]
    return {key: value for part in [*below, own] for key, value in part.items()}


# ---- every YAML ------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*__array_wrap__:DeprecationWarning")  # ManiSkill asks NumPy about torch tensors
@pytest.mark.parametrize("path", sorted(CFG.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_yaml_builds_and_steps(path: Path) -> None:
    task = {**read(path), **GENERIC.get(path.stem, {})}
    name, kind = task.pop("name"), task.pop("kind")
    num_envs = task["num_envs"] = 1 if kind == "maniskill" else 2  # its CPU simulation has one
    valid = schema.of_task(registry.tasks.get(kind))
    assert name == path.stem
    assert valid is not None
    assert set(task) <= set(valid)
    if kind in registry.needs and registry.needs[kind].missing():
        pytest.skip(f"{name}: not installed: {', '.join(registry.needs[kind].missing())}")
    try:
        env = make_env({"task": {"name": name, "kind": kind, **task}}, num_envs, 0, "cpu")
    except UserError as error:
        if not any(lacking in str(error) for lacking in ("Qt 5", "rendering device", "physical device", "vk::")):
            raise
        pytest.skip(f"{name}: {error}")  # Procgen draws with the system's Qt, ManiSkill wants Vulkan: a bare machine lacks both
    try:
        shape = env.observation_space.shape
        assert env.observation_space.dtype in (np.float32, np.uint8)
        obs = env.reset()
        for _ in range(3):
            obs, rewards, dones, infos = env.step(actions_for(env, np.random.default_rng(0)))
        obs = obs["obs"] if isinstance(obs, dict) else obs  # beside the whole vector, where some of it is hidden
        assert shape is not None
        assert tuple(obs.shape) == (num_envs * env.num_agents, *shape)
        assert str(obs.dtype).endswith(str(env.observation_space.dtype))
        assert rewards.shape == dones.shape == infos["time_outs"].shape == (num_envs * env.num_agents,)
        assert str(rewards.dtype).endswith("float32")
        assert str(dones.dtype).endswith("bool")
        assert ("terminal_obs" in infos) == (env.reset_mode == "same_step")
    finally:
        env.close()


@pytest.mark.parametrize("id", ["CartPole-v1", "Acrobot-v1", "Pendulum-v1", "LunarLander-v3", "BipedalWalker-v3"])
def test_envpool_tasks_have_gymnasiums_shapes_and_time_limits(id: str) -> None:
    import envpool

    env = build("envpool", id=id)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Box2D's SWIG module warns while it loads, and crashes where that is an error
        twin = gymnasium.make(id)
    assert env.observation_space.shape == twin.observation_space.shape
    assert env.action_space == twin.action_space
    assert envpool.make_spec(id).config.max_episode_steps == twin.spec.max_episode_steps  # type: ignore[union-attr]  # every gymnasium.make sets a spec
    env.close()


# ---- episode ends ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vecenv", ["sync", "async"])
def test_termination_gymnasium(vecenv: str) -> None:
    env = build("gymnasium", id=register("Counter-v0", length=3), vecenv=vecenv)
    assert env.reset()[:, :2].tolist() == [[0, 0], [0, 0]]
    for step in (1, 2):
        obs, rewards, dones, infos = env.step(np.zeros(2, int))
        assert obs[:, :2].tolist() == [[step, 0]] * 2
        assert rewards.tolist() == [step, step]
        assert not dones.any()
    obs, rewards, dones, infos = env.step(np.zeros(2, int))
    assert dones.all()
    assert not infos["time_outs"].any()
    assert rewards.tolist() == [3, 3]
    assert obs[:, :2].tolist() == [[0, 1], [0, 1]]  # already the next episode
    assert infos["terminal_obs"][:, :2].tolist() == [[3, 0], [3, 0]]
    assert infos["scores"].tolist() == [3, 3]  # of the last step, although an episode has begun since
    assert obs.dtype == np.float32
    assert rewards.dtype == np.float32
    env.close()


@pytest.mark.parametrize("vecenv", ["sync", "async"])
def test_time_out_gymnasium(vecenv: str) -> None:
    env = build("gymnasium", id=register("Counter-v0", length=9), vecenv=vecenv, max_episode_steps=2)
    env.reset()
    assert not env.step(np.zeros(2, int))[3]["time_outs"].any()
    obs, _, dones, infos = env.step(np.zeros(2, int))
    assert dones.all()
    assert infos["time_outs"].all()
    assert obs[:, 0].tolist() == [0, 0]
    assert infos["terminal_obs"][:, 0].tolist() == [2, 2]
    env.close()


def test_ending_and_running_out_of_time_at_once_is_no_time_out() -> None:
    env = build("gymnasium", id=register("Counter-v0", length=2), max_episode_steps=2)
    env.reset()
    env.step(np.zeros(2, int))
    _, _, dones, infos = env.step(np.zeros(2, int))
    assert dones.all()
    assert not infos["time_outs"].any()


def test_only_the_rows_that_ended_change() -> None:
    """CartPole pushed left in row 0 only falls there first; row 1 goes on with its own observation."""
    env = build("gymnasium", id="CartPole-v1", num_envs=2)
    env.reset()
    for step in range(60):
        obs, _, dones, infos = env.step(np.array([0, step % 2]))
        if dones.any():
            break
    assert dones.tolist() == [True, False]
    assert np.abs(infos["terminal_obs"][0, 2]) > 0.2095
    assert np.abs(obs[0]).max() <= 0.05
    assert (infos["terminal_obs"][1] == obs[1]).all()


def test_envpool_resets_in_the_next_step() -> None:
    env = build("envpool", id="CartPole-v1", num_envs=2, options={"max_episode_steps": 3})
    assert env.reset_mode == "next_step"
    env.reset()
    for step in range(1, 4):
        last, rewards, dones, infos = env.step(np.array([step % 2, step % 2]))
        assert rewards.tolist() == [1, 1]
        assert dones.tolist() == [step == 3] * 2
        assert infos["time_outs"].tolist() == [step == 3] * 2
    first, rewards, dones, infos = env.step(np.array([0, 1]))
    assert rewards.tolist() == [0, 0]
    assert not dones.any()
    assert not infos["time_outs"].any()
    assert np.abs(first).max() <= 0.05
    assert np.abs(last).max() > 0.05
    assert infos["elapsed_step"].tolist() == [0, 0]
    env.close()


def test_envpool_termination_is_no_time_out() -> None:
    env = build("envpool", id="CartPole-v1", num_envs=1)
    env.reset()
    for _ in range(30):
        _, _, dones, infos = env.step(np.array([1]))
        if dones[0]:
            break
    assert dones[0]
    assert not infos["time_outs"][0]


def test_a_library_that_an_envpool_family_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(spec: Any) -> None:
        raise ImportError("EnvPool Procgen requires the system Qt 5 runtime on Linux.")

    monkeypatch.setattr(envpool_task, "_option_names", refuse)  # which imports the family's library first
    with pytest.raises(UserError, match=r"'CartPole-v1' at task\.id needs: .*Qt 5"):
        build("envpool", id="CartPole-v1")


def test_envpool_scores_are_raw_and_survive_a_lost_life() -> None:
    env = build("envpool", id="Breakout-v5", num_envs=8, options={"episodic_life": True, "reward_clip": True})
    rng = np.random.default_rng(0)
    env.reset()
    mine, lost_life_with_points, games = np.zeros(8), 0, 0
    for _ in range(400):
        obs, rewards, dones, infos = env.step(rng.integers(0, 4, 8))
        assert rewards.max() <= 1.0
        mine += rewards  # in Breakout's first two rows a brick is worth 1, so raw and clipped scores agree early on
        assert (infos["scores"] >= mine).all()
        lost_life_with_points += int(((infos["scores"] > 0) & dones & (infos["lives"] > 0)).sum())
        over = dones & (infos["lives"] == 0)
        games += int(over.sum())
        mine[over] = 0.0
    assert lost_life_with_points > 0
    assert games > 0
    assert obs.dtype == np.uint8
    assert obs.shape == (8, 4, 84, 84)
    env.close()


# ---- seeds -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "options"), [("gymnasium", {"id": "CartPole-v1"}), ("envpool", {"id": "CartPole-v1"})])
def test_without_a_seed_runs_differ(kind: str, options: dict[str, Any]) -> None:
    first, second = (build(kind, seed=None, **options).reset() for _ in range(2))
    assert (first != second).any()


# ---- spaces ----------------------------------------------------------------------------------------------------------


def odd(observation_space: spaces.Space, action_space: spaces.Space, wrappers: list[Any] | None = None) -> VecEnv:
    gymnasium.registry.pop("Odd-v0", None)
    gymnasium.register("Odd-v0", entry_point=lambda **kwargs: Odd(**kwargs))
    options = {"observation_space": observation_space, "action_space": action_space, "disable_env_checker": True}
    return build("gymnasium", id="Odd-v0", options=options, wrappers=wrappers)


BOX = spaces.Box(-1.0, 1.0, (2,), np.float64)


@pytest.mark.parametrize(
    ("space", "shape"),
    [
        (spaces.Discrete(4), (4,)),
        (spaces.MultiDiscrete([2, 3]), (5,)),
        (spaces.MultiBinary(3), (3,)),
        (spaces.Tuple([BOX, spaces.Discrete(3)]), (5,)),
        (spaces.Box(0, 255, (8, 8, 3), np.uint8), (8, 8, 3)),
    ],
)
def test_observation_spaces(space: spaces.Space, shape: tuple[int, ...]) -> None:
    env = odd(space, spaces.Discrete(2))
    obs = env.reset()
    assert isinstance(env.observation_space, spaces.Box)
    assert env.observation_space.shape == shape
    assert obs.shape == (2, *shape)
    assert obs.dtype == env.observation_space.dtype
    assert obs.dtype == (np.uint8 if len(shape) == 3 else np.float32)


def test_a_dict_stays_a_dict() -> None:
    env = odd(spaces.Dict(place=BOX, room=spaces.Discrete(3)), spaces.Discrete(2))
    obs = env.reset()
    assert {key: value.shape for key, value in obs.items()} == {"place": (2, 2), "room": (2, 3)}
    assert (obs["room"].sum(axis=1) == 1).all()
    assert obs["place"].dtype == np.float32


@pytest.mark.parametrize(
    ("space", "action", "given"),
    [
        (spaces.Discrete(3, start=5), 2, 7),
        (spaces.MultiDiscrete([2, 3]), [1, 2], [1, 2]),
        (spaces.MultiDiscrete([2, 3], start=[1, 1]), [1, 2], [2, 3]),
        (spaces.Tuple([spaces.Discrete(2), spaces.Discrete(4)]), [1, 3], (1, 3)),
        (spaces.MultiBinary(2), [0, 1], [0, 1]),
        (spaces.Box(-1.0, 1.0, (2, 2), np.float32), [0.1, 0.2, 0.3, 0.4], [[0.1, 0.2], [0.3, 0.4]]),
    ],
)
def test_action_spaces(space: spaces.Space, action: Any, given: Any) -> None:
    env: Any = odd(BOX, space)
    action_kind(env.action_space)  # one that a policy knows
    env.reset()
    dtype = np.float32 if isinstance(space, spaces.Box) else np.int64
    env.step(np.array([action, action], dtype=dtype))
    assert np.allclose(env._group.envs[0].env.unwrapped.last_action, given)


def test_wrappers_by_name_and_by_path() -> None:
    env = build(
        "gymnasium",
        id="CartPole-v1",
        wrappers=["FlattenObservation", {"name": "gymnasium.wrappers.FrameStackObservation", "stack_size": 4}],
    )
    assert env.observation_space.shape == (4, 4)
    assert env.reset().shape == (2, 4, 4)


def test_flattened_dict_of_envpool() -> None:
    flat, whole = (build("envpool", id="CheetahRun-v1", flatten_obs=flatten) for flatten in (True, False))
    vector, parts = flat.reset(), whole.reset()
    assert vector.shape == (2, 17)
    assert flat.observation_space.shape == (17,)
    assert vector.dtype == np.float32
    assert (vector == np.concatenate([parts["position"], parts["velocity"]], axis=1)).all()
    assert np.isneginf(flat.observation_space.low).all()  # type: ignore[attr-defined]  # EnvPool says 2e-308


# ---- pictures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "options", "shape"),
    [
        ("gymnasium", {"id": "CartPole-v1"}, (400, 600, 3)),
        ("envpool", {"id": "CartPole-v1"}, (400, 600, 3)),
        ("envpool", {"id": "Pong-v5"}, (336, 336, 3)),
        ("torch", {"id": "CartPole"}, (400, 600, 3)),
        ("torch", {"id": "Pendulum"}, (500, 500, 3)),
        ("torch", {"id": "Acrobot"}, (500, 500, 3)),
        ("torch", {"id": "PointMass"}, (500, 500, 3)),
        ("torch", {"id": "Quadcopter"}, (500, 500, 3)),
        ("rl_games", {"env_name": "CartPole-v1", "vecenv": "sync"}, (400, 600, 3)),
    ],
)
def test_render(kind: str, options: dict[str, Any], shape: tuple[int, ...]) -> None:
    env = build(kind, render_mode="rgb_array", **options)
    assert env.can_render
    env.reset()
    env.step(actions_for(env, np.random.default_rng(0)))
    picture = env.render()
    assert picture.shape == shape
    assert picture.dtype == np.uint8
    assert picture.std() > 0
    env.close()
    assert not build(kind, **options).can_render


# ---- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("gymnasium", {}, "task.id is missing"),
        ("gymnasium", {"id": "CartPol-v1"}, "Did you mean 'CartPole-v1'"),
        ("gymnasium", {"id": "nowhere:Thing-v0"}, "cannot import 'nowhere'"),
        ("gymnasium", {"id": "ALE/Pong-v5"}, "pip install ale-py"),
        ("gymnasium", {"id": "CartPole-v1", "vecenv": "rya"}, "Did you mean 'ray'"),
        ("gymnasium", {"id": "CartPole-v1", "num_workers": 2}, "belong to task.vecenv=ray"),
        ("gymnasium", {"id": "CartPole-v1", "options": {"gravty": 1}}, "task.options.*gravty"),
        (
            "gymnasium",
            {"id": "CartPole-v1", "wrappers": ["FrameStackObservatio"]},
            r"wrappers\[0\]. Did you mean 'FrameStackObservation'",
        ),
        (
            "gymnasium",
            {"id": "CartPole-v1", "wrappers": [{"name": "FrameStackObservation"}]},
            r"wrappers\[0\] FrameStack.*stack_size",
        ),
        ("gymnasium", {"id": "CartPole-v1", "wrappers": [{"stack_size": 4}]}, "has no name"),
        ("gymnasium", {"id": "CartPole-v1", "wrappers": ["my.place.Wrapper"]}, "no wrapper 'my.place.Wrapper'"),
        ("envpool", {}, "task.id is missing"),
        ("envpool", {"id": "CartPole-v9"}, "Did you mean 'CartPole-v"),
        ("envpool", {"id": "CartPole-v1", "options": {"max_episode_step": 5}}, "Did you mean 'max_episode_steps'"),
        ("envpool", {"id": "CartPole-v1", "options": {"max_episode_steps": "many"}}, "EnvPool refuses"),
        ("envpool", {"id": "CartPole-v1", "options": {"seed": 5}}, "task.options.seed belongs to seed"),
        (
            "envpool",
            {"id": "Pendulum-v1", "render_mode": "rgb_array", "render_id": "CartPole-v1"},
            "same spaces in task.render_id",
        ),
        ("envpool", {"id": "CheetahRun-v1", "render_mode": "rgb_array"}, "task.render_id"),
        ("torch", {}, "unknown torch environment 'None'"),
        ("torch", {"id": "Cartpole"}, "Did you mean 'CartPole'"),
        ("rl_games", {}, "task.env_name is missing"),
        ("rl_games", {"env_name": "CartPole-v2"}, "Did you mean 'CartPole-v"),
        (
            "rl_games",
            {"env_name": "openai_gym", "env_config": {"name": "CartPol-v1"}, "vecenv": "sync"},
            "Did you mean: `CartPole`",
        ),
    ],
)
def test_mistakes(kind: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(kind, **options)


def test_spaces_that_no_policy_can_use() -> None:
    with pytest.raises(UserError, match="no fixed size"):
        odd(spaces.Sequence(BOX), spaces.Discrete(2))
    with pytest.raises(UserError, match="action space"):
        odd(BOX, spaces.Dict(a=spaces.Discrete(2)))


def test_no_opengl(monkeypatch: pytest.MonkeyPatch) -> None:
    from tasks import offscreen

    monkeypatch.setattr(offscreen.ctypes.util, "find_library", lambda name: None)
    for variable in ("MUJOCO_GL", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(UserError, match="libosmesa6"):
        build("envpool", id="HalfCheetah-v4", render_mode="rgb_array")


def test_a_dead_process_of_async() -> None:
    env = build("gymnasium", id=register("Counter-v0", exit_at=1), vecenv="async")
    env.reset()
    with pytest.raises(UserError, match=r"environments? .* died"):
        env.step(np.zeros(2, int))
    env.close()


def test_envpool_gets_a_thread_more_than_cores_but_not_more_than_environments():
    cores = len(os.sched_getaffinity(0))
    assert envpool_task.threads("envpool.mujoco.gym", 64 + cores) == cores + 1
    assert envpool_task.threads("envpool.mujoco.gym", 1) == 1
    assert envpool_task.threads("envpool.classic_control", 64) == 0  # its own choice


# ---- gymnasium's wrappers from a YAML -----------------------------------------------------------------------------------


def test_lists_become_what_gymnasiums_wrappers_take() -> None:
    env: Any = build("gymnasium", id="Pendulum-v1", wrappers=[{"name": "RescaleAction", "min_action": [-0.5], "max_action": [0.5]}])
    assert env.action_space.high.tolist() == [0.5]
    env.close()
    env = odd(spaces.Box(0, 255, (8, 8, 3), np.uint8), spaces.Discrete(2), [{"name": "ReshapeObservation", "shape": [8, 24]}])
    assert env.observation_space.shape == (8, 24)


def test_stacked_pictures_become_channels_the_oldest_first() -> None:
    env = odd(spaces.Box(0, 255, (8, 8, 3), np.uint8), spaces.Discrete(2), [{"name": "FrameStackObservation", "stack_size": 2}])
    assert env.observation_space.shape == (8, 8, 6)
    first = env.reset()
    second = env.step(np.zeros(2, int))[0]
    assert second.shape == (2, 8, 8, 6)
    assert (second[..., :3] == first[..., 3:]).all()
    assert (second[..., :3] != second[..., 3:]).any()


def test_a_function_is_named_by_its_path() -> None:
    env = build("gymnasium", id="CartPole-v1", wrappers=[{"name": "TransformReward", "func": "numpy.negative"}])
    env.reset()
    assert env.step(np.zeros(2, int))[1].tolist() == [-1, -1]
    env.close()


@pytest.mark.parametrize(
    ("wrapper", "message"),
    [
        ({"name": "TransformReward", "func": "lambda r: r / 10"}, r"wrappers\[0\].func='lambda r: r / 10' is no function"),
        ({"name": "TransformReward", "func": "numpy.tanhh"}, "is no function"),
        ("Autoreset", "resets environments itself"),
    ],
)
def test_wrappers_that_cannot_be(wrapper: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build("gymnasium", id="CartPole-v1", wrappers=[wrapper])
