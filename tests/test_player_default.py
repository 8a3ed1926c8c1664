"""The player counts what it says it counts. Environments here have known episode lengths and returns."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import yaml
from gymnasium import spaces

from core.errors import UserError
from core.policy import Policy
from core.vecenv import VecEnv
from players.default import Player, interquartile_mean, statistics


class Clockwork(VecEnv):
    """Environment i has episodes of lengths[i] steps; step t of its k-th episode pays k + 1. The observation is (t, k)."""

    def __init__(self, lengths: list[int], reset_mode: str = "same_step", agents: int = 1, value_size: int = 1, torch_env: bool = False):
        self.num_envs = len(lengths)
        self.lengths = np.asarray(lengths)
        self.reset_mode = reset_mode  # type: ignore[assignment]  # a Literal
        self.num_agents = agents
        self.value_size = value_size
        self.is_torch = torch_env
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = spaces.Box(-2.0, 2.0, (1,), np.float32)
        self.actions: list[Any] = []
        self.seeds: list[int] = []

    def seed(self, seed: int) -> None:
        self.seeds.append(seed)

    def reset(self) -> Any:
        self.t = np.zeros(self.num_envs, int)
        self.k = np.zeros(self.num_envs, int)
        self.over = np.zeros(self.num_envs, bool)
        return self._obs()

    def step(self, actions: Any) -> Any:
        self.actions.append(actions)
        starting = self.over  # next-step reset: these rows are no transition
        self.k += starting
        self.t = np.where(starting, 0, self.t + 1)
        rewards = np.where(starting, 0.0, self.k + 1.0)
        dones = ~starting & (self.t == self.lengths)
        infos = {"time_outs": np.zeros(len(dones), bool), "scores": self.k * 10.0, "success": self.k % 2 == 0}
        if self.reset_mode == "next_step":
            self.over = dones
        else:
            self.k += dones
            self.t = np.where(dones, 0, self.t)
        rewards = np.repeat(rewards, self.num_agents) + np.tile(np.arange(self.num_agents), self.num_envs)
        if self.value_size > 1:
            rewards = np.stack([rewards] + [np.full_like(rewards, 1e6)] * (self.value_size - 1), axis=1)
        return self._obs(), self._out(rewards), self._out(np.repeat(dones, self.num_agents)), infos

    def _obs(self) -> Any:
        return self._out(np.repeat(np.stack([self.t, self.k], axis=1), self.num_agents, axis=0).astype(np.float32))

    def _out(self, array: np.ndarray) -> Any:
        return torch.from_numpy(array) if self.is_torch else array


class Memo:
    """Stands for a Policy whose memory counts the observations it has seen since it was zeroed."""

    device = torch.device("cpu")

    def __init__(self, rows: int, rnn: bool = False):
        self.rows, self.rnn = rows, rnn
        self.seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def augment_obs(self, obs: Any) -> Any:
        return obs

    def initial_rnn_states(self) -> Any:
        return [torch.zeros(1, self.rows, 1)] if self.rnn else None

    def act(self, obs: Any, rnn_states: Any, masks: Any) -> dict[str, Any]:
        if self.rnn:
            self.seen.append((obs[:, 0].clone(), rnn_states[0][0, :, 0].clone()))
            rnn_states = [rnn_states[0] + 1]
        n = len(obs)
        return {"actions": torch.rand(n, 1), "mus": torch.full((n, 1), 0.5), "rnn_states": rnn_states}

    def best_actions(self, result: dict[str, Any]) -> torch.Tensor:
        return result["mus"]

    def env_actions(self, actions: torch.Tensor) -> torch.Tensor:
        return actions * 2


def play(env: Clockwork, games: int, cls: type[Player] = Player, rnn: bool = False, **options: Any) -> tuple[dict[str, Any], Any]:
    policy = Memo(env.num_envs * env.num_agents, rnn)
    options = {"deterministic": True, "seed": 7, **options}
    player = cls(policy, env, games_num=games, **options)  # type: ignore[arg-type]  # Memo stands for a Policy
    return player.run(), policy


@pytest.mark.parametrize("mode", ["same_step", "next_step"])
def test_short_episodes_are_not_over_counted(mode: str) -> None:
    result, _ = play(Clockwork([1, 100], mode), 10)
    lengths = [e["length"] for e in result["per_episode"]]
    assert sorted(lengths) == [1] * 5 + [100] * 5  # the first ten to finish would all have length 1
    assert result["length"]["mean"] == 50.5
    # env 0: episodes 0..4 pay 1, 2, 3, 4, 5; env 1: 100, 200, 300, 400, 500
    assert sorted(e["return"] for e in result["per_episode"]) == [1, 2, 3, 4, 5, 100, 200, 300, 400, 500]
    assert result["return"]["mean"] == 151.5


@pytest.mark.parametrize("games", [1, 2, 3, 7, 8, 11])
@pytest.mark.parametrize("mode", ["same_step", "next_step"])
def test_exact_count_and_quota(games: int, mode: str) -> None:
    result, _ = play(Clockwork([3, 1, 2], mode), games)
    assert result["episodes"] == games == len(result["per_episode"])
    per_env = [sum(e["env"] == i for e in result["per_episode"]) for i in range(3)]
    assert per_env == [games // 3 + (i < games % 3) for i in range(3)]


def test_more_environments_than_games() -> None:
    result, _ = play(Clockwork([4, 4, 1, 1]), 2)
    assert [(e["env"], e["length"]) for e in result["per_episode"]] == [(0, 4), (1, 4)]


def test_statistics_by_hand() -> None:
    got = statistics([8.0, 1.0, 2.0, 3.0, 100.0])
    # mean 114 / 5 = 22.8; squared deviations 219.04 + 475.24 + 432.64 + 392.04 + 5959.84 = 7478.8;
    # one value cut off at either end leaves 2, 3, 8
    assert got == pytest.approx({"mean": 22.8, "std": (7478.8 / 5) ** 0.5, "median": 3.0, "iqm": 13 / 3, "min": 1.0, "max": 100.0})


def test_iqm_cuts_a_quarter_from_either_end() -> None:
    assert interquartile_mean(np.array([9.0, 1.0, 5.0, 3.0])) == 4.0  # 1 and 9 go
    assert interquartile_mean(np.array([7.0])) == 7.0
    assert interquartile_mean(np.arange(12.0)) == 5.5  # 3..8 stay


def test_infos_become_success_rate_and_score() -> None:
    result, _ = play(Clockwork([1]), 3)
    assert [e["score"] for e in result["per_episode"]] == [0.0, 10.0, 20.0]
    assert result["scores_mean"] == 10.0
    assert result["success_rate"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("mode", ["same_step", "next_step"])
def test_memory_is_zero_at_the_first_observation_of_an_episode(mode: str) -> None:
    _, policy = play(Clockwork([2, 5], mode), 6, rnn=True)
    times = torch.stack([t for t, _ in policy.seen])
    memory = torch.stack([m for _, m in policy.seen])
    # the memory counts observations of this episode seen before: at time t exactly t, whatever the other environment does
    assert torch.equal(times, memory)
    assert (times == 0).sum() > 2


def test_lives_are_summed_to_one_game() -> None:
    result, _ = play(Clockwork([2]), 2, n_game_life=3)
    # episodes of two steps pay 2, 4, 6 | 8, 10, 12
    assert [(e["return"], e["length"]) for e in result["per_episode"]] == [(12.0, 6), (30.0, 6)]


def test_return_is_the_mean_over_agents() -> None:
    result, _ = play(Clockwork([3, 2], agents=2), 2)
    # agent j is paid j more per step: 3 steps -> 3 and 6, 2 steps -> 2 and 4
    assert {e["env"]: (e["return"], e["length"]) for e in result["per_episode"]} == {0: (4.5, 3), 1: (3.0, 2)}


def test_the_first_reward_component_counts() -> None:
    result, _ = play(Clockwork([3], value_size=2), 1)
    assert result["return"]["mean"] == 3.0


def test_agents_that_end_apart_are_refused() -> None:
    class Apart(Clockwork):
        def step(self, actions: Any) -> Any:
            obs, rewards, dones, infos = super().step(actions)
            dones[1] = False
            return obs, rewards, dones, infos

    with pytest.raises(UserError, match=r"Apart ends an episode for some agents"):
        play(Apart([1], agents=2), 1)


@pytest.mark.parametrize("torch_env", [False, True])
def test_actions_reach_the_environment_in_its_scale_and_kind(torch_env: bool) -> None:
    env = Clockwork([2, 2], torch_env=torch_env)
    play(env, 2)
    assert isinstance(env.actions[0], torch.Tensor if torch_env else np.ndarray)
    assert np.asarray(env.actions[0]).tolist() == [[1.0], [1.0]]  # the mean 0.5, times two


def test_sampling_is_seeded_and_leaves_the_global_state_alone() -> None:
    def sampled(seed: int) -> list[Any]:
        env = Clockwork([3, 3])
        play(env, 2, deterministic=False, seed=seed)
        assert env.seeds == [seed]
        return np.concatenate(env.actions).tolist()

    before = torch.get_rng_state()
    first = sampled(1)
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(3)
    assert sampled(1) == first
    assert sampled(2) != first
    assert first[0] != first[1]


def test_hooks_are_called_and_add_to_the_result() -> None:
    calls: list[str] = []

    class Hooked(Player):
        def on_eval_start(self) -> None:
            calls.append("start")

        def on_eval_step(self, obs: Any, rewards: Any, dones: Any, infos: Any) -> None:
            calls.append("step")
            assert obs.shape == (2, 2)
            assert rewards.shape == dones.shape == (2,)
            assert dones.dtype == torch.bool

        def on_episode_end(self, env_index: int, episode: dict[str, Any]) -> None:
            calls.append(f"end {env_index}")
            episode["twice"] = 2 * episode["return"]

        def on_eval_end(self) -> dict[str, Any]:
            calls.append("finish")
            return {"mine": 1}

    result, _ = play(Clockwork([1, 2]), 2, Hooked)
    assert calls == ["start", "step", "end 0", "step", "end 1", "finish"]  # environment 0's second episode does not count
    assert result["mine"] == 1
    assert [e["twice"] for e in result["per_episode"]] == [2.0, 4.0]


def test_a_result_key_that_is_taken_is_refused() -> None:
    class Greedy(Player):
        def on_eval_end(self) -> dict[str, Any]:
            return {"return": 0}

    with pytest.raises(UserError, match=r"Greedy.on_eval_end returns 'return'"):
        play(Clockwork([1]), 1, Greedy)


@pytest.mark.parametrize(("games", "lives"), [(0, 1), (1, 0)])
def test_impossible_numbers_are_refused(games: int, lives: int) -> None:
    with pytest.raises(UserError, match=r"must be at least 1"):
        play(Clockwork([1]), games, n_game_life=lives)


PARAMS = """
algo: {name: a2c_discrete}
model: {name: auto}
network:
  name: actor_critic
  separate: false
  space: {discrete: {}}
  mlp: {units: [8], activation: elu, initializer: {name: default}, regularizer: {name: None}}
  rnn: {name: lstm, units: 4, layers: 1, before_mlp: false}
