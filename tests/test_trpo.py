"""TRPO: its parts against numbers worked out by hand, and what must hold after any update."""

from __future__ import annotations

import math

import pytest
import torch

from algos.heads import Output
from algos.trpo import TRPOOptions, conjugate_gradient, distributions, divergence, hessian_product, line_search, step_length
from core import checkpoint
from tests.agents import our_agent
from tests.command import SMALL, command
from tests.ranks import finish, start
from tests.test_learning import Mirror
from tests.toys import ToyVecEnv, toy_params

T = torch.tensor
KINDS = ("continuous", "discrete", "multi_discrete")


def output(**parts):
    return Output(neglogp=torch.zeros(1), values=torch.zeros(1, 1), entropy=torch.zeros(1), **parts)


def fisher(policy, *parameters):
    """Fisher-vector product at the parameters, of the policy that `policy(*parameters)` outputs."""
    old = distributions(policy(*(p.detach() for p in parameters)))
    return hessian_product(divergence(old, distributions(policy(*parameters))).mean(), list(parameters))


# ---- the parts, by hand -------------------------------------------------------------------------------------------------------


def test_divergence_of_gaussians_by_hand():
    # KL(N(0, 1) || N(1, 2)) = ln 2 + (1 + 1) / (2 * 4) - 1/2 = ln 2 - 0.25; two dimensions, the second N(0, 1) twice: + 0
    old, new = output(mus=T([[0.0, 0.0]]), sigmas=T([[1.0, 1.0]])), output(mus=T([[1.0, 0.0]]), sigmas=T([[2.0, 1.0]]))
    assert divergence(distributions(old), distributions(new)).tolist() == pytest.approx([math.log(2) - 0.25])


def test_divergence_of_choices_by_hand():
    # old (1/2, 1/2), new (3/4, 1/4): 1/2 ln(2/3) + 1/2 ln 2 = 1/2 ln(4/3); two such heads: twice that
    old, new = T([[0.0, 0.0]]), T([[math.log(3), 0.0]])
    assert divergence(distributions(output(logits=old)), distributions(output(logits=new))).tolist() == pytest.approx(
        [0.5 * math.log(4 / 3)]
    )
    heads = divergence(distributions(output(logits=[old, old])), distributions(output(logits=[new, new])))
    assert heads.tolist() == pytest.approx([math.log(4 / 3)])


def test_fisher_product_of_a_gaussian_by_hand():
    # of N(mu, sigma) by mu and log sigma: diag(1 / sigma^2, 2). sigma = 1/2: diag(4, 2), and (1, 3) -> (4, 6)
    mu, logstd = T([[0.3]], requires_grad=True), T([[math.log(0.5)]], requires_grad=True)
    product = fisher(lambda m, s: output(mus=m, sigmas=s.exp()), mu, logstd)
    assert product(T([1.0, 3.0])).tolist() == pytest.approx([4.0, 6.0])


def test_fisher_product_of_two_choices_by_hand():
    # by its logits: diag(p) - p p^T. p = (3/4, 1/4): 3/16 [[1, -1], [-1, 1]], and (2, 0) -> (3/8, -3/8)
    logits = T([[math.log(3), 0.0]], requires_grad=True)
    assert fisher(lambda x: output(logits=x), logits)(T([2.0, 0.0])).tolist() == pytest.approx([0.375, -0.375])
    # two heads with the same logits: their information adds up
    assert fisher(lambda x: output(logits=[x, x]), logits)(T([2.0, 0.0])).tolist() == pytest.approx([0.75, -0.75])


def test_conjugate_gradient_by_hand():
    # [[4, 1], [1, 3]] x = (1, 2): x = (3 - 2, 8 - 1) / 11 = (1/11, 7/11), after two steps.
    # The first goes along b by b.b / b.Ab = 5 / (1 * 6 + 2 * 7) = 1/4: (0.25, 0.5)
    matrix, b = T([[4.0, 1.0], [1.0, 3.0]]), T([1.0, 2.0])
    assert conjugate_gradient(matrix.mv, b, 1).tolist() == pytest.approx([0.25, 0.5])
    assert conjugate_gradient(matrix.mv, b, 10).tolist() == pytest.approx([1 / 11, 7 / 11])
    assert conjugate_gradient(matrix.mv, torch.zeros(2), 10).tolist() == [0.0, 0.0]


