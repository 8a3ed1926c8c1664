"""GAIL's reward, loss and inputs by hand."""

from __future__ import annotations

import math

import pytest
import torch
from gymnasium import spaces

from algos.gail import GAILDiscriminator, GAILOptions
from core.errors import UserError
from tests.command import resolve
from tests.test_discriminator import judge

SCORES = torch.tensor([0.0, math.log(3.0), -math.log(3.0)])  # D = 1/2, 3/4, 1/4


@pytest.mark.parametrize(
    ("kind", "paid"),
    [
        ("positive", [math.log(2), math.log(4), math.log(4 / 3)]),  # -log(1 - D): of 1/2, 1/4, 3/4
        ("negative", [-math.log(2), -math.log(4 / 3), -math.log(4)]),  # log D
        ("logit", [0.0, math.log(3), -math.log(3)]),  # log D - log(1 - D)
    ],
)
def test_the_reward_by_hand(kind, paid):
    disc = judge(GAILDiscriminator, GAILOptions(gail_reward=kind))
    assert disc.reward(SCORES).tolist() == pytest.approx(paid, abs=1e-6)


def test_the_reward_of_a_sure_discriminator_is_finite():
    disc = judge(GAILDiscriminator, GAILOptions())
    assert disc.reward(torch.tensor([100.0, -100.0])).tolist() == pytest.approx([100.0, 0.0])


def test_the_loss_by_hand():
    disc = judge(GAILDiscriminator, GAILOptions())
    policy, demos = torch.tensor([0.0, math.log(3.0)]), torch.tensor([math.log(3.0)])
    # policy: -log(1 - D) of D = 1/2 and 3/4: (log 2 + log 4) / 2; demonstrated: -log 3/4
    assert disc.loss(policy, demos).item() == pytest.approx((math.log(2) + math.log(4)) / 2 + math.log(4 / 3))
    assert disc.loss(torch.tensor([-9.0]), torch.tensor([9.0])) < disc.loss(torch.tensor([9.0]), torch.tensor([-9.0]))


def test_continuous_actions_are_seen_as_the_environment_takes_them():
    obs, actions = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[0.5, -7.0]])
    disc = judge(GAILDiscriminator, GAILOptions())
    assert disc.inputs(obs, actions).tolist() == [[1, 2, 3, 0.5, -1.0]]
    assert disc.stats.running_mean.shape == (5,)
    wide = judge(GAILDiscriminator, GAILOptions(), clip_actions=False)
    assert wide.inputs(obs, actions).tolist() == [[1, 2, 3, 0.5, -7.0]]


def test_choices_are_seen_one_hot():
    obs = torch.zeros(2, 1)
    one = judge(GAILDiscriminator, GAILOptions(), size=1, action_kind="discrete", actions_num=3, action_space=spaces.Discrete(3))
    assert one.inputs(obs, torch.tensor([2, 0])).tolist() == [[0, 0, 0, 1], [0, 1, 0, 0]]
    heads = spaces.Tuple([spaces.Discrete(2), spaces.Discrete(3)])
    both = judge(GAILDiscriminator, GAILOptions(), size=1, action_kind="multi_discrete", actions_num=[2, 3], action_space=heads)
    assert both.inputs(obs, torch.tensor([[1, 0], [0, 2]])).tolist() == [[0, 0, 1, 1, 0, 0], [0, 1, 0, 0, 0, 1]]
    assert both.stats.running_mean.shape == (6,)


def test_an_unknown_reward_is_refused():
    with pytest.raises(UserError, match=r"gail_reward is 'positiv'.*Did you mean 'positive'"):
        resolve("task=TorchPendulum", "train=GAIL", "train.params.config.gail_reward=positiv")
