"""PettingZoo's parallel environments as teams with one policy."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from core import registry
from core.errors import UserError
from tests.command import SMALL, command

pettingzoo = pytest.importorskip("pettingzoo")
from tasks import pettingzoo_task  # noqa: E402
from tasks.pettingzoo_task import Team  # noqa: E402


class Heist(pettingzoo.ParallelEnv):  # type: ignore[misc, name-defined]  # untyped
    """Three agents; `b` is caught in step 1. Observation [agent, step], reward 1 + the action; after 3 steps time is up."""

    metadata = {"name": "heist_v0", "render_modes": ["rgb_array"]}  # noqa: RUF012  # as PettingZoo declares it

    def __init__(self, render_mode: str | None = None, masked: bool = False, unlike: bool = False, limit: int = 3) -> None:
        self.possible_agents = ["a", "b", "c"]
        self.render_mode, self.masked, self.unlike, self.limit = render_mode, masked, unlike, limit
        self.state_space = spaces.Box(0.0, 9.0, (4,), np.float32)

    def observation_space(self, agent: str) -> spaces.Space:
        size = 3 if self.unlike and agent == "c" else 2
        box = spaces.Box(0.0, 9.0, (size,), np.float32)
        return spaces.Dict({"observation": box, "action_mask": spaces.Box(0, 1, (2,), np.int8)}) if self.masked else box

    def action_space(self, agent: str) -> spaces.Space:
        return spaces.Discrete(2)

    def state(self) -> np.ndarray:
        return np.full(4, self.t, np.float32)

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        self.agents, self.t, self.given = list(self.possible_agents), 0, []
        return self._obs(), {name: {} for name in self.agents}

    def step(self, actions: dict[str, Any]) -> Any:
        assert set(actions) == set(self.agents)  # PettingZoo's rule: only those who are left act
        self.given.append(actions)
        self.t += 1
        rewards = {name: 1.0 + action for name, action in actions.items()}
        caught = {name: name == "b" for name in self.agents}
        up = dict.fromkeys(self.agents, self.t >= self.limit)
        infos = {name: {"loot": 10.0 * self.t} for name in self.agents if name == "a"}
        obs = self._obs()
        self.agents = [name for name in self.agents if not caught[name] and not up[name]]
        return obs, rewards, caught, up, infos

    def _obs(self) -> dict[str, Any]:
        seen = {name: np.array([i, self.t], np.float32) for i, name in enumerate(self.possible_agents) if name in self.agents}
        if not self.masked:
            return seen
        return {name: {"observation": row, "action_mask": np.array([1, self.t % 2], np.int8)} for name, row in seen.items()}


@pytest.fixture
def heist(monkeypatch: pytest.MonkeyPatch) -> str:
    module = types.ModuleType("heist_v0")
    module.parallel_env = Heist  # type: ignore[attr-defined]  # a module of the test's own
    monkeypatch.setitem(sys.modules, "heist_v0", module)
    return "heist_v0"


def build(id: str, num_envs: int = 2, **more: Any) -> Any:
    return pettingzoo_task.make(num_envs=num_envs, seed=0, device="cpu", id=id, **more)


def test_rows_are_agents_and_the_one_that_is_out_has_zeros_until_all_are_done(heist: str) -> None:
    env = build(heist)
    assert (env.num_agents, env.observation_space.shape, env.state_space.shape) == (3, (2,), (4,))
    first = env.reset()
    np.testing.assert_array_equal(first["obs"], [[0, 0], [1, 0], [2, 0]] * 2)
    np.testing.assert_array_equal(first["states"], np.zeros((2, 4)))
    actions = np.array([0, 1, 1, 1, 0, 0])
    obs, rewards, dones, infos = env.step(actions)
    np.testing.assert_array_equal(rewards, [1, 2, 2, 2, 1, 1])  # 1 + the action, of all three: b was still there
    np.testing.assert_array_equal(obs["obs"][:3], [[0, 1], [1, 1], [2, 1]])
    assert not dones.any()  # b is out, the episode is not
    obs, rewards, dones, infos = env.step(actions)
    np.testing.assert_array_equal(rewards, [1, 0, 2, 2, 0, 1])
    np.testing.assert_array_equal(obs["obs"][1], [0, 0])
    np.testing.assert_array_equal(infos["loot"], [20, 0, 0] * 2)
    obs, rewards, dones, infos = env.step(actions)
    assert dones.all()
    np.testing.assert_array_equal(infos["time_outs"], [True, False, True] * 2)  # time was up for a and c, b was caught
    np.testing.assert_array_equal(infos["terminal_obs"]["obs"][:3], [[0, 3], [0, 0], [2, 3]])
    np.testing.assert_array_equal(infos["terminal_obs"]["states"], np.full((2, 4), 3))
    np.testing.assert_array_equal(obs["obs"][:3], [[0, 0], [1, 0], [2, 0]])  # the next episode has begun


def test_the_agents_number_is_appended_where_asked(heist: str) -> None:
    env = build(heist, num_envs=1, agent_id=True)
    assert env.observation_space.shape == (5,)
    np.testing.assert_array_equal(env.reset()["obs"], [[0, 0, 1, 0, 0], [1, 0, 0, 1, 0], [2, 0, 0, 0, 1]])


def test_masks_are_taken_out_of_the_observation(heist: str) -> None:
    env = build(heist, num_envs=1, options={"masked": True})
    assert env.observation_space.shape == (2,)
    env.reset()
    np.testing.assert_array_equal(env.get_action_masks(), [[True, False]] * 3)
    env.step(np.zeros(3, int))
    env.step(np.zeros(3, int))
    np.testing.assert_array_equal(env.get_action_masks(), [[True, False], [True, True], [True, False]])  # b is out: anything


def test_agents_that_differ_are_refused_with_their_names(heist: str) -> None:
    with pytest.raises(UserError, match=r"equal observation spaces, and 'a' has .*\(2,\).*, 'c' .*\(3,\).*pad_observations_v0"):
        build(heist, options={"unlike": True})


@pytest.mark.parametrize(
    ("id", "options", "message"),
    [
        (None, {}, "task.id is missing"),
        ("mpe2.simple_spred_v3", {}, "Did you mean 'mpe2.simple_spread_v3'"),
        ("json", {}, "has no parallel_env"),
        ("mpe2.simple_spread_v3", {"M": 3}, r"task\.options \{'M': 3\}"),
    ],
)
def test_mistakes(id: str | None, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(id, options=options)  # type: ignore[arg-type]  # None is one of the mistakes


def test_ids_are_listed() -> None:
    assert "mpe2.simple_spread_v3" in registry.ids["pettingzoo"]()


CENTRAL = "tuned=SimpleSpread-central"


@pytest.mark.parametrize("words", [(), (CENTRAL,), ("task.vecenv=async", "task.num_workers=2")], ids=["own", "central", "async"])
def test_a_team_trains_and_plays(words: tuple[str, ...], tmp_path: Path) -> None:
    run = tmp_path / "run"
    result = command(
        "task=SimpleSpread", "train=PPO", *words, *SMALL, "train.params.config.horizon_length=100", "max_epochs=2", f"run_dir={run}"
    )
    assert result["frames"] == 2 * 4 * 100  # environment steps, not agents'
    played = command("test=True", f"checkpoint={run / 'nn' / 'last.pth'}", "player.games_num=6", "player.num_envs=3")
    assert played["length"]["mean"] == 25
    assert played["return"]["mean"] < 0


def test_actions_of_a_team_arrive_as_its_spaces_want_them() -> None:
    from mpe2 import simple_spread_v3

    team = Team(simple_spread_v3.parallel_env(continuous_actions=True))
    team.reset(seed=0)
    _, rewards, terminated, truncated, _ = team.step(np.full((3, 5), 0.5))
    assert rewards.shape == terminated.shape == truncated.shape == (3,)


@pytest.mark.parametrize("space", [spaces.Discrete(3, start=4), spaces.MultiDiscrete([2, 3], start=[1, -1])])
def test_choices_are_counted_from_where_the_space_begins(space: Any) -> None:
    class Late(Heist):
        def action_space(self, agent: str) -> spaces.Space:
            return space

    team = Team(Late())
    assert team._action(np.zeros(space.shape, np.int64)) in space
    assert team._action(np.zeros(space.shape, np.int64)) == pytest.approx(space.start)