def test_step_length_by_hand():
    # F = diag(4, 1), x = (1, 2): x.Fx = 8; sqrt(2 * 0.01 / 8) = 0.05
    x = T([1.0, 2.0])
    assert step_length(x, T([4.0, 2.0]), 0.01).item() == pytest.approx(0.05)
    assert step_length(torch.zeros(2), torch.zeros(2), 0.01).item() == 0.0


@pytest.mark.parametrize(
    ("outcomes", "found", "tried"),
    [
        ({1.0: (-1.0, 0.01)}, (1.0, -1.0, 0.01), [1.0]),
        ({1.0: (-3.0, 0.02), 0.5: (-2.0, 0.005)}, (0.5, -2.0, 0.005), [1.0, 0.5]),  # the KL is broken
        ({1.0: (0.5, 0.01), 0.5: (0.0, 0.005), 0.25: (-0.5, 0.001)}, (0.25, -0.5, 0.001), [1.0, 0.5, 0.25]),  # no improvement on 0
        ({1.0: (float("nan"), 0.01), 0.5: (-1.0, float("nan")), 0.25: (1.0, 0.0)}, (0.0, 0.0, 0.0), [1.0, 0.5, 0.25, 0.0]),
    ],
)
def test_line_search_by_hand(outcomes, found, tried):
    outcomes[0.0], seen = (0.0, 0.0), []

    def measure(fraction):
        seen.append(fraction)
        return outcomes[fraction]

    options = TRPOOptions(max_kl=0.01, line_search_steps=3, line_search_shrink=0.5)
    assert line_search(measure, 0.0, options) == found
    assert seen == tried


# ---- whole updates ------------------------------------------------------------------------------------------------------------


def agent_of(tmp_path, kind, env=None, **settings):
    params = toy_params(kind, **{"max_epochs": 3, "max_kl": 0.001, **settings})
    return our_agent(params, ToyVecEnv(action=kind, **(env or {})), tmp_path, "trpo")


CASES = {
    **{kind: {"kind": kind} for kind in KINDS},
    "plain": {"kind": "continuous", "fused": False, "update_normalizer_once": False},
    "reset_rows": {"kind": "discrete", "env": {"reset_mode": "next_step"}},
    "action_masks": {"kind": "multi_discrete", "env": {"masks": True}},
    "memory": {"kind": "continuous", "rnn": "lstm", "env": {"reset_mode": "next_step"}},
    "memory_of_choices": {"kind": "discrete", "rnn": "gru"},
    "two_values": {"kind": "discrete", "env": {"value_size": 2}},
    "central_value": {"kind": "discrete", "central": True, "env": {"states": True}},
}


@pytest.mark.parametrize("case", CASES)
def test_the_policy_moves_and_stays_within_max_kl(case, tmp_path):
    """Measured after the critic's fit, which therefore left the policy alone, though the network of these tests shares its layers."""
    agent = agent_of(tmp_path, **CASES[case])
    update, measured, weights, stats = agent.update, [], [], agent.model.running_mean_std

    @torch.no_grad()
    def policy(batch):
        learning = stats.training
        stats.eval()
        out = agent.evaluate_actions(batch)
        stats.train(learning)
        return distributions(out)

    def measuring(batch):
        old = policy(batch)
        before = [p.clone() for p in agent.model.parameters()]
        metrics = update(batch)
        measured.append((agent.mean(divergence(old, policy(batch)), batch.mask).item(), metrics))
        weights.append(sum(not torch.equal(a, b) for a, b in zip(before, agent.model.parameters(), strict=True)))
        return metrics

    agent.update = measuring
    agent.train()
    assert len(measured) == 3
    critic = 0 if case == "central_value" else 2  # weight and bias of its last layer
    total = len(list(agent.model.parameters())) - (2 if case == "central_value" else 0)
    for (kl, metrics), moved in zip(measured, weights, strict=True):
        if case != "plain":  # whose normalizer has learned within the update
            assert kl == pytest.approx(metrics["info/kl"], abs=1e-6)
        assert metrics["info/kl"] <= 0.001
        assert moved == (total if metrics["trpo/step_fraction"] else critic)
    assert any(metrics["trpo/step_fraction"] and metrics["info/kl"] > 1e-5 for _, metrics in measured)
    assert all(metrics["trpo/improvement"] > 0 for _, metrics in measured if metrics["trpo/step_fraction"])


