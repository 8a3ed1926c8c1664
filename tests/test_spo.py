"""SPO's loss against numbers worked out by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from algos.spo import SPO
from core import registry
from tests.agents import our_agent
from tests.toys import ToyVecEnv, toy_params

T = torch.tensor


def loss(ratios: list[float], advantages: list[float], e_clip: float = 0.2) -> torch.Tensor:
    old = torch.zeros(len(ratios), dtype=torch.float64)
    neglogp = -torch.log(T(ratios, dtype=torch.float64))  # ratio = exp(old - new)
    mb = SimpleNamespace(old_neglogp=old, advantages=T(advantages, dtype=torch.float64))
    return SPO.policy_loss(SimpleNamespace(e_clip=e_clip), mb, SimpleNamespace(neglogp=neglogp))


def test_loss_by_hand():
    # eps = 0.2, |A| / (2 eps) = 2.5 |A|
    # r = 1,   A = 1:   2.5 * 0            - 1   = -1
    # r = 2,   A = 1:   2.5 * 1            - 2   = 0.5
    # r = 0.5, A = 1:   2.5 * 0.25         - 0.5 = 0.125
    # r = 2,   A = -2:  2.5 * 2 * 1        + 4   = 9
    # r = 0.8, A = -1:  2.5 * 0.04         + 0.8 = 0.9
    found = loss([1.0, 2.0, 0.5, 2.0, 0.8], [1.0, 1.0, 1.0, -2.0, -1.0])
    torch.testing.assert_close(found, T([-1.0, 0.5, 0.125, 9.0, 0.9], dtype=torch.float64))


@pytest.mark.parametrize("advantage", [3.0, -0.7])
@pytest.mark.parametrize("e_clip", [0.1, 0.3])
def test_the_least_loss_is_at_the_trust_regions_edge(advantage, e_clip):
    # d/dr [|A| / (2 eps) (r - 1)^2 - A r] = |A| / eps (r - 1) - A = 0   at   r = 1 + sign(A) eps
    ratios = torch.linspace(0.5, 1.5, 1001, dtype=torch.float64)
    found = loss(ratios.tolist(), [advantage] * 1001, e_clip)
    assert ratios[found.argmin()].item() == pytest.approx(1 + math.copysign(e_clip, advantage), abs=1e-3)


def test_a_ratio_that_has_left_the_region_is_pulled_back(tmp_path):
    """PPO's gradient is zero there; SPO's points back. The first step of both, at ratio 1, is the same."""
    registry.discover()
    agents = {name: our_agent(toy_params(), ToyVecEnv(), tmp_path / name, name) for name in ("ppo", "spo")}
    slopes = {}
    for name, agent in agents.items():
        neglogp = T([-math.log(1.5), 0.0], requires_grad=True)  # ratios 1.5 and 1
        mb = SimpleNamespace(old_neglogp=torch.zeros(2), advantages=torch.ones(2))
        agent.policy_loss(mb, SimpleNamespace(neglogp=neglogp)).sum().backward()
        slopes[name] = neglogp.grad
    assert slopes["ppo"][0] == 0
    # d loss / d neglogp = -r * (|A| / eps (r - 1) - A) = -1.5 * (0.5 / 0.2 - 1) = -2.25: the log-probability has to fall
    assert slopes["spo"][0].item() == pytest.approx(-2.25)
    assert slopes["spo"][1].item() == pytest.approx(slopes["ppo"][1].item())
