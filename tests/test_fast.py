"""The fast path does what the plain path does: same numbers from the same noise, and the same episodes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from algos import losses
from algos.agent import Agent
from algos.flat_adam import FlatAdam
from algos.options import AgentOptions
from algos.rollout import EpisodeStats
from core import registry
from tests.agents import our_agent, weights
from tests.toys import ToyVecEnv, toy_params

T, N = 16, 8


def agent_of(cls, tmp_path, monkeypatch, env=None, **settings):
    entry = registry.AlgoEntry("mine", cls, AgentOptions, "default", None, registry.ACTION_KINDS)
    registry.discover()
    monkeypatch.setitem(registry.algos._entries, "mine", entry)
    separate, network, memory = settings.pop("separate", False), settings.pop("mlp", {}), settings.pop("memory", {})
    params = toy_params(**{"max_epochs": 3, **settings})
    params["network"]["separate"] = separate
    params["network"]["mlp"].update(network)
    if memory:
        params["network"]["rnn"].update(memory)
    return our_agent(params, ToyVecEnv(action=settings.get("action", "continuous"), **(env or {})), tmp_path, "mine")


class SmoothAdam(Agent):
    """A large epsilon: Adam's first steps would else blow a rounding error in a gradient near 0 up to a whole step."""

    def build_optimizers(self):
        cls = FlatAdam if self.options.fused else torch.optim.Adam
        return {"policy": cls(self.model.parameters(), 1e-2, eps=0.1)}


class GivenNoise(SmoothAdam):
    """The plain rollout (`act` is overridden) with noise[n] in place of the distribution's own."""

    def before_epoch(self):
        self.noise = noise_of(self, self.epoch_num)

    def before_step(self, n):
        self.n = n

    def act(self, obs):
        result = super().act(obs)
        noise = self.noise[self.n]
        if self.kind == "continuous":
            result["actions"] = result["mus"] + result["sigmas"] * noise
            result["neglogpacs"] = losses.gaussian_neglogp(result["actions"], result["mus"], result["sigmas"])
        else:
            result["actions"] = (result["logits"] + noise).argmax(dim=1)
            result["neglogpacs"] = -torch.log_softmax(result["logits"], dim=1).gather(1, result["actions"][:, None]).squeeze(1)
        return result


class FastNoise(SmoothAdam):
    def draw_noise(self):
        return noise_of(self, self.epoch_num)


def noise_of(agent, epoch):
    generator = torch.Generator().manual_seed(epoch)
    noise = torch.randn((T, N, agent.actions_num), generator=generator)
    return noise if agent.kind == "continuous" else noise.abs()