def test_without_advantages_nothing_moves_but_the_critic(tmp_path):
    agent = agent_of(tmp_path, "continuous", max_epochs=1, entropy_coef=0.0)
    agent.transform_batch = lambda batch: batch.replace(advantages=torch.zeros_like(batch.advantages))
    before = {name: p.clone() for name, p in agent.model.named_parameters()}
    agent.train()
    assert agent.metrics["trpo/step_fraction"] == 0
    assert agent.metrics["info/kl"] == 0
    changed = {name for name, p in agent.model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {"a2c_network.value.weight", "a2c_network.value.bias"}


def test_a_linear_schedule_counts_and_an_adaptive_one_stands_still(tmp_path):
    linear = agent_of(tmp_path / "linear", "discrete", lr_schedule="linear", max_epochs=4)
    linear.train()
    assert linear.last_lr < 1e-3
    adaptive = agent_of(tmp_path / "adaptive", "discrete", lr_schedule="adaptive", max_epochs=4)
    adaptive.train()
    assert adaptive.last_lr == 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_learns_to_say_what_it_sees(kind, tmp_path):
    params = toy_params(
        kind, num_envs=16, learning_rate=5e-3, max_epochs=30, minibatch_size=64, entropy_coef=0.0, gamma=0.9, reward_shaper={},
        games_to_track=200, max_kl=0.05,
    )  # fmt: skip
    assert our_agent(params, Mirror(kind, "next_step"), tmp_path, "trpo").train()["return_mean"] > 0.6


def test_a_resumed_run_is_the_uninterrupted_one_bit_by_bit(tmp_path):
    task = ["task=TorchPendulum", "train=TRPO", *SMALL]
    command(*task, "max_epochs=4", f"run_dir={tmp_path}/whole", "max_frames=100_000")
    command(*task, "max_epochs=2", f"run_dir={tmp_path}/parts", "max_frames=100_000")
    command(f"resume={tmp_path}/parts", "max_epochs=4")
    whole, parts = (checkpoint.load(tmp_path / run / "nn" / "last.pth") for run in ("whole", "parts"))
    assert all(torch.equal(value, parts["model"][name]) for name, value in whole["model"].items())
    for index, state in whole["optimizer"]["state"].items():
        assert all(torch.equal(value, parts["optimizer"]["state"][index][name]) for name, value in state.items())


def test_two_ranks_train_as_one(tmp_path):
    """A run compares the ranks' weights in its first epochs itself, and ends with an error where they differ."""
    words = [
        "train.py",
        "task=TorchPendulum",
        "train=TRPO",
        *SMALL,
        "device=cpu",
        "progress=off",
        "max_epochs=3",
        f"run_dir={tmp_path}/run",
    ]
    for status, _, error in finish(start(words, words)):
        assert status == 0, error
    assert checkpoint.load(tmp_path / "run" / "nn" / "last.pth")["epoch"] == 3


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        ({"max_kl": 0.0}, "max_kl is 0.0: it must be positive"),
        ({"cg_iterations": 0}, "cg_iterations is 0: it must be at least 1"),
        ({"cg_damping": -0.1}, "cg_damping is -0.1: it must be at least 0"),
        ({"line_search_steps": 0}, "line_search_steps is 0: it must be at least 1"),
        ({"line_search_shrink": 1.0}, "line_search_shrink is 1.0: it must lie between 0 and 1"),
    ],
)
def test_a_bad_option_is_named(bad, told):
    with pytest.raises(ValueError, match=told):
        TRPOOptions(**bad)
