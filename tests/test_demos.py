"""Demonstration files: what stands in one, transition by transition, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
import yaml
from gymnasium import spaces

from core import demos
from core.demos import Demonstrations
from core.errors import UserError
from core.policy import Policy
from players.default import Player
from tests.command import SMALL, command, resolve
from tests.test_player_default import PARAMS, Clockwork, Masked


class Told(Clockwork):
    """With same-step reset, tells the last observation: (length, k)."""

    def step(self, actions: Any) -> Any:
        k = np.repeat(self.k, self.num_agents)
        obs, rewards, dones, infos = super().step(actions)
        last = np.stack([np.repeat(self.lengths, self.num_agents), k], axis=1).astype(np.float32)
        return obs, rewards, dones, {**infos, "terminal_obs": self._out(last), "time_outs": np.repeat(self.lengths == 3, self.num_agents)}


def params(**network: Any) -> dict[str, Any]:
    result: dict[str, Any] = yaml.safe_load(PARAMS)
    result["algo"]["name"] = "ppo"
    head = {"mu_activation": "None", "sigma_activation": "None", "mu_init": {"name": "default"}, "sigma_init": {"name": "default"}}
    result["network"] |= {"space": {"discrete": {}, "multi_discrete": {}, "continuous": {**head, "fixed_sigma": True}}, **network}
    return result


def recorded(env: Clockwork, games: int, path: Any, **options: Any) -> tuple[Demonstrations, dict[str, Any], Policy]:
    policy = Policy(params(), env.get_env_info(), env.num_envs, "cpu")
    player: Any = Player.recording()(policy, env, games_num=games, **{"deterministic": True, "seed": 7, **options})
    result = player.run()
    player.save(path, {"task": {"name": "Clockwork"}})
    return Demonstrations.load(path, policy), result, policy


@pytest.mark.parametrize("torch_env", [False, True])
@pytest.mark.parametrize("mode", ["same_step", "next_step"])
def test_transitions_by_hand(mode: str, torch_env: bool, tmp_path: Any) -> None:
    kept, result, _ = recorded(Told([2, 3], mode, torch_env=torch_env), 3, tmp_path / "d.npz")
    # environment 0 plays two games of two steps, environment 1 one of three, in the order in which they end;
    # what environment 0 plays while 1 goes on, and the rows that only reset, are not there
    order = [(0, 0), (1, 0), (0, 1)]
    obs, following, rewards = [], [], []
    for env, k in order:
        for t in range([2, 3][env]):
            obs.append([t, k])
            following.append([t + 1, k])
            rewards.append(k + 1.0)
    assert kept.obs.tolist() == obs
    assert kept.next_obs.tolist() == following
    assert kept.rewards.tolist() == rewards
    assert kept.dones.tolist() == [False, True, False, False, True, False, True]
    assert kept.terminated.tolist() == [False, True, False, False, False, False, True]  # environment 1 is cut off by its time limit
    assert kept.episode_returns.tolist() == [e["return"] for e in result["per_episode"]] == [2.0, 3.0, 4.0]
    assert kept.meta["episode_lengths"] == [2, 3, 2]
    assert len(kept) == 7


def test_a_task_that_does_not_tell_the_last_observation(tmp_path: Any) -> None:
    kept, _, _ = recorded(Clockwork([2]), 2, tmp_path / "d.npz")
    # the observation before the step stands in for the one after it
    assert kept.obs.tolist() == [[0, 0], [1, 0], [0, 1], [1, 1]]
    assert kept.next_obs.tolist() == [[1, 0], [1, 0], [1, 1], [1, 1]]


def test_each_agent_has_a_trajectory_of_its_own(tmp_path: Any) -> None:
    kept, result, _ = recorded(Told([2], agents=2), 1, tmp_path / "d.npz")
    # step t pays agent 0 one and agent 1 two
    assert kept.rewards.tolist() == [1, 1, 2, 2]
    assert kept.dones.tolist() == [False, True, False, True]
    assert kept.episode_returns.tolist() == [2.0, 4.0]
    assert result["per_episode"][0]["return"] == 3.0


def test_lives_are_trajectories(tmp_path: Any) -> None:
    kept, result, _ = recorded(Told([2]), 1, tmp_path / "d.npz", n_game_life=2)
    assert result["per_episode"][0]["return"] == 6.0  # 1 + 1 + 2 + 2
    assert kept.episode_returns.tolist() == [2.0, 4.0]


def test_actions_are_in_the_policys_scale_and_clipped(tmp_path: Any) -> None:
    env = Told([2, 3])
    kept, _, policy = recorded(env, 2, tmp_path / "d.npz", deterministic=False)
    given = np.asarray(env.actions)[:, :, 0]  # in the Box's [-2, 2]; the memory of an LSTM went into them
    # environment 0 ends first, after two steps
    assert kept.actions[:, 0].tolist() == pytest.approx([*(given[:2, 0] / 2), *(given[:3, 1] / 2)])
    assert policy.is_rnn
    wide, _, _ = recorded(Told([50]), 4, tmp_path / "wide.npz", deterministic=False)
    assert wide.actions.abs().max() == 1.0  # a standard normal goes beyond in 200 draws


def test_masked_discrete_actions_and_central_states(tmp_path: Any) -> None:
    kept, _, _ = recorded(Masked([2, 3]), 4, tmp_path / "d.npz", deterministic=False)
    assert kept.actions.dtype == torch.int64
    assert kept.actions.tolist() == kept.obs[:, 1].long().tolist()  # the only allowed choice is k mod 2; k is 0 or 1
    assert kept.obs.shape == (10, 2)  # and not the states' 9


class InADict(Told):
    """Pictures and numbers."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        inner = {"image": spaces.Box(0, 255, (4, 4, 1), np.uint8), "t": spaces.Box(-9.0, 9.0, (1,), np.float32)}
        self.observation_space = spaces.Dict(inner)
        self.action_space = spaces.MultiDiscrete([2, 3])

    def _out(self, array: np.ndarray) -> Any:
        if array.ndim == 2 and array.shape[1] == 2:
            return {"image": np.full((len(array), 4, 4, 1), array[:, 1, None, None, None], np.uint8), "t": array[:, :1]}
        return array


