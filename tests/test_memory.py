"""Memory: gates and attention by hand, a sequence is its steps, nothing crosses an episode's end, every algorithm learns with it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from gymnasium import spaces
from rl_games.common.layers.recurrent import GRUWithDones, LSTMWithDones
from torch import nn

from core import registry
from core.errors import UserError
from core.policy import Policy
from networks.gtrxl import Gate, RelativeAttention, TransformerMemory, shifted, sinusoids
from networks.memory import Recurrent
from tests.agents import our_agent
from tests.command import command
from tests.test_algos_all import ALIASES, BY_NAME, arguments
from tests.toys import LENGTH, ToyVecEnv, toy_params

registry.discover()
S, T, WIDTH, M = 3, 11, 8, 4
SMALL_GTRXL = {"name": "gtrxl", "width": WIDTH, "heads": 2, "memory_length": M, "feed_forward": 8}
LSTM, GRU = {"name": "lstm", "units": 6, "layers": 2}, {"name": "gru", "units": 6, "layers": 1}
MEMORIES = {
    "gtrxl": SMALL_GTRXL,
    "gtrxl_long": {**SMALL_GTRXL, "memory_length": 20, "layers": 1},
    "gtrxl_separate": {**SMALL_GTRXL, "separate": True},
    "lstm": {"name": "mlp_layernorm", "rnn": LSTM},
    "lstm_separate_first": {"name": "mlp_layernorm", "separate": True, "rnn": {**LSTM, "before_mlp": True, "concat_output": True}},
    "gru_everything": {"name": "attention", "rnn": {**GRU, "layer_norm": True, "concat_input": True, "concat_output": True}},
    "gru_without_mlp": {"name": "simba", "width": 8, "rnn": GRU},
}


def network(rows=S, shape=(3,), **settings):
    """A network in double precision whose parameters are all away from their starting values."""
    params = toy_params("discrete")
    params["network"].update(settings)
    box = spaces.Box(-1.0, 1.0, shape, np.float32)
    net = Policy(params, {"observation_space": box, "action_space": spaces.Discrete(3)}, rows, "cpu").model.a2c_network.double()
    for parameter in net.parameters():
        parameter.data.add_(0.2 * torch.randn_like(parameter))
    return net


def sequence(net, obs, states, dones):
    """obs (S, T, 3), dones (S, T) -> logits and values (S, T, ...), states."""
    inputs = {"obs": obs.flatten(0, 1), "rnn_states": states, "seq_length": obs.shape[1], "dones": dones.flatten().to(torch.uint8)}
    logits, values, after = net(inputs)
    return torch.cat([logits, values], dim=1).unflatten(0, obs.shape[:2]), after


def walk(net, obs, states, dones):
    """The same, step by step, as a rollout does it."""
    states, outs = [state.clone() for state in states], []
    for t in range(obs.shape[1]):
        for state in states:
            state[:, dones[:, t].bool()] = 0.0
        logits, values, after = net({"obs": obs[:, t], "rnn_states": tuple(states)})
        states = list(after)
        outs.append(torch.cat([logits, values], dim=1))
    return torch.stack(outs, dim=1), states


def case(net, seed=0, chance=0.25):
    """Observations, a memory of several steps, and resets."""
    torch.manual_seed(seed)
    empty = [state.double() for state in net.get_default_rnn_state()]
    _, states = walk(net, torch.randn(S, 6, 3).double(), empty, torch.zeros(S, 6))
    return torch.randn(S, T, 3).double(), states, (torch.rand(S, T) < chance).long()


# ---- the arithmetic of GTrXL ------------------------------------------------------------------------------------------------


def test_the_gate_by_hand():
    gate = Gate(1, 2.0)
    gate.of_y.weight.data = torch.tensor([[0.0], [0.0], [1.0]])  # W_r, W_z, W_g
    gate.of_x.weight.data = torch.tensor([[0.0], [1.0]])  # U_r, U_z
    gate.of_kept.weight.data = torch.tensor([[1.0]])  # U_g
    # x = 2, y = 1: r = sigmoid(0) = 0.5; z = sigmoid(2 - 2) = 0.5; h = tanh(1 + 0.5 * 2) = tanh(2); 0.5 * 2 + 0.5 * h
    got = gate(torch.tensor([[2.0]]), torch.tensor([[1.0]]))
    assert got.item() == pytest.approx(1.0 + 0.5 * math.tanh(2.0))


def test_a_gate_starts_near_the_identity():
    gate = Gate(4, 2.0)
    for linear in (gate.of_y, gate.of_x):
        nn.init.zeros_(linear.weight)
    # z = sigmoid(-2) = 0.1192 and the candidate is tanh(U_g (x / 2)): 0.8808 of x goes through
    x = torch.randn(5, 4)
    candidate = torch.tanh(gate.of_kept(0.5 * x))
    torch.testing.assert_close(gate(x, torch.randn(5, 4)), 0.880797 * x + 0.119203 * candidate)


def test_relative_attention_by_hand():
    attention = RelativeAttention(2, 1, 1)
    eye = torch.eye(2)
    for linear in (attention.to_q, attention.to_r, attention.to_out):
        linear.weight.data = eye.clone()
    attention.to_kv.weight.data = torch.cat([eye, eye])
    attention.content_bias.data, attention.distance_bias.data = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 1.0]]])
    items = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])  # one remembered step, one step
    # R_0 = (sin 0, cos 0) = (0, 1), R_1 = (sin 1, cos 1); q = (0, 2), u = (1, 0), v = (0, 1)
    # to the memory: (q + u) . (1, 0) = 1;  (q + v) . R_1 = 3 cos 1.   to itself: (q + u) . (0, 2) = 4;  (q + v) . R_0 = 3
    a, b = (1.0 + 3.0 * math.cos(1.0)) / math.sqrt(2.0), 7.0 / math.sqrt(2.0)
    weight = math.exp(a) / (math.exp(a) + math.exp(b))
    seen = attention(items, torch.ones(1, 1, 2, dtype=torch.bool))
    torch.testing.assert_close(seen, torch.tensor([[[weight, 2.0 * (1.0 - weight)]]]))
    hidden = attention(items, torch.tensor([[[False, True]]]))
    torch.testing.assert_close(hidden, torch.tensor([[[0.0, 2.0]]]))


def test_rows_are_shifted_to_their_items():
    # M = 2, T = 3: columns are distances 2, 1, 0; step t stands at item M + t, so that row t begins at item t
    got = shifted(torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]]))
    assert got[0, :3].tolist() == [1.0, 2.0, 3.0]
    assert got[1, 1:4].tolist() == [4.0, 5.0, 6.0]
    assert got[2, 2:].tolist() == [7.0, 8.0, 9.0]
    # width 4: frequencies 10000^0 = 1 and 10000^(-2/4) = 0.01; sines, then cosines
    expected = [math.sin(3.0), math.sin(0.03), math.cos(3.0), math.cos(0.03)]
    torch.testing.assert_close(sinusoids(4, 4)[3], torch.tensor(expected))


def test_what_a_step_may_look_at():
    memory = TransformerMemory(3, 4, 1, 2, 3, 4, 2.0)
    ended = torch.tensor([[False, False, True, False]])
    # M = 3, two of them filled (items 1, 2); steps are items 3 .. 6; step 2 begins an episode
    got = memory.visible(torch.tensor([2]), 4, ended)[0].int().tolist()
    assert got == [
        [0, 1, 1, 1, 0, 0, 0],  # item 0 is not filled
        [0, 1, 1, 1, 1, 0, 0],  # items 1 .. 3 are 3, 2, 1 steps before
        [0, 0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 1, 1],
    ]
    assert memory.visible(torch.tensor([3]), 4, None)[0, 3].int().tolist() == [0, 0, 0, 1, 1, 1, 1]  # no further back than 3


def test_gtrxl_has_the_papers_parameters():
    # width 8, one layer, 3 inputs, feed-forward 8: embedding 3*8 + 8 = 32; norms 2 * 16; attention: q 64, k and v 128, r 64, out 64,
    # u and v 2 * 8; feed-forward 2 * (64 + 8); two gates of 6 * 64 + 8
    expected = 32 + 32 + (64 + 128 + 64 + 64 + 16) + 144 + 2 * 392
    assert sum(p.numel() for p in TransformerMemory(3, 8, 1, 2, M, 8, 2.0).parameters()) == expected
    # and the policy's: mlp 8*16 + 16, 16*8 + 8; heads 8*3 + 3, 8 + 1
    net = network(**{**SMALL_GTRXL, "layers": 1})
    assert sum(p.numel() for p in net.parameters()) == expected + 144 + 136 + 27 + 9


# ---- sequences and steps ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chance", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("kind", MEMORIES)
def test_a_sequence_gives_what_its_steps_gave(kind, chance):
    net = network(**MEMORIES[kind])
    obs, states, dones = case(net, chance=chance)
    kept = [state.clone() for state in states]
    got, after = sequence(net, obs, states, dones)
    wanted, after_walk = walk(net, obs, states, dones)
    torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(list(after), after_walk)
    torch.testing.assert_close(states, kept, rtol=0, atol=0)  # what was given is left alone
    short, _ = sequence(net, obs[:1], [state[:, :1] for state in states], dones[:1])
    torch.testing.assert_close(short, wanted[:1])
    one, _ = sequence(net, obs[:, :1], states, dones[:, :1])
    torch.testing.assert_close(one, wanted[:, :1])


@pytest.mark.parametrize("kind", MEMORIES)
def test_nothing_crosses_an_episodes_end(kind):
    net = network(**MEMORIES[kind])
    obs, states, dones = case(net, chance=0.0)
    dones[:, 5] = 1
    before, _ = sequence(net, obs, states, dones)
    other, _ = sequence(net, obs + torch.randn(S, T, 1) * (torch.arange(T) < 5)[None, :, None], [s + 1.0 for s in states], dones)
    assert torch.equal(before[:, 5:], other[:, 5:])
    assert not torch.isclose(before[:, :5], other[:, :5]).any(dim=2).all()
    dones[:, 5] = 0
    whole, _ = sequence(net, obs, states, dones)
    assert not torch.allclose(before[:, 5:], whole[:, 5:])  # without an end there, the past does matter


def test_a_layer_looks_back_as_far_as_its_memory_and_no_further():
    net = network(**{**SMALL_GTRXL, "layers": 1})
    obs, states, dones = case(net, chance=0.0)
    obs.requires_grad_()
    out, _ = sequence(net, obs, states, dones)
    reach = torch.autograd.grad(out[:, 9].sum(), obs)[0].abs().sum(dim=(0, 2)) > 0
    assert reach.tolist() == [5 <= t <= 9 for t in range(T)]  # itself and the M = 4 steps before


def test_no_gradient_flows_into_the_memory_from_before():
    net = network(**SMALL_GTRXL)
    obs, states, dones = case(net)
    states = [state.requires_grad_() for state in states]
    out, _ = sequence(net, obs, states, dones)
    assert torch.autograd.grad(out.sum(), states, allow_unused=True) == (None, None)


@pytest.mark.parametrize(("name", "theirs"), [("lstm", LSTMWithDones), ("gru", GRUWithDones)])
def test_recurrent_is_rl_games_own_layer(name, theirs):
    ours, layer = Recurrent(name, 3, 5, 2).double(), theirs(input_size=3, hidden_size=5, num_layers=2).double()
    layer.rnn.load_state_dict(ours.rnn.state_dict())
    x, dones = torch.randn(S * T, 3).double(), torch.rand(S, T) < 0.3
    states = tuple(torch.randn_like(s, dtype=torch.float64) for s in ours.empty(S))
    got, after = ours(x, x, states, T, dones.flatten())
    by_step = x.view(S, T, 3).transpose(0, 1), dones.t().unsqueeze(2).double()
    out, end = layer(by_step[0], states if name == "lstm" else states[0], by_step[1])
    torch.testing.assert_close(got.view(S, T, 5), out.transpose(0, 1))
    torch.testing.assert_close(after, end if name == "lstm" else (end,))


# ---- in the agent -----------------------------------------------------------------------------------------------------------


def agent(tmp_path, network, env=None, **config):
    params = toy_params("discrete", normalize_input=False, learning_rate=1e-4, **config)
    params["network"].update(network)
    return our_agent(params, ToyVecEnv(action="discrete", **(env or {})), tmp_path)


@pytest.mark.parametrize("reset_mode", ["same_step", "next_step"])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("kind", ["gtrxl", "gtrxl_separate", "lstm", "gru_everything"])
def test_the_first_minibatch_sees_what_the_rollout_saw(kind, fused, reset_mode, tmp_path):
    """Episodes end inside sequences and rollouts; before the first step of the optimizer both must agree."""
    made = agent(tmp_path, MEMORIES[kind], {"reset_mode": reset_mode}, fused=fused)
    differences = []

    class Watching(type(made)):
        def update(self, batch):
            with torch.no_grad():
                for mb in batch.minibatches(2, True):
                    out = self.evaluate_actions(mb)
                    differences.append((out.neglogp - mb.old_neglogp).abs().max().item())
            return super().update(batch)

    made.__class__ = Watching
    made.train()
    assert made.rollout.rnn_dones.any()
    assert len(differences) == 2 * 3
    assert max(differences) < 1e-5


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("kind", ["gtrxl", "lstm"])
def test_a_time_out_bootstraps_from_the_terminal_observation_with_the_episodes_memory(kind, fused, tmp_path):
    made = agent(tmp_path, MEMORIES[kind], {"end": 0.0}, fused=fused, max_epochs=1, normalize_value=False)
    step, terminals = made.vec_env.step, []
    made.vec_env.step = lambda actions: (lambda result: terminals.append(result[3]["terminal_obs"]) or result)(step(actions))
    seen = {}
    update = made.update
    made.update = lambda batch: seen.update(values=_episodes_value(made, terminals)) or update(batch)
    made.train()
    assert made.rollout.time_outs[LENGTH - 1].all()
    torch.testing.assert_close(made.rollout.state_values[LENGTH - 1], seen["values"], atol=1e-5, rtol=1e-5)


def _episodes_value(made, terminals):
    """(N, 1) V of the first time-out's terminal observation: the last of a sequence of the whole episode."""
    obs = torch.cat([made.rollout.obs[:LENGTH], torch.as_tensor(terminals[LENGTH - 1])[None]]).transpose(0, 1)  # (N, LENGTH + 1, 3)
    inputs = {"obs": obs.flatten(0, 1), "rnn_states": made.policy.initial_rnn_states(), "seq_length": LENGTH + 1}
    with torch.no_grad():
        return made.model.a2c_network(inputs)[1].unflatten(0, obs.shape[:2])[:, -1]


