"""The written-out LSTM and GRU are rl_games' network: values, memory and gradients, with resets inside sequences."""

from __future__ import annotations

import pytest
import torch

from algos.agent import Agent
from core import onednn_lstm
from core.fused import Sequences
from core.fused_memory import FusedRecurrentNet, fused_net
from core.fused_rnn import LSTM
from tests.agents import our_agent, weights
from tests.test_fast import SmoothAdam, agent_of
from tests.toys import ToyVecEnv, toy_params

S, T = 5, 6

NETWORKS = {
    "plain": {},
    "wide": {"units": 40},
    "before_mlp": {"before_mlp": True},
    "before_mlp_concat": {"before_mlp": True, "concat_output": True},
    "layer_norm": {"layer_norm": True},
    "concat": {"concat_input": True, "concat_output": True},
    "two_layers": {"layers": 2},
    "everything": {"layers": 2, "layer_norm": True, "concat_input": True, "concat_output": True},
}


def network(tmp_path, rnn="lstm", separate=False, action="continuous", mlp=None, dtype=torch.float64, **memory):
    params = toy_params(action=action, rnn=rnn)
    params["network"]["separate"] = separate
    params["network"]["rnn"].update(memory)
    params["network"]["mlp"].update(mlp or {})
    model = our_agent(params, ToyVecEnv(action=action), tmp_path).model.to(dtype)
    for parameter in model.parameters():  # rl_games starts some at 0 or 1, where gradients that were forgotten look right
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model.a2c_network, fused_net(model)


def states_of(net, rows, dtype=torch.float64):
    return [torch.randn(state.shape[0], rows, state.shape[2], dtype=dtype) for state in net.get_default_rnn_state()]


def inputs(obs, sequences):
    dones = {} if sequences.dones is None else {"dones": sequences.dones}
    return {"obs": obs, "rnn_states": tuple(sequences.rnn_states), "seq_length": sequences.seq_length, **dones}


@pytest.mark.parametrize("resets", ["none", "some", "first_step", "every_row"])
@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("rnn", ["lstm", "gru"])
@pytest.mark.parametrize("kind", NETWORKS)
def test_a_minibatch_and_its_gradients(kind, rnn, separate, resets, tmp_path):
    torch.manual_seed(3)
    net, fused = network(tmp_path, rnn, separate, **NETWORKS[kind])
    dones = {"none": torch.zeros(S, T), "some": torch.rand(S, T) < 0.3, "first_step": torch.zeros(S, T), "every_row": torch.ones(S, T)}
    dones["first_step"][2, 0] = 1
    obs = torch.randn(S * T, 3, dtype=torch.float64)
    sequences = Sequences(states_of(net, S), T, dones[resets].to(torch.uint8).flatten())
    kept = [state.clone() for state in sequences.rnn_states]
    same_pass(net, fused, obs, sequences)
    torch.testing.assert_close(sequences.rnn_states, kept, rtol=0, atol=0)


def same_pass(net, fused, obs, sequences, **close):
    """Outputs and gradients of the written-out network and of rl_games' own."""
    head, values = fused(obs, sequences)
    mu, _, value, _ = net(inputs(obs, sequences))
    weight = torch.randn_like(mu), torch.randn_like(value)
    params = list(fused.parameters)
    assert {id(p) for p in params} == {id(p) for name, p in net.named_parameters() if name != "sigma"}
    got = torch.autograd.grad((head * weight[0]).sum() + (values * weight[1]).sum(), params)
    wanted = torch.autograd.grad((mu * weight[0]).sum() + (value * weight[1]).sum(), params)
    for a, b in zip((head, values, *got), (mu, value, *wanted), strict=True):
        torch.testing.assert_close(a, b, **close)


FEW = {  # resets of 16 sequences: (sequence, step)
    "none": (),
    "one": ((3, 4),),
    "two_in_a_sequence": ((7, 2), (7, 5)),
    "at_both_ends": ((0, 0), (0, 1), (15, 5), (4, 0)),
}


