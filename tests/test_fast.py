"""The fast path does what the plain path does: same numbers from the same noise, and an algorithm's own hook takes its part over."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from algos import losses
from algos.agent import Agent
from algos.by_hand import ByHand
from algos.flat_adam import FlatAdam
from algos.fused_losses import Categorical, Gaussian, StandardLoss, categorical_mean_kl, gaussian_mean_kl
from algos.options import AgentOptions
from algos.rollout import EpisodeStats
from core import registry
from core.fused import FusedNet
from core.policy import Policy
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


# ---- each part against autograd -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("activation", ["relu", "elu", "tanh"])
@pytest.mark.parametrize("action", ["continuous", "discrete"])
def test_the_fused_network_is_the_network(action, activation, separate, tmp_path, monkeypatch):
    agent = agent_of(Agent, tmp_path, monkeypatch, action=action, separate=separate, mlp={"activation": activation})
    net, fused = agent.model.a2c_network, FusedNet.of(agent.model)
    obs = torch.randn(33, 3)
    head, values = fused(obs)
    expected = net({"obs": obs})
    weight = torch.randn_like(head), torch.randn_like(values)
    params = list(fused.parameters)
    got = torch.autograd.grad((head * weight[0]).sum() + (values * weight[1]).sum(), params)
    wanted = torch.autograd.grad((expected[0] * weight[0]).sum() + (expected[-2] * weight[1]).sum(), params)
    for a, b in zip((head, values, *got), (expected[0], expected[-2], *wanted), strict=True):
        torch.testing.assert_close(a, b)
    step = torch.empty(33, head.shape[1]), torch.empty(33, 1)
    with torch.no_grad():
        fused.act(obs, *step)
    torch.testing.assert_close(step, (expected[0], expected[-2]))


def test_mean_kl_divergences():
    mus, sigma, old_mus, old_sigmas = torch.randn(50, 3), torch.rand(3) + 0.5, torch.randn(50, 3), torch.rand(50, 3) + 0.5
    expected = losses.gaussian_kl(mus, sigma.expand_as(mus), old_mus, old_sigmas).mean()
    torch.testing.assert_close(gaussian_mean_kl(mus, sigma, old_mus, old_sigmas), expected)
    old, new = torch.randn(50), torch.randn(50)
    torch.testing.assert_close(categorical_mean_kl(old, new), losses.neglogp_kl(old, new).mean())


class Differentiating(Agent):
    """Reads what it is given after the default update has, and differentiates by it."""

    def setup(self):
        self.critic = self.register("own", nn.Linear(3, 1))

    def extra_update(self, batch):
        rows = next(batch.minibatches(2, True))
        for each in (batch, rows):
            made = [x for value in each.fields.values() for x in (value if isinstance(value, list) else [value]) if x is not None]
            assert not any(x.is_inference() for x in made)
            ((self.critic(each.obs).squeeze(1) - each.advantages) ** 2 + each.returns.sum(1) * self.critic.bias).mean().backward()
        return {"own": float(self.critic.weight.grad.abs().sum())}

    def policy_kl(self, mb, out):
        assert not any(x.is_inference() for name, x in mb.fields.items() if isinstance(x, torch.Tensor))
        return super().policy_kl(mb, out)


@pytest.mark.parametrize("rnn", [None, "lstm"])
@pytest.mark.parametrize("normalize_input", [False, True])
@pytest.mark.parametrize("reset_mode", ["same_step", "next_step"])
def test_what_a_batch_gives_can_be_differentiated(reset_mode, normalize_input, rnn, tmp_path, monkeypatch):
    settings = {"rnn": rnn} if rnn else {"separate": True}
    agent = agent_of(Differentiating, tmp_path, monkeypatch, {"reset_mode": reset_mode}, normalize_input=normalize_input, **settings)
    agent.train()
    assert agent.fast.by_hand is not None
    assert agent.metrics["own"] > 0


class OwnKl(Agent):
    def policy_kl(self, mb, out):
        return torch.full_like(out.neglogp, 0.125)


class OwnSigmas(Agent):
    def evaluate_actions(self, mb):
        out = super().evaluate_actions(mb)
        out.sigmas = out.sigmas * (1.0 + torch.arange(len(out.sigmas)).unsqueeze(1))
        return out

    def before_epoch(self):
        self.seen = []

    def _schedule(self, kl):
        self.seen.append(float(kl))


def test_an_own_kl_divergence_or_sigma_is_heard(tmp_path, monkeypatch):
    agent = agent_of(OwnKl, tmp_path / "kl", monkeypatch, max_epochs=1)
    agent.train()
    assert agent.metrics["info/kl"] == pytest.approx(0.125)
    fused, plain = (
        agent_of(OwnSigmas, tmp_path / str(f), monkeypatch, max_epochs=1, mini_epochs=1, shuffle=False, fused=f) for f in (True, False)
    )
    for agent in (fused, plain):
        torch.manual_seed(2)
        agent.train()
    assert fused.seen[0] == pytest.approx(plain.seen[0], rel=0.5)  # other noise, but by the same formula: row i's sigma is i times as large
    assert fused.seen[0] > 1.0


def test_a_value_that_no_loss_uses_gets_no_gradient(tmp_path, monkeypatch):
    agent = agent_of(Agent, tmp_path, monkeypatch, separate=True)
    fused = FusedNet.of(agent.model)
    fused(torch.randn(5, 3))[0].sum().backward()
    net = agent.model.a2c_network
    assert net.mu.weight.grad is not None
    assert net.value.weight.grad is None
    assert net.critic_mlp[0].weight.grad is None


def test_two_forward_passes_may_wait_for_their_gradients(tmp_path, monkeypatch):
    agent = agent_of(Agent, tmp_path, monkeypatch)
    fused, obs = FusedNet.of(agent.model), torch.randn(2, 9, 3)
    both = torch.autograd.grad(fused(obs[0])[0].sum() + fused(obs[1])[0].sum(), fused.parameters[:1])[0]
    one = [torch.autograd.grad(fused(x)[0].sum(), fused.parameters[:1])[0] for x in obs]
    torch.testing.assert_close(both, one[0] + one[1])
    loss = fused(obs[0])[0].sum()
    loss.backward(retain_graph=True)
    fused(obs[1])
    with pytest.raises(RuntimeError, match="overwritten"):
        loss.backward()


@pytest.mark.parametrize("shape", [(2,), (7, 2)], ids=["fixed", "by_state"])
def test_gaussian(shape):
    mus, logstd, actions = torch.randn(7, 2, requires_grad=True), torch.randn(shape, requires_grad=True), torch.randn(7, 2)
    normal = torch.distributions.Normal(mus, logstd.exp().expand_as(mus))
    expected = -normal.log_prob(actions).sum(-1), normal.entropy().sum(-1)
    _same(Gaussian.apply(mus, logstd, actions), expected, [mus, logstd])


def test_categorical():
    logits, actions = torch.randn(7, 4, requires_grad=True), torch.randint(0, 4, (7,))
    categorical = torch.distributions.Categorical(logits=logits)
    _same(Categorical.apply(logits, actions), (-categorical.log_prob(actions), categorical.entropy(), categorical.logits), [logits])


def _same(got, expected, inputs):
    weights = [torch.randn_like(x) for x in expected]
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)
    gradients = [torch.autograd.grad(sum((w * x).sum() for w, x in zip(weights, side, strict=True)), inputs) for side in (got, expected)]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("clip_value", [False, True])
@pytest.mark.parametrize("width", [1, 2])
def test_standard_loss(width, clip_value, masked):
    torch.manual_seed(width)
    rows = 200
    neglogp, entropy = torch.randn(rows, requires_grad=True), torch.rand(rows, requires_grad=True)
    values, mus = torch.randn(rows, width, requires_grad=True), (2 * torch.randn(rows, 3)).requires_grad_()
    old_neglogp, advantages = neglogp.detach() + 0.3 * torch.randn(rows), torch.randn(rows)
    old_values, returns = values.detach() + 0.3 * torch.randn(rows, width), torch.randn(rows, width)
    mask = (torch.rand(rows) < 0.7).float() if masked else None
    loss, *parts = StandardLoss.apply(
        neglogp, entropy, values, mus, (old_neglogp, advantages, old_values, returns, mask), (0.2, clip_value, 0.7, 0.01, 0.3)
    )
    expected = [
        losses.masked_mean(losses.ppo_loss(old_neglogp, neglogp, advantages, 0.2), mask),
        losses.masked_mean(losses.value_loss(old_values, values, returns, 0.2, clip_value), mask),
        losses.masked_mean(entropy, mask),
        losses.masked_mean(losses.bound_loss(mus), mask),
    ]
    total = expected[0] + 0.7 * expected[1] - 0.01 * expected[2] + 0.3 * expected[3]
    torch.testing.assert_close([loss, *parts], [total, *expected])
    inputs = [neglogp, entropy, values, mus]
    torch.testing.assert_close(torch.autograd.grad(3 * loss, inputs), torch.autograd.grad(3 * total, inputs))


def test_flat_adam_is_adam():
    def nets():
        torch.manual_seed(1)
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 5))
        return net.to(memory_format=torch.channels_last)

    ours, theirs = nets(), nets()
    flat = FlatAdam(ours.parameters(), 1e-2, weight_decay=0.1)
    adam = torch.optim.Adam(theirs.parameters(), 1e-2, weight_decay=0.1)

    def step(clip=None, without=0):
        x = torch.randn(6, 3, 4, 4)
        for net in (ours, theirs):
            net.zero_grad()
            (net(x) ** 2).sum().backward()
            for p in list(net.parameters())[:without]:
                p.grad = None
        if clip is None:
            flat.step()
        else:
            assert flat.step_clipped(clip)
            nn.utils.clip_grad_norm_(theirs.parameters(), clip)
        adam.step()
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
            if b.grad is not None and a.grad is not None:
                torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-6)

    step()
    step(clip=0.5)
    flat.load_state_dict(adam.state_dict())  # per parameter, as torch's
    step(clip=0.5)
    adam.load_state_dict(copy.deepcopy(flat.state_dict()))
    step(clip=0.5)
    step(without=2)  # a part without gradients keeps its weights and its state; from then on each has its own count of steps
    assert not flat.lies_flat()
    step()
    flat.load_state_dict(adam.state_dict())
    assert not flat.lies_flat()
    step()


def test_momenta_that_move_nothing_end_at_zero():
    net = nn.Linear(2, 1)
    flat = FlatAdam(net.parameters(), 1e-2)
    for p, value in zip(net.parameters(), (torch.tensor([[1e-25, -1e-3]]), torch.tensor([-1e-38])), strict=True):
        flat.state[p]["exp_avg"].copy_(value)
    flat.settle()
    assert flat.state[net.weight]["exp_avg"].tolist() == [[0.0, pytest.approx(-1e-3)]]
    assert flat.state[net.bias]["exp_avg"].tolist() == [0.0]


def test_weights_that_leave_the_flat_tensor_are_stepped_one_by_one():
    net = nn.Linear(3, 2)
    flat = FlatAdam(net.parameters(), 1e-2)
    net.double()
    net.float()
    before = net.weight.clone()
    net(torch.ones(3)).sum().backward()
    assert not flat.step_clipped(1.0)
    flat.step()
    torch.testing.assert_close(net.weight, before - 1e-2)


# ---- who takes which path -----------------------------------------------------------------------------------------------


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


# ---- episodes -----------------------------------------------------------------------------------------------------------


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