class TwoHeads(Policy):
    """Acts at random on Dict observations: no network is needed to record."""

    def build_model(self, builder: Any) -> Any:
        class Model(torch.nn.Module):
            def is_rnn(self) -> bool:
                return False

        return Model()

    def act(self, obs: Any, rnn_states: Any = None, action_masks: Any = None) -> dict[str, Any]:
        return {"actions": torch.stack([torch.randint(n, (len(obs["t"]),)) for n in (2, 3)], dim=1)}


@pytest.mark.parametrize("mode", ["same_step", "next_step"])
def test_dict_observations_and_several_heads(mode: str, tmp_path: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("core.policy.load_network", lambda *args: None)
    env = InADict([2, 2], mode)
    policy = TwoHeads(params(), env.get_env_info(), 2, "cpu")
    player: Any = Player.recording()(policy, env, games_num=4, deterministic=False, seed=0)
    player.run()
    assert player.save(tmp_path / "d.npz", {"task": {"name": "InADict"}}) == 8
    kept = Demonstrations.load(tmp_path / "d.npz", policy)
    assert kept.obs["t"][:, 0].tolist() == [0, 1] * 4
    assert kept.next_obs["t"][:, 0].tolist() == [1, 2] * 4
    assert kept.obs["image"].dtype == torch.uint8
    assert kept.obs["image"].shape == (8, 4, 4, 1)
    assert kept.obs["image"][:, 0, 0, 0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert kept.actions.shape == (8, 2)
    assert kept.actions.max(dim=0).values.tolist() <= [1, 2]


def test_observations_pass_the_loading_policys_augmentation(tmp_path: Any) -> None:
    class Longer(Policy):
        def augment_env_info(self, env_info: dict[str, Any]) -> dict[str, Any]:
            return {**env_info, "observation_space": spaces.Box(-np.inf, np.inf, (3,), np.float32)}

        def augment_obs(self, obs: Any) -> Any:
            return torch.cat([obs, torch.full((len(obs), 1), 5.0)], dim=1)

    env = Told([2])
    recorded(env, 1, tmp_path / "d.npz")
    kept = Demonstrations.load(tmp_path / "d.npz", Longer(params(), env.get_env_info(), 1, "cpu"))
    assert kept.obs.tolist() == [[0, 0, 5], [1, 0, 5]]
    assert kept.next_obs.tolist() == [[1, 0, 5], [2, 0, 5]]


# ---- what is refused ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Any) -> Any:
    """A good file, its policy, and a way to spoil it: `change(meta={...}, name=array)`."""

    class Kept:
        path = tmp_path / "d.npz"
        policy = recorded(Told([2, 3]), 2, tmp_path / "d.npz")[2]

        def change(self, meta: dict[str, Any] | None = None, drop: str = "", **arrays: Any) -> Any:
            with np.load(self.path) as content:
                all_of = dict(content)
            all_of["meta"] = np.array(json.dumps({**json.loads(str(all_of["meta"])), **(meta or {})}))
            all_of.update(arrays)
            all_of.pop(drop, None)
            np.savez(self.path, **all_of)
            return self

        def load(self) -> Demonstrations:
            return Demonstrations.load(self.path, self.policy)

    return Kept()


def test_no_file(file: Any) -> None:
    with pytest.raises(UserError, match=r"demonstration file '.*other.npz' does not exist. There: .*d.npz"):
        Demonstrations.load(file.path.with_name("other.npz"), file.policy)


def test_not_a_zip_and_cut_off(file: Any) -> None:
    file.path.write_bytes(file.path.read_bytes()[:200])
    with pytest.raises(UserError, match=r"d.npz' is not a demonstration file, or was cut off while it was written \(200 bytes\)"):
        file.load()


def test_damaged_inside(file: Any) -> None:
    content = bytearray(file.path.read_bytes())
    middle = content.find(b"next_obs.npy") + 40
    content[middle : middle + 30] = b"x" * 30
    file.path.write_bytes(content)
    with pytest.raises(UserError, match=r"d.npz' is damaged, or not a demonstration file"):
        file.load()


def test_another_npz(file: Any) -> None:
    np.savez(file.path, weights=np.zeros(3))
    with pytest.raises(UserError, match=r"d.npz' is not a demonstration file \(it holds weights\)"):
        file.load()


def test_another_version(file: Any) -> None:
    with pytest.raises(UserError, match=r"of format 2, and this version reads format 1"):
        file.change({"format": 2}).load()


def test_empty(file: Any) -> None:
    with np.load(file.path) as content:
        nothing = {name: content[name][:0] for name in content.files if name != "meta"}
    with pytest.raises(UserError, match=r"d.npz' is empty"):
        file.change({"episode_returns": []}, **nothing).load()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"drop": "rewards"}, "has no 'rewards'"),
        ({"rewards": np.zeros(4, np.float32)}, "differ in length: actions 5, dones 5, next_obs 5, obs 5, rewards 4"),
        ({"meta": {"episode_returns": [1.0]}}, "2 ends of trajectories and 1 returns"),
        ({"dones": np.array([1, 1, 0, 0, 0], bool)}, "must end with an end"),
    ],
)
def test_parts_that_do_not_fit_each_other(file: Any, change: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=f"damaged.*{told}"):
        file.change(**change).load()


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["obs", "actions", "rewards"])
def test_what_is_not_finite_is_refused_by_reader_and_writer(file: Any, name: str, value: float) -> None:
    _, arrays = demos.read(file.path)
    arrays[name][3] = value
    told = f"'{name}' of transition 3 is not finite"
    with pytest.raises(UserError, match=told):
        file.change(**{name: arrays[name]}).load()
    with pytest.raises(UserError, match=told):
        demos.write(file.path.with_name("new.npz"), arrays, {})
    assert not file.path.with_name("new.npz").exists()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"observation_space": spaces.Box(-1, 1, (7,), np.float32)}, r"have observations Box of shape \(2,\).* are Box of shape \(7,\)"),
        ({"observation_space": spaces.Box(0, 255, (2,), np.uint8)}, r"have observations .*float32.*, but the task's are .*uint8"),
        ({"observation_space": spaces.Dict({"a": spaces.Box(-1, 1, (2,))})}, r"the task's are \{a: Box of shape \(2,\)"),
        ({"action_space": spaces.Box(-2, 2, (3,), np.float32)}, r"have actions Box of shape \(1,\).* are Box of shape \(3,\)"),
        ({"action_space": spaces.Box(-1, 1, (1,), np.float32)}, r"\[-2.0, 2.0\]\), but the task's are .*\[-1.0, 1.0\]"),
        ({"action_space": spaces.Discrete(4)}, r"have actions Box of shape \(1,\).*, but the task's are Discrete\(4\)"),
    ],
)
def test_other_spaces_are_named_both(file: Any, change: dict[str, Any], told: str, monkeypatch: Any) -> None:
    monkeypatch.setattr("core.policy.load_network", lambda *args: None)
    env = Told([2])
    for name, space in change.items():
        setattr(env, name, space)
    with pytest.raises(UserError, match=told):
        Demonstrations.load(file.path, TwoHeads(params(), env.get_env_info(), 1, "cpu"))