@pytest.mark.skipif(not onednn_lstm.AVAILABLE, reason="this torch has no oneDNN")
@pytest.mark.parametrize("resets", FEW)
@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("kind", NETWORKS)
def test_torchs_own_layer_where_resets_are_few(kind, separate, resets, tmp_path, monkeypatch):
    torch.manual_seed(3)
    net, fused = network(tmp_path, separate=separate, dtype=torch.float32, **NETWORKS[kind])
    monkeypatch.setattr(LSTM, "forward", None)  # the written-out layer's
    dones = torch.zeros(16, T, dtype=torch.uint8)
    for place in FEW[resets]:
        dones[place] = 1
    obs, sequences = torch.randn(16 * T, 3), Sequences(states_of(net, 16, torch.float32), T, dones.flatten())
    for _ in range(2):  # the second pass finds the first one's room
        same_pass(net, fused, obs, sequences, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("inside", [2, 3])
def test_many_resets_are_the_written_out_layers(inside, tmp_path, monkeypatch):
    """A sequence is cut at a reset, and so many make more rows than torch's layer gains."""
    net, fused = network(tmp_path, dtype=torch.float32)
    ran = []
    forward = LSTM.forward
    monkeypatch.setattr(LSTM, "forward", lambda self, *args: ran.append(1) or forward(self, *args))
    dones = torch.zeros(16, T, dtype=torch.uint8)
    dones[:, 0] = 1  # cuts nothing
    dones[:inside, 3] = 1
    obs, sequences = torch.randn(16 * T, 3), Sequences(states_of(net, 16, torch.float32), T, dones.flatten())
    same_pass(net, fused, obs, sequences, rtol=1e-4, atol=1e-4)
    assert bool(ran) == (inside > 2 or not onednn_lstm.AVAILABLE)


@pytest.mark.parametrize("mlp", [{}, {"units": [7], "activation": "relu"}, {"units": [7, 9, 5], "activation": "tanh"}])
@pytest.mark.parametrize("before_mlp", [False, True])
@pytest.mark.parametrize("rnn", ["lstm", "gru"])
def test_layers_of_the_mlp_and_discrete_actions(rnn, before_mlp, mlp, tmp_path):
    net, fused = network(tmp_path, rnn, action="discrete", mlp=mlp, before_mlp=before_mlp)
    obs, sequences = torch.randn(S * T, 3, dtype=torch.float64), Sequences(states_of(net, S), T)
    head, values = fused(obs, sequences)
    logits, value, _ = net(inputs(obs, sequences))
    torch.testing.assert_close((head, values), (logits, value))
    params = list(fused.parameters)
    got, wanted = (torch.autograd.grad((a**2).sum() + (b**3).sum(), params) for a, b in ((head, values), (logits, value)))
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("rnn", ["lstm", "gru"])
@pytest.mark.parametrize("kind", ["plain", "before_mlp_concat", "everything"])
def test_steps_carry_the_memory_on_and_a_look_at_the_values_does_not(kind, rnn, separate, tmp_path):
    net, fused = network(tmp_path, rnn, separate, **NETWORKS[kind])
    ours = states_of(net, S)
    theirs = tuple(state.clone() for state in ours)
    head, values = torch.empty(S, 2, dtype=torch.float64), torch.empty(S, 1, dtype=torch.float64)
    with torch.no_grad():
        for _ in range(3):
            obs = torch.randn(S, 3, dtype=torch.float64)
            mu, _, value, theirs = net({"obs": obs, "rnn_states": theirs})
            before = [state.clone() for state in ours]
            torch.testing.assert_close(fused.values(obs, ours), value)
            torch.testing.assert_close(ours, before, rtol=0, atol=0)
            fused.act(obs, head, values, ours)
            torch.testing.assert_close((head, values), (mu, value))
            torch.testing.assert_close(tuple(ours), theirs)


def test_a_value_that_no_loss_uses_gets_no_gradient(tmp_path):
    net, fused = network(tmp_path, separate=True)
    fused(torch.randn(S * T, 3, dtype=torch.float64), Sequences(states_of(net, S), T))[0].sum().backward()
    assert net.a_rnn.rnn.weight_hh_l0.grad is not None
    assert net.c_rnn.rnn.weight_hh_l0.grad is None
    assert net.critic_mlp[0].weight.grad is None


def test_two_forward_passes_of_different_sizes_may_wait_for_their_gradients(tmp_path):
    net, fused = network(tmp_path)
    passes = [(torch.randn(n * T, 3, dtype=torch.float64), Sequences(states_of(net, n), T)) for n in (S, S + 1, S)]
    both = torch.autograd.grad(sum(sum(x.sum() for x in fused(*each)) for each in passes), fused.parameters)
    one = [torch.autograd.grad(sum(x.sum() for x in fused(*each)), fused.parameters) for each in passes]
    for i, total in enumerate(both):
        torch.testing.assert_close(total, sum(grads[i] for grads in one))


class OwnExtra(SmoothAdam):
    def extra_losses(self, mb, out):
        return {"small": 0 * out.mus.sum(-1)}


def test_a_hook_takes_the_step_without_a_graph_and_leaves_the_passes(tmp_path, monkeypatch):
    agents = [agent_of(cls, tmp_path / cls.__name__, monkeypatch, rnn="lstm") for cls in (SmoothAdam, OwnExtra)]
    assert [agent.fast.by_hand is not None for agent in agents] == [True, False]
    for agent in agents:
        assert isinstance(agent.fast.fused, FusedRecurrentNet)
        torch.manual_seed(5)
        agent.train()
    for name, value in weights(agents[0]).items():
        torch.testing.assert_close(value, weights(agents[1])[name], rtol=1e-5, atol=1e-6)


def test_what_is_not_written_out_around_the_memory_keeps_its_own_pass(tmp_path, monkeypatch):
    agent = agent_of(Agent, tmp_path, monkeypatch, rnn="lstm", mlp={"activation": "swish"})
    assert agent.fast.reason is None
    assert agent.fast.fused is None
    agent.train()
