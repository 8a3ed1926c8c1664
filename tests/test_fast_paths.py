"""Who takes which path: a hook costs its own part alone, and what the fast path cannot serve takes the plain one."""

from __future__ import annotations

import pytest
import torch

from algos import losses
from algos.agent import Agent
from algos.by_hand import ByHand
from algos.options import AgentOptions
from core import registry
from core.policy import Policy
from tests.agents import our_agent, weights
from tests.test_fast import FastNoise, GivenNoise, agent_of
from tests.toys import ToyVecEnv, toy_params


class OwnStep(Agent):
    def on_step(self, transition):
        transition.rewards = transition.rewards * 1.0


class OwnLoss(Agent):
    def policy_loss(self, mb, out):
        return super().policy_loss(mb, out)


class OwnExtra(Agent):
    def extra_losses(self, mb, out):
        return {"small": 0 * out.mus.sum(-1)}


class OwnUpdate(Agent):
    def update(self, batch):
        out = self.evaluate_actions(next(batch.minibatches(1, False)))
        grad = torch.autograd.grad(out.neglogp.mean(), list(self.model.a2c_network.actor_mlp.parameters()), create_graph=True)
        sum((g**2).sum() for g in grad).backward()  # what a natural gradient needs: differentiated twice
        return {}


@pytest.mark.parametrize(
    ("cls", "plain_steps", "by_hand", "fused_losses"),
    [(Agent, False, True, True), (OwnStep, True, True, True), (OwnLoss, False, False, False), (OwnExtra, False, False, True),
     (OwnUpdate, False, True, True)],
)  # fmt: skip
def test_a_hook_costs_only_its_own_part(cls, plain_steps, by_hand, fused_losses, tmp_path, monkeypatch):
    agent = agent_of(cls, tmp_path, monkeypatch, max_epochs=1)
    fast = agent.fast
    assert (fast.step_reason is not None, fast.by_hand is not None, fast.losses) == (plain_steps, by_hand, fused_losses)
    assert fast.fused is not None
    calls = []
    monkeypatch.setattr(ByHand, "step", lambda self, mb, step=ByHand.step: (calls.append(1), step(self, mb))[1])
    agent.train()
    assert bool(calls) == (by_hand and cls is not OwnUpdate)


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("action", ["continuous", "discrete"])
def test_an_own_step_leaves_acting_written_out(action, separate, tmp_path, monkeypatch):
    agent = agent_of(OwnStep, tmp_path, monkeypatch, action=action, separate=separate, max_epochs=2)
    called = []
    monkeypatch.setattr(agent.policy, "act", lambda *args, act=agent.policy.act: (called.append(1), act(*args))[1])
    agent.train()
    assert agent.fast.acts
    assert len(called) <= 2 * agent.horizon_length  # what a time-out cut off, and the values at the end; not one more for each step
    torch.manual_seed(4)
    agent.fast.refresh()
    agent.model.eval()
    obs = torch.randn(5, 3)[torch.arange(20_000) % 5]
    with torch.no_grad():
        got, expected = agent.fast.act(obs), Policy.act(agent.policy, obs)
    assert set(got) <= set(expected)
    for name in ("values", "mus", "sigmas") if action == "continuous" else ("values",):
        torch.testing.assert_close(got[name], expected[name], rtol=1e-4, atol=1e-5)
    if action == "continuous":
        torch.testing.assert_close(
            got["neglogpacs"], losses.gaussian_neglogp(got["actions"], got["mus"], got["sigmas"]), rtol=1e-4, atol=1e-4
        )
        noise = (got["actions"] - got["mus"]) / got["sigmas"]
        assert noise.mean().abs() < 0.03
        assert (noise.std() - 1).abs() < 0.03
    else:
        logp = torch.log_softmax(expected["logits"], dim=1)
        torch.testing.assert_close(got["neglogpacs"], -logp.gather(1, got["actions"][:, None]).squeeze(1), rtol=1e-4, atol=1e-5)
        for row in range(5):  # 4,000 draws each
            share = torch.bincount(got["actions"][row::5], minlength=logp.shape[1]) / 4000
            torch.testing.assert_close(share, logp[row].exp(), rtol=0, atol=0.04)


def test_a_function_that_setup_gives_the_policy_acts(tmp_path, monkeypatch):
    class Given(OwnStep):
        def setup(self):
            act, self.called = self.policy.act, 0

            def counted(*args):
                self.called += 1
                return act(*args)

            self.policy.act = counted

    agent = agent_of(Given, tmp_path, monkeypatch, max_epochs=1)
    agent.train()
    assert not agent.fast.acts
    assert agent.called >= agent.horizon_length