def test_another_scale_of_actions(file: Any) -> None:
    file.policy.clip_actions = False
    with pytest.raises(UserError, match=r"recorded with clip_actions True, but train.params.config.clip_actions is False"):
        file.load()


# ---- the command ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: Any) -> Any:
    """One short run per task."""
    made: dict[str, str] = {}
    if "MultiChoice-v0" not in gym.registry:
        gym.register("MultiChoice-v0", entry_point="tests.task_envs:MultiChoice", max_episode_steps=20)

    def checkpoint(*task: str) -> str:
        name = "-".join(task)
        if name not in made:
            folder = tmp_path_factory.mktemp("run") / "run"
            command(*task, *SMALL, f"run_dir={folder}", "max_epochs=2")
            made[name] = f"checkpoint={folder}/nn/last.pth"
        return made[name]

    return checkpoint


CARTPOLE = ("task=envpool", "task.id=CartPole-v1")
TASKS = [("task=TorchPendulum",), CARTPOLE, ("task=gymnasium", "task.id=MultiChoice-v0"), ("task=gymnasium", "task.id=Pendulum-v1")]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task[-1])
def test_the_command_writes_the_episodes_of_eval_json(task: Any, trained: Any, tmp_path: Any) -> None:
    path = tmp_path / "new" / "d.npz"
    played = command("--play", trained(*task), f"record={path}", "player.games_num=3", "player.num_envs=2")
    meta, arrays = demos.read(path)
    assert meta["episode_returns"] == pytest.approx([e["return"] for e in played["per_episode"]])
    assert meta["episode_lengths"] == [e["length"] for e in played["per_episode"]]
    assert len(arrays["rewards"]) == sum(meta["episode_lengths"]) == meta["transitions"]
    assert arrays["dones"].sum() == 3
    assert meta["seed"] == played["seed"]
    assert meta["frames"] == played["frames"]
    assert meta["algo"] == "ppo"
    # within an episode, what follows is the next row's observation
    inside = ~arrays["dones"][:-1]
    assert (arrays["next_obs"][:-1][inside] == arrays["obs"][1:][inside]).all()
    assert (arrays["next_obs"][arrays["dones"]] != arrays["obs"][arrays["dones"]]).any()