CASES = {
    "continuous": ({}, {}),
    "discrete": ({"action": "discrete"}, {}),
    "separate_by_next_step": ({"separate": True}, {"reset_mode": "next_step"}),
    "discrete_next_step": ({"action": "discrete"}, {"reset_mode": "next_step"}),
    "lstm": ({"rnn": "lstm"}, {}),
    "lstm_next_step": ({"rnn": "lstm"}, {"reset_mode": "next_step"}),
    "lstm_discrete_wide": ({"rnn": "lstm", "action": "discrete", "memory": {"units": 24}}, {}),
    "lstm_separate": ({"rnn": "lstm", "separate": True}, {"reset_mode": "next_step"}),
    "lstm_everything": ({"rnn": "lstm", "memory": {"layers": 2, "layer_norm": True, "concat_input": True, "concat_output": True}}, {}),
    "lstm_never_zeroed": ({"rnn": "lstm", "zero_rnn_on_done": False}, {}),
    "lstm_single_steps": ({"rnn": "lstm", "seq_length": 1}, {}),
    "gru": ({"rnn": "gru"}, {"agents": 2, "num_envs": 4}),
    "gru_discrete": ({"rnn": "gru", "action": "discrete"}, {}),
    "gru_before_mlp_next_step": ({"rnn": "gru", "memory": {"units": 24, "before_mlp": True}}, {"reset_mode": "next_step"}),
    "agents": ({}, {"agents": 2, "num_envs": 4}),
    "two_values": ({"clip_value": True}, {"value_size": 2}),
    "no_normalizers": ({"normalize_input": False, "normalize_value": False, "clip_value": False, "truncate_grads": False}, {}),
    "current_obs": ({"bootstrap_from": "current_obs"}, {}),
    "no_bounds": ({"bounds_loss_coef": None, "entropy_coef": 0.0}, {}),
    "regularisation": ({"bound_loss_type": "regularisation"}, {}),
    "smooth": ({"use_smooth_clamp": True}, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_three_epochs_equal_the_plain_path(case, tmp_path, monkeypatch):
    settings, env = CASES[case]
    settings = {"num_envs": env.get("num_envs", N), "shuffle": False, **settings}
    fast = agent_of(FastNoise, tmp_path / "fast", monkeypatch, env, **settings)
    plain = agent_of(GivenNoise, tmp_path / "plain", monkeypatch, env, fused=False, **settings)
    assert fast.fast.step_reason is None
    assert plain.fast.step_reason is not None
    assert fast.fast.fused is not None
    for agent in (fast, plain):
        agent.reset_environments()
    for _ in range(3):
        metrics = [agent.train_epoch() for agent in (fast, plain)]
        for name, field in fast.rollout.fields.items():
            other = plain.rollout.fields[name]
            if name == "state_values":  # read where a time-out cut an episode off
                field, other = field * fast.rollout.time_outs.unsqueeze(2), other * fast.rollout.time_outs.unsqueeze(2)
            torch.testing.assert_close(field, other, rtol=2e-4, atol=2e-4, msg=lambda m, n=name: f"{n}: {m}")
        for ours, theirs in zip(fast.rollout.rnn_states, plain.rollout.rnn_states, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=2e-4, atol=2e-4)
        assert metrics[0].keys() == metrics[1].keys()
        for name in metrics[0]:
            if not name.startswith(("time/", "fps")):
                assert metrics[0][name] == pytest.approx(metrics[1][name], rel=1e-3, abs=1e-4), name
        assert list(fast.game_rewards.lengths) == list(plain.game_rewards.lengths)
    for name, value in weights(fast).items():
        torch.testing.assert_close(value, weights(plain)[name], rtol=2e-4, atol=2e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_episode_totals_equal_counting_step_by_step(tmp_path, monkeypatch):
    agent = agent_of(Agent, tmp_path, monkeypatch)
    rng = np.random.RandomState(0)
    stats = EpisodeStats(6, 2, 2, 7)
    running, expected = np.zeros((6, 2)), []
    lengths, length = [], np.zeros(6)
    for _ in range(3):
        rollout = agent.rollout
        rewards, dones = rng.randn(T, 6, 2), rng.rand(T, 6) < 0.2
        dones[:, 1::2] = dones[:, ::2]  # agents of one environment end together
        valid, counts = rng.rand(T, 6) < 0.9, rng.rand(T, 6) < 0.8
        rollout.fields.update(
            raw_rewards=torch.tensor(rewards), dones_after=torch.tensor(dones).float(), valid=torch.tensor(valid)
        )  # fmt: skip
        stats.add_rollout(rollout, torch.tensor(2 * rewards), torch.tensor(counts))
        for t in range(T):
            running += rewards[t]
            length += valid[t]
            for row in np.flatnonzero(dones[t]):
                if row % 2 == 0 and counts[t, row]:
                    expected.append(running[row].copy())
                    lengths.append(length[row])
            running[dones[t]] = 0
            length[dones[t]] = 0
    np.testing.assert_allclose(np.array(stats.returns), expected[-7:])
    np.testing.assert_allclose(np.array(stats.shaped), 2 * np.array(expected[-7:]))
    assert list(stats.lengths) == lengths[-7:]
    assert stats.finished == len(expected)
    other = EpisodeStats(6, 2, 2, 7)
    other.load_state_dict(stats.state_dict(), running=True)
    torch.testing.assert_close(other.running, stats.running)


@pytest.mark.parametrize("kept", [2**26, 1], ids=["kept", "on_the_fly"])
@pytest.mark.parametrize("reset_mode", ["same_step", "next_step"])
def test_large_observations_are_normalized_like_small_ones(reset_mode, kept, tmp_path, monkeypatch):
    def trained(name):
        agent = agent_of(FastNoise, tmp_path / name, monkeypatch, {"reset_mode": reset_mode}, shuffle=False)
        agent.train()
        return agent

    small = trained("small")
    monkeypatch.setattr("algos.prepare.LARGE", 1)
    monkeypatch.setattr("algos.batch.LARGE", 1)
    monkeypatch.setattr("algos.prepare.KEPT", kept)
    large = trained("large")
    assert (large._pictures is not None) == (kept > 1)
    for name, value in weights(small).items():
        torch.testing.assert_close(weights(large)[name], value, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("action", ["continuous", "discrete"])
def test_bf16_computes_in_bfloat16_and_learns_in_float32(action, tmp_path, monkeypatch):
    seen = []

    class Seen(Agent):
        def evaluate_actions(self, mb):
            seen.append(torch.is_autocast_enabled("cpu"))
            return super().evaluate_actions(mb)

    agent = agent_of(Seen, tmp_path, monkeypatch, action=action, precision="bf16")
    hidden = []
    agent.model.a2c_network.actor_mlp[0].register_forward_hook(lambda module, args, out: hidden.append(out.dtype))
    agent.train()
    assert all(seen)
    assert seen
    assert set(hidden) == {torch.bfloat16}
    assert all(p.dtype == torch.float32 and torch.isfinite(p).all() for p in agent.model.parameters())
    assert agent.rollout.values.dtype == agent.rollout.neglogp.dtype == torch.float32