def test_the_memory_is_stored_at_the_beginnings_of_sequences_only(tmp_path):
    made = agent(tmp_path, SMALL_GTRXL)  # 8 rows, horizon 16, seq_length 4: 16 / 4 = 4 beginnings
    made.train()
    assert [tuple(state.shape) for state in made.rollout.rnn_states] == [(4, 2, 8, M * WIDTH), (4, 1, 8, 1)]
    assert made.rollout.rnn_states[1].max() <= M


LSTM, GTRXL = ("rnn={name: lstm, units: 8, layers: 1}",), ("name=gtrxl", "width=8")
WITH_MEMORY = [  # in the fast tests each with an LSTM, and GTrXL with those that PPO's update does not tell about
    pytest.param(
        name,
        network,
        id=f"{name}-{kind}",
        marks=() if name not in ALIASES and (kind == "lstm" or name in ("ppo", "ppg")) else pytest.mark.long,
    )
    for name in BY_NAME
    for kind, network in (("lstm", LSTM), ("gtrxl", GTRXL))
]


@pytest.mark.parametrize(("name", "network"), WITH_MEMORY)
def test_every_algorithm_learns_with_memory_or_says_that_it_cannot(name, network, tmp_path):
    words = [*arguments(name, registry.algos.get(name).actions[0], tmp_path), *(f"++train.params.network.{word}" for word in network)]
    refusal, result = None, {}
    try:
        result = command(*words, "max_epochs=2")
    except UserError as error:
        refusal = str(error)
    if refusal is not None:
        assert not (tmp_path / "run" / "nn" / "last.pth").exists()
        assert any(word in refusal for word in ("memory", "recurrent", "rnn", "network"))
        return
    assert command(f"resume={tmp_path}/run", "max_epochs=3")["epochs"] == 3
    played = command("test=True", f"checkpoint={result['checkpoint']}", "player.games_num=3", "player.num_envs=2")
    assert played["episodes"] == 3


def test_gtrxl_refuses_a_second_memory_and_other_kinds_are_told():
    with pytest.raises(UserError, match="'gtrxl' is a memory itself"):
        network(**SMALL_GTRXL, rnn=GRU)
    with pytest.raises(UserError, match=r"rnn\.name is 'identity'\. Valid here: lstm, gru"):
        network(name="simba", rnn={**GRU, "name": "identity"})


def test_a_horizon_that_is_no_multiple_of_the_sequences_is_told(tmp_path):
    with pytest.raises(UserError, match=r"horizon_length 16 is not divisible by seq_length 5"):
        command(
            *arguments("ppo", "discrete", tmp_path), "train.params.network.name=gtrxl", "train.params.config.seq_length=5", "max_epochs=1"
        )
