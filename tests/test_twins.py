"""Actor and critic of a separate network at once, and elu by exp: the same numbers as one after the other, and as torch's."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from algos.agent import Agent
from core import fused_twins
from core.fused import ACTIVATIONS, MUCH
from core.fused_twins import TwinNet
from tests.test_fast import SmoothAdam, agent_of


@pytest.mark.parametrize("units", [[16, 8], [4, 32]])
@pytest.mark.parametrize("activation", ["relu", "elu", "tanh"])
@pytest.mark.parametrize("action", ["continuous", "discrete"])
def test_both_trunks_at_once_are_the_two_trunks(action, activation, units, tmp_path, monkeypatch):
    agent = agent_of(Agent, tmp_path, monkeypatch, action=action, separate=True, mlp={"activation": activation, "units": units})
    hand, fused = agent.fast.by_hand, agent.fast.fused
    assert isinstance(hand.net, TwinNet)
    for rows in (33, 7, 33):  # reset rows make minibatches of several sizes
        obs = torch.randn(rows, 3)
        head, values = fused(obs)
        weight = torch.randn_like(head), torch.randn_like(values)
        wanted = torch.autograd.grad((head * weight[0]).sum() + (values * weight[1]).sum(), list(fused.parameters))
        with torch.no_grad():
            work = hand.net.take_work(obs)
            torch.testing.assert_close(hand.net.forward_by_hand(obs, work), (head, values))
            hand.net.backward_into(obs, work, *weight, hand.into)
        for got, expected in zip(agent.optimizer.gradients(fused.parameters), wanted, strict=True):
            torch.testing.assert_close(got, expected)


def test_twins_learn_and_their_optimizer_is_saved_as_any_other(tmp_path, monkeypatch):
    """Their parameters lie in another order, which a state dict must not know."""
    agent = agent_of(SmoothAdam, tmp_path / "a", monkeypatch, separate=True)
    agent.train()
    plain = torch.optim.Adam(agent.model.parameters(), 1e-2, eps=0.1)
    plain.load_state_dict(copy.deepcopy(agent.optimizer.state_dict()))
    for p in agent.model.parameters():
        assert plain.state[p]["exp_avg"].shape == p.shape
        torch.testing.assert_close(plain.state[p]["exp_avg"], agent.optimizer.state[p]["exp_avg"])
    other = agent_of(SmoothAdam, tmp_path / "b", monkeypatch, separate=True)
    other.model.load_state_dict(agent.model.state_dict())
    other.optimizer.load_state_dict(copy.deepcopy(plain.state_dict()))
    for one in (agent, other):
        assert one.optimizer.lies_flat()
        for i, gradient in enumerate(one.optimizer.gradients(one.model.parameters())):
            gradient.fill_(0.1 * (i + 1))
        one.optimizer.step_in_place(1.0)
    for a, b in zip(agent.model.parameters(), other.model.parameters(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("rows", [8, MUCH // 4])
def test_elu_by_exp_is_elu(rows):
    x = torch.cat(
        [torch.linspace(-90, 90, rows), torch.linspace(-1e-3, 1e-3, rows), torch.tensor([0.0, -1e-30, float("-inf"), float("inf")])]
    )
    x = x.repeat(3)
    forward, backward = ACTIVATIONS[nn.ELU]
    out = x.clone()
    forward(out, torch.empty_like(out))
    torch.testing.assert_close(out, nn.functional.elu(x), rtol=1e-6, atol=1e-7)
    grad = torch.ones_like(x)
    backward(grad, out)
    torch.testing.assert_close(grad, torch.where(x > 0, 1.0, x.exp()), rtol=1e-5, atol=1e-6)
    broken = torch.full((4 * MUCH,), float("nan"))
    forward(broken, torch.empty_like(broken))
    assert broken.isnan().all()  # a NaN must not become a 0


# ---- sums over the rows on a GPU -------------------------------------------------------------------------------------


def check_weight_gradients(device: str) -> None:
    """Wide over narrow and narrow over wide, in chunks of rows: entry by entry what a product over all rows gives."""
    torch.manual_seed(2)
    for out, into in ((5, 3), (3, 5)):
        grad, below = (torch.randn(2, 3 * fused_twins.CHUNK, width, dtype=torch.float64, device=device) for width in (out, into))
        found = torch.full((2, out, into), torch.nan, dtype=torch.float64, device=device)
        fused_twins.weight_gradients(grad, below, found)
        torch.testing.assert_close(found, torch.einsum("kbo,kbi->koi", grad, below))


def test_weight_gradients_in_chunks_are_those_of_all_rows(monkeypatch):
    monkeypatch.setattr(fused_twins, "in_chunks", lambda grad: grad.shape[1] % fused_twins.CHUNK == 0)
    check_weight_gradients("cpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_weight_gradients_on_a_gpu():
    check_weight_gradients("cuda")