def test_own_acting_is_called_at_every_step(tmp_path, monkeypatch):
    class OwnAct(OwnStep):
        def act(self, obs):
            self.called = getattr(self, "called", 0) + 1
            return super().act(obs)

    agent = agent_of(OwnAct, tmp_path, monkeypatch, max_epochs=1)
    agent.train()
    assert not agent.fast.acts
    assert agent.called == agent.horizon_length
    assert not agent_of(OwnStep, tmp_path / "rnn", monkeypatch, rnn="lstm").fast.acts  # memory is carried by the model
    assert not agent_of(OwnStep, tmp_path / "plain", monkeypatch, fused=False).fast.acts


def test_what_the_fast_path_cannot_serve_takes_the_plain_one(tmp_path, monkeypatch):
    class OwnPolicy(Policy):
        def act(self, obs, rnn_states=None, action_masks=None):
            return super().act(obs, rnn_states, action_masks)

    agent = agent_of(Agent, tmp_path / "a", monkeypatch, {"states": True}, central=True)
    assert "central value" in agent.fast.step_reason
    masks = agent_of(Agent, tmp_path / "b", monkeypatch, {"masks": True}, action="discrete", use_action_masks=True)
    assert "action masks" in masks.fast.reason
    many = agent_of(Agent, tmp_path / "c", monkeypatch, action="multi_discrete")
    assert "ModelA2CMultiDiscrete" in many.fast.reason or "MultiDiscrete" in many.fast.reason
    compat = agent_of(Agent, tmp_path / "d", monkeypatch, compat="rl_games")
    assert compat.fast.reason == "fused is false"
    often = agent_of(Agent, tmp_path / "f", monkeypatch, update_normalizer_once=False)
    assert "update_normalizer_once" in often.fast.reason
    often.train()
    assert often.model.running_mean_std.count > 1000  # the rows of every minibatch, which the plain path sees
    wide = agent_of(Agent, tmp_path / "e", monkeypatch, mlp={"activation": "swish"})
    assert wide.fast.reason is None
    assert wide.fast.fused is None  # its own forward pass, on the fast rollout
    for each in (agent, masks, many, wide):
        each.train()


class HalvedObs(Policy):
    def preprocess(self, obs):
        return super().preprocess(obs) * 0.5


class OwnInputs(Agent):
    def model_inputs(self, mb):
        return super().model_inputs(mb)


class OwnMean(Agent):
    def mean(self, values, mask):
        return super().mean(values, mask)


def test_an_own_preprocess_is_seen_at_every_step(tmp_path, monkeypatch):
    registry.discover()
    entry = registry.AlgoEntry("halved", FastNoise, AgentOptions, "default", HalvedObs, registry.ACTION_KINDS)
    plain = registry.AlgoEntry("halved_plain", GivenNoise, AgentOptions, "default", HalvedObs, registry.ACTION_KINDS)
    monkeypatch.setitem(registry.algos._entries, "halved", entry)
    monkeypatch.setitem(registry.algos._entries, "halved_plain", plain)
    agents = [
        our_agent(toy_params(shuffle=False, fused=f), ToyVecEnv(), tmp_path / n, n) for n, f in (("halved", True), ("halved_plain", False))
    ]
    for agent in agents:
        agent.train()
    assert agents[0].fast.step_reason is None
    for name, value in weights(agents[0]).items():
        torch.testing.assert_close(value, weights(agents[1])[name], rtol=2e-4, atol=2e-4)


def test_an_own_way_into_the_model_or_of_taking_means_is_kept(tmp_path, monkeypatch):
    assert "model_inputs" in agent_of(OwnInputs, tmp_path / "inputs", monkeypatch).fast.reason
    fast = agent_of(OwnMean, tmp_path / "mean", monkeypatch).fast
    assert not fast.losses
    assert fast.fused is not None


def test_a_network_reads_in_training_what_it_reads_on_the_plain_path(tmp_path, monkeypatch):
    agent = agent_of(Agent, tmp_path, monkeypatch, mlp={"activation": "swish"}, max_epochs=1)
    seen = []
    agent.model.a2c_network.register_forward_pre_hook(lambda module, args: seen.append((args[0]["is_train"], args[0]["prev_actions"])))
    agent.train()
    assert {(train, actions is None) for train, actions in seen} == {(False, True), (True, False)}


def test_a_second_derivative_in_the_default_update_names_the_way_out(tmp_path, monkeypatch):
    class Penalty(Agent):
        def extra_losses(self, mb, out):
            weights = list(self.model.a2c_network.actor_mlp.parameters())
            grads = torch.autograd.grad(out.neglogp.mean(), weights, create_graph=True)
            return {"penalty": sum((g**2).sum() for g in grads)}

    with pytest.raises(RuntimeError, match=r"train\.params\.config\.fused=false"):
        agent_of(Penalty, tmp_path / "fused", monkeypatch).train()
    agent_of(Penalty, tmp_path / "plain", monkeypatch, fused=False).train()
