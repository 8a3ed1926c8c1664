"""Each part of the fast path against autograd and torch: networks, losses, Adam."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from algos import losses
from algos.agent import Agent
from algos.flat_adam import FlatAdam
from algos.fused_losses import Categorical, Gaussian, StandardLoss, categorical_mean_kl, gaussian_mean_kl
from core.fused import FusedNet
from tests.test_fast import agent_of


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
