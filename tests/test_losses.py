"""Losses and returns against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from rl_games.algos_torch import torch_ext
from rl_games.common import common_losses

from algos import losses

T = torch.tensor


def test_gae_by_hand():
    # gamma = 0.5, tau = 0.5; rewards 1, 2, 3; values 0.5, 1, 1.5; last value 2; no end
    # delta_2 = 3 + 0.5 * 2   - 1.5 = 2.5                  A_2 = 2.5
    # delta_1 = 2 + 0.5 * 1.5 - 1   = 1.75                 A_1 = 1.75 + 0.25 * 2.5    = 2.375
    # delta_0 = 1 + 0.5 * 1   - 0.5 = 1                    A_0 = 1    + 0.25 * 2.375  = 1.59375
    rewards, values = T([1.0, 2.0, 3.0]).view(3, 1, 1), T([0.5, 1.0, 1.5]).view(3, 1, 1)
    result = losses.gae(rewards, values, T([[2.0]]), torch.zeros(3, 1), gamma=0.5, tau=0.5)
    assert result.flatten().tolist() == [1.59375, 2.375, 2.5]


def test_gae_stops_at_an_end():
    # the episode ends with step 1: delta_1 = 2 - 1 = 1, A_1 = 1;  A_0 = 1 + 0.5 * 1 - 0.5 + 0.25 * 1 = 1.25;  A_2 as before
    rewards, values = T([1.0, 2.0, 3.0]).view(3, 1, 1), T([0.5, 1.0, 1.5]).view(3, 1, 1)
    result = losses.gae(rewards, values, T([[2.0]]), T([0.0, 1.0, 0.0]).view(3, 1), gamma=0.5, tau=0.5)
    assert result.flatten().tolist() == [1.25, 1.0, 2.5]


def test_ppo_loss_by_hand():
    # ratio = exp(old - new) = 2, 0.5, 2, 0.5; clip to [0.8, 1.2]
    # A = 1:  max(-2, -1.2) = -1.2;  max(-0.5, -0.8) = -0.5;   A = -1: max(2, 1.2) = 2;  max(0.5, 0.8) = 0.8
    old, new = T([math.log(2), math.log(0.5)] * 2), torch.zeros(4)
    advantages = T([1.0, 1.0, -1.0, -1.0])
    assert torch.allclose(losses.ppo_loss(old, new, advantages, 0.2), T([-1.2, -0.5, 2.0, 0.8]))


def test_value_loss_by_hand():
    # old 1, new 3, return 2.5, e = 0.5: clipped prediction 1.5; (3 - 2.5)^2 = 0.25, (1.5 - 2.5)^2 = 1; the larger counts
    arguments = (T([[1.0]]), T([[3.0]]), T([[2.5]]), 0.5)
    assert losses.value_loss(*arguments, clip_value=True).item() == 1.0
    assert losses.value_loss(*arguments, clip_value=False).item() == 0.25


def test_bound_loss_by_hand():
    # 2.1 is 1 beyond 1.1; -1.6 is 0.5 beyond -1.1; 0.3 is inside: 1 + 0.25
    assert losses.bound_loss(T([[2.1, -1.6, 0.3]])).item() == pytest.approx(1.25)


def test_gaussian_neglogp_is_torchs():
    actions, mus, sigmas = torch.randn(5, 3), torch.randn(5, 3), torch.rand(5, 3) + 0.1
    expected = -torch.distributions.Normal(mus, sigmas).log_prob(actions).sum(-1)
    assert torch.allclose(losses.gaussian_neglogp(actions, mus, sigmas), expected, atol=1e-5)


def test_gaussian_kl_by_hand():
    # KL(N(1, 1) || N(0, 2)) = log 2 + (1 + 1) / 8 - 1/2, up to rl_games' 1e-5 stabilisers
    kl = losses.gaussian_kl(T([[1.0]]), T([[1.0]]), T([[0.0]]), T([[2.0]]))
    assert kl.item() == pytest.approx(math.log(2) + 0.25 - 0.5, abs=1e-4)


def test_losses_are_rl_games_to_the_bit():
    torch.manual_seed(0)
    old, new, advantages = torch.randn(64), torch.randn(64), torch.randn(64)
    assert torch.equal(losses.ppo_loss(old, new, advantages, 0.2), common_losses.actor_loss(old, new, advantages, True, 0.2))
    assert torch.equal(
        losses.smooth_ppo_loss(old, new, advantages, 0.2), common_losses.smoothed_actor_loss(old, new, advantages, True, 0.2)
    )
    assert torch.equal(losses.a2c_loss(new, advantages), common_losses.actor_loss(old, new, advantages, False, 0.2))
    v = [torch.randn(64, 2) for _ in range(3)]
    for clip in (True, False):
        assert torch.equal(losses.value_loss(v[0], v[1], v[2], 0.2, clip), common_losses.default_critic_loss(v[0], v[1], 0.2, v[2], clip))
    mu, sigma, old_mu, old_sigma = torch.randn(64, 2), torch.rand(64, 2) + 0.1, torch.randn(64, 2), torch.rand(64, 2) + 0.1
    assert torch.equal(losses.gaussian_kl(mu, sigma, old_mu, old_sigma), torch_ext.policy_kl(mu, sigma, old_mu, old_sigma, False))
    assert torch.equal(losses.normalized(advantages), common_losses.normalize_advantage(advantages))


def test_masked_mean_divides_by_what_is_kept():
    values, mask = T([1.0, 2.0, 30.0, 40.0]), T([1.0, 1.0, 0.0, 0.0])
    assert losses.masked_mean(values, mask).item() == 1.5  # rl_games: 3 / 4
    assert losses.masked_mean(values, None).item() == 18.25
    assert losses.masked_mean(values.unsqueeze(1).repeat(1, 2), mask).item() == 1.5
    assert torch_ext.apply_masks([values.unsqueeze(1)], mask)[0][0].item() == 0.75


def test_normalized_ignores_masked_rows():
    values, mask = T([1.0, 3.0, 1000.0]), T([1.0, 1.0, 0.0])
    result = losses.normalized(values, mask)  # mean 2, unbiased std sqrt(2)
    assert result[:2].tolist() == pytest.approx([-1 / math.sqrt(2), 1 / math.sqrt(2)])
