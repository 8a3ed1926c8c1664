"""The networks of networks/: sizes counted by hand, pictures of all kinds, critics apart, what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

from core import registry
from core.errors import UserError
from core.policy import Policy
from networks.pictures import Residual, Stage
from networks.simba import Block
from tests.agents import our_agent
from tests.toys import ToyVecEnv, toy_params

registry.discover()


def policy(name, shape=(3,), rows=2, **network):
    """A policy for 5 discrete actions."""
    params = toy_params("discrete", normalize_input=False, normalize_value=False)
    params["network"].update(name=name, **network)
    space = spaces.Box(0, 255, shape, np.uint8) if len(shape) == 3 else spaces.Box(-1.0, 1.0, shape, np.float32)
    return Policy(params, {"observation_space": space, "action_space": spaces.Discrete(5)}, rows, "cpu")


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_nature_cnn_has_the_papers_parameters():
    # convolutions: 4*32*8*8 + 32 = 8224; 32*64*4*4 + 64 = 32832; 64*64*3*3 + 64 = 36928
    # linear: 84 -> (84-8)/4+1 = 20 -> (20-4)/2+1 = 9 -> 9-3+1 = 7; 7*7*64 = 3136; 3136*512 + 512 = 1606144
    # heads: 512*5 + 5 = 2565; 512*1 + 1 = 513
    net = policy("nature_cnn", (4, 84, 84)).model
    assert count(net) == 8224 + 32832 + 36928 + 1606144 + 2565 + 513


def test_impala_cnn_has_the_papers_parameters():
    # stage 1: 4*16*9 + 16 = 592, and four of 16*16*9 + 16 = 2320; stage 2: 16*32*9 + 32 = 4640, and four of 32*32*9 + 32 = 9248;
    # stage 3: 9248, and four of 9248
    # linear: 84 -> 42 -> 21 -> 11; 11*11*32 = 3872; 3872*256 + 256 = 991488; heads: 256*5 + 5 = 1285; 257
    net = policy("impala_cnn", (4, 84, 84)).model
    assert count(net) == 592 + 4 * 2320 + 4640 + 4 * 9248 + 5 * 9248 + 991488 + 1285 + 257
    # width 2 on 7 x 7 x 3 -> 4 -> 2 -> 1: 3*32*9 + 32 = 896, four of 9248; 32*64*9 + 64 = 18496, four of 64*64*9 + 64 = 36928; five of
    # 36928; linear 1*1*64*256 + 256 = 16640
    net = policy("impala_cnn", (7, 7, 3), width=2).model
    assert count(net) == 896 + 4 * 9248 + 18496 + 4 * 36928 + 5 * 36928 + 16640 + 1285 + 257


def test_simba_has_the_papers_parameters():
    # actor, width 8, one block, 3 observations: 3*8 + 8 = 32; norm 16, 8*32 + 32 = 288, 32*8 + 8 = 264; last norm 16; logits 8*5 + 5 = 45
    # critic, width 16, two blocks: 3*16 + 16 = 64; twice (norm 32, 16*64 + 64 = 1088, 64*16 + 16 = 1040); last norm 32; value 17
    sizes = {"width": 8, "blocks": 1, "critic_width": 16, "critic_blocks": 2}
    net = policy("simba", separate=True, **sizes).model
    assert count(net) == 32 + (16 + 288 + 264) + 16 + 45 + 64 + 2 * (32 + 1088 + 1040) + 32 + 17
    assert count(policy("simba", **sizes).model) == 32 + (16 + 288 + 264) + 16 + 45 + 9  # one trunk, value 8 + 1


def test_mlp_layernorm_normalizes_after_every_hidden_layer():
    # 3*16 + 16 = 64, norm 32; 16*8 + 8 = 136, norm 16; heads 8*5 + 5 = 45, 9
    net = policy("mlp_layernorm").model
    assert count(net) == 64 + 32 + 136 + 16 + 45 + 9
    assert [type(layer) for layer in net.a2c_network.mlp] == 2 * [nn.Linear, nn.LayerNorm, nn.ELU]
    linear, norm, elu = net.a2c_network.mlp[:3]
    x = torch.randn(6, 3)
    h = linear(x)
    by_hand = (h - h.mean(1, keepdim=True)) / (h.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(elu(norm(h)), nn.functional.elu(by_hand))


def test_a_residual_block_on_one_pixel():
    block = Residual(1)
    for layer, middle, bias in ((block.first, 2.0, 1.0), (block.second, -3.0, 0.5)):
        nn.init.zeros_(layer.weight)
        layer.weight.data[0, 0, 1, 1], layer.bias.data[0] = middle, bias
    # x = 4: 2 * 4 + 1 = 9; -3 * 9 + 0.5 = -26.5; 4 - 26.5. x = -4: relu is 0; 1; -3 + 0.5 = -2.5; -4 - 2.5
    assert block(torch.tensor([[[[4.0]]], [[[-4.0]]]])).flatten().tolist() == [-22.5, -6.5]


def test_a_stage_takes_the_maximum_of_every_second_place():
    stage = Stage(1, 1)
    nn.init.zeros_(stage[0].weight)
    stage[0].weight.data[0, 0, 1, 1] = 1.0
    for p in [stage[0].bias, *stage[2].parameters(), *stage[3].parameters()]:
        nn.init.zeros_(p)
    x = torch.arange(16.0).view(1, 1, 4, 4)
    # windows around rows and columns 0 and 2: the largest of rows 0-1 and columns 0-1 is 5, of columns 1-3 it is 7, of rows 1-3 13 and 15
    assert stage(x).tolist() == [[[[5.0, 7.0], [13.0, 15.0]]]]


def test_a_simba_block_by_hand():
    block = Block(2, 1)
    block.wide.weight.data, block.back.weight.data = torch.eye(2), torch.tensor([[2.0, 0.0], [0.0, 2.0]])
    # norm of (1, 3) is (-1, 1) (mean 2, deviation 1); relu (0, 1); doubled (0, 2); added to (1, 3)
    torch.testing.assert_close(block(torch.tensor([[1.0, 3.0]])), torch.tensor([[1.0, 5.0]]), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("name", "shapes"), [("nature_cnn", [(3, 36, 40), (1, 84, 84)]), ("impala_cnn", [(3, 5, 4), (3, 7, 7), (4, 64, 50)])]
)
def test_pictures_either_way_round_give_the_same(name, shapes):
    for c, h, w in shapes:
        first, last = policy(name, (c, h, w)), policy(name, (h, w, c))
        last.model.load_state_dict(first.model.state_dict())
        obs = torch.randint(0, 256, (2, c, h, w), dtype=torch.uint8)
        logits = first.act(obs)["logits"]
        torch.testing.assert_close(last.act(obs.permute(0, 2, 3, 1))["logits"], logits)
        assert not torch.allclose(first.act(255 - obs)["logits"], logits)


def test_too_small_a_picture_is_told_with_the_least_size():
    assert policy("nature_cnn", (4, 36, 36)).act(torch.zeros(2, 4, 36, 36, dtype=torch.uint8))["actions"].shape == (2,)
    with pytest.raises(UserError, match="at least 36 x 36, but the task's are 84 x 35"):
        policy("nature_cnn", (4, 84, 35))


@pytest.mark.parametrize("name", ["nature_cnn", "impala_cnn"])
def test_networks_of_pictures_refuse_vectors(name):
    with pytest.raises(UserError, match=rf"'{name}' reads pictures.*shape \(3,\)"):
        policy(name)


@pytest.mark.parametrize("name", ["simba", "mlp_layernorm"])
def test_networks_of_vectors_refuse_pictures(name):
    with pytest.raises(UserError, match=rf"'{name}' reads flat observations, not shape \(4, 84, 84\)"):
        policy(name, (4, 84, 84))


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [("simba", "blocks", 0), ("impala_cnn", "width", 0), ("nature_cnn", "units", 0), ("gtrxl", "heads", 3), ("gtrxl", "memory_length", 0)],
)
def test_a_size_that_makes_no_network_is_named(name, key, value):
    with pytest.raises(UserError, match=rf"{key} (is|\({value}|.*heads \(3\))"):
        policy(name, (4, 84, 84) if "cnn" in name else (3,), **{key: value})


OF_VECTORS = {"attention": {}, "mlp_layernorm": {}, "simba": {"width": 16, "critic_width": 16}, "gtrxl": {"width": 16, "memory_length": 4}}


@pytest.mark.parametrize("name", OF_VECTORS)
def test_separate_gives_the_critic_all_layers_of_its_own(name):
    net = policy(name, separate=True, **OF_VECTORS[name]).model.a2c_network
    assert net.is_separate_critic()
    assert isinstance(net.get_value_layer(), nn.Linear)
    inputs = {"obs": torch.randn(2, 3), "rnn_states": net.get_default_rnn_state()}
    logits, value, _ = net(inputs)
    of_value, of_logits = ({n for n, p in net.named_parameters() if _gradient(p, out) is not None} for out in (value, logits))
    assert of_value
    assert of_logits
    assert all(n.startswith("critic.") for n in of_value)
    assert not any(n.startswith("critic.") for n in of_logits)
    shared = policy(name, **OF_VECTORS[name]).model.a2c_network
    assert not shared.is_separate_critic()
    assert shared.get_value_layer() is shared.value


def _gradient(parameter, out):
    return torch.autograd.grad(out.sum(), parameter, retain_graph=True, allow_unused=True)[0]


def test_gtrxl_in_bfloat16(tmp_path):
    """Autocast leaves some of a gate's inputs in float32, which torch.lerp does not take beside bfloat16."""
    params = toy_params(max_epochs=1)
    params["network"].update(name="gtrxl", width=8, heads=2, layers=1, memory_length=4, feed_forward=8)
    params["config"].update(precision="bf16", seq_length=4)
    our_agent(params, ToyVecEnv(), tmp_path).train()


@pytest.mark.parametrize("size", ["token_size", "heads", "layers", "width"])
def test_attention_of_no_size_is_named(size, tmp_path):
    params = toy_params()
    params["network"].update(name="attention", **{"token_size": 1, size: 0})
    with pytest.raises(UserError, match=f"train.params.network.{size} is 0; valid: 1 or more"):
        our_agent(params, ToyVecEnv(), tmp_path)