def test_recording_does_not_change_what_is_played(trained: Any, tmp_path: Any) -> None:
    ask = ("test=True", trained(*CARTPOLE), "player.games_num=5", "player.deterministic=False")
    assert command(*ask)["per_episode"] == command(*ask, f"record={tmp_path}/d.npz")["per_episode"]


@pytest.mark.parametrize("make", ["file", "folder"])
def test_an_existing_file_is_not_overwritten(make: str, trained: Any, tmp_path: Any) -> None:
    path = tmp_path / "d.npz"
    path.mkdir() if make == "folder" else path.write_text("mine")
    with pytest.raises(UserError, match=r"d.npz' exists, and is not overwritten"):
        command("test=True", trained(*CARTPOLE), f"record={path}")
    assert path.is_dir() or path.read_text() == "mine"


def test_a_folder_that_cannot_be_written(trained: Any, tmp_path: Any, monkeypatch: Any) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(UserError, match=r"record: cannot make the directory of '.*taken/d.npz'"):
        command("test=True", trained(*CARTPOLE), f"record={tmp_path}/taken/d.npz")
    monkeypatch.setattr("os.access", lambda *args: False)  # root may write everywhere
    with pytest.raises(UserError, match=r"record: cannot write into"):
        command("test=True", trained(*CARTPOLE), f"record={tmp_path}/d.npz")


def test_another_ending(trained: Any, tmp_path: Any) -> None:
    with pytest.raises(UserError, match=r"d.pkl' must end in .npz"):
        command("test=True", trained(*CARTPOLE), f"record={tmp_path}/d.pkl")


def test_without_test() -> None:
    with pytest.raises(UserError, match=r"record is given, but test is not"):
        resolve("task=CartPole", "record=d.npz")
    with pytest.raises(UserError, match=r"record is given, but test is not"):  # rl_games: with both, it trains
        resolve("task=CartPole", "record=d.npz", "--play", "--train")


def test_nothing_is_left_behind_where_writing_fails(trained: Any, tmp_path: Any, monkeypatch: Any) -> None:
    def full(*args: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("numpy.savez_compressed", full)
    with pytest.raises(UserError, match=r"record: cannot write '.*d.npz': No space left on device"):
        command("test=True", trained(*CARTPOLE), f"record={tmp_path}/d.npz", "player.games_num=1")
    assert list(tmp_path.iterdir()) == []