config: {normalize_input: true, normalize_value: true}
"""


class Masked(Clockwork):
    """Two choices, of which only choice (k mod 2) is allowed in the k-th episode; observations carry a central value's states."""

    def __init__(self, lengths: list[int], **options: Any):
        super().__init__(lengths, **options)
        self.action_space = spaces.Discrete(2)

    def has_action_masks(self) -> bool:
        return True

    def get_action_masks(self) -> np.ndarray:
        return np.eye(2, dtype=bool)[self.k % 2]

    def step(self, actions: Any) -> Any:
        assert (actions == self.k % 2).all()
        return super().step(actions)

    def _obs(self) -> Any:
        obs = super()._obs()
        return {"obs": obs, "states": np.full((self.num_envs, 9), np.nan)}


@pytest.mark.parametrize("deterministic", [True, False])
def test_a_real_policy_with_memory_masks_and_central_states(deterministic: bool) -> None:
    env = Masked([2, 3])
    policy = Policy(yaml.safe_load(PARAMS), env.get_env_info(), env.num_envs, "cpu")
    result = Player(policy, env, games_num=6, deterministic=deterministic, seed=0).run()
    assert result["episodes"] == 6
    assert result["deterministic"] is deterministic


def test_observations_pass_through_the_policy_augmentation() -> None:
    class Longer(Memo):
        def augment_obs(self, obs: Any) -> Any:
            return torch.cat([obs, torch.ones(len(obs), 1)], dim=1)

    class Look(Player):
        def act(self, obs: Any, rnn_states: Any, masks: Any) -> dict[str, Any]:
            assert obs.shape == (1, 3)
            return super().act(obs, rnn_states, masks)

    result = Look(Longer(1), Clockwork([2]), games_num=2, deterministic=True, seed=0).run()  # type: ignore[arg-type]  # stand-ins
    assert result["episodes"] == 2
