"""RND: the reward's normalization and the two streams' advantages by hand, what the predictor learns from, and the company it keeps."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from algos.agent import Agent
from algos.options import AgentOptions
from algos.ppg import PPG, PPGOptions
from algos.rnd import RND, FeatureNet, ReturnScale, RNDOptions, RNDPolicy, successors
from algos.rollout import Rollout
from algos.spo import SPO
from core import registry
from core.errors import UserError
from core.registry import register_algo
from tests.agents import our_agent, seed_all
from tests.command import SMALL, command
from tests.test_agent_defects import DictBuilder
from tests.toys import ToyVecEnv, toy_params

N, T = 8, 16
SMALL_NETS = {"rnd_features": 8, "rnd_units": [16]}


@pytest.fixture
def make(tmp_path):
    def build(action="continuous", algo="rnd", env=None, **config):
        params = toy_params(action, **{**SMALL_NETS, **config})
        return our_agent(params, env or ToyVecEnv(N, action), tmp_path, algo)

    return build


# ---- intrinsic rewards -----------------------------------------------------------------------------------------------------------


def test_rewards_are_divided_by_the_deviation_of_their_discounted_sums():
    scale = ReturnScale(2, gamma=0.5)
    rewards = torch.tensor([[1.0, 0.0], [2.0, 4.0], [0.0, 2.0]])
    # sums: row 0: 1, 0.5 + 2 = 2.5, 1.25;   row 1: 0, 4, 2 + 2 = 4.   All six: mean 12.75 / 6 = 2.125, mean of squares
    # (1 + 6.25 + 1.5625 + 0 + 16 + 16) / 6 = 6.802083, variance 6.802083 - 4.515625 = 2.286458. The statistics begin with one number of
    # mean 0 and variance 1: (1 x 1 + 6 x 2.286458 + 2.125^2 x 1 x 6 / 7) / 7 = (1 + 13.718750 + 3.870536) / 7 = 2.655612
    assert (rewards / scale(rewards)).nanmean().item() == pytest.approx(2.655612**0.5, rel=1e-5)
    assert scale.sums.tolist() == [1.25, 4.0]
    # the sums go on in the next rollout, whatever ended: 0.625 + 1 and 2 + 1
    scale(torch.ones(1, 2))
    assert scale.sums.tolist() == [1.625, 3.0]


def test_successors_are_the_next_observations_in_the_order_of_the_rollout():
    obs = torch.arange(6.0).view(3, 2, 1)
    after = successors(obs, torch.tensor([[6.0], [7.0]]))
    assert after.flatten().tolist() == [2, 3, 4, 5, 6, 7]
    both = successors({"a": obs, "b": torch.zeros(3, 2, 2, 2)}, {"a": torch.tensor([[6.0], [7.0]]), "b": torch.ones(2, 2, 2)})
    assert both.shape == (6, 5)
    assert both[4].tolist() == [6, 1, 1, 1, 1]


def test_novelty_is_the_mean_squared_error_of_normalized_and_clipped_observations(make):
    agent = make(rnd_features=2)
    agent.seen_stats.running_mean.copy_(torch.tensor([1.0, 0.0, 0.0]))
    agent.seen_stats.running_var.copy_(torch.tensor([4.0, 1.0, 1.0]))
    agent.normalize_seen.refresh()
    seen = []
    agent.predictor = lambda x: seen.append(x) or torch.tensor([[3.0, 1.0]])
    agent.target = lambda x: torch.tensor([[1.0, 1.0]])
    assert agent.novelty(torch.tensor([[5.0, 100.0, -0.5]])).tolist() == [2.0]  # (2^2 + 0^2) / 2
    assert seen[0][0].tolist() == pytest.approx([2.0, 5.0, -0.5], abs=1e-4)  # (5 - 1) / 2; 100 is clipped


def test_the_predictor_learns_from_a_share_of_the_rows(make, monkeypatch):
    agent = make(update_proportion=0.25)
    monkeypatch.setattr(torch, "rand_like", lambda x: torch.tensor([0.1, 0.3, 0.2, 0.9]))
    novelty = torch.tensor([1.0, 10.0, 3.0, 100.0])
    assert agent.predictor_loss(novelty).item() == 2.0  # rows 0 and 2
    monkeypatch.setattr(torch, "rand_like", lambda x: torch.ones(4))
    assert agent.predictor_loss(novelty).item() == 0.0


def test_the_target_stays_and_the_predictor_comes_nearer(make):
    agent = make(update_proportion=1.0, rnd_learning_rate=1e-2, max_epochs=1)
    target = [p.clone() for p in agent.target.parameters()]
    agent.train()
    first = agent.metrics["rewards/novelty"]
    agent.max_epochs = 15
    agent.train()
    assert agent.metrics["rewards/novelty"] < 0.5 * first
    assert all(torch.equal(a, b) for a, b in zip(target, agent.target.parameters(), strict=True))


# ---- two streams ------------------------------------------------------------------------------------------------------------------


def test_advantages_of_both_streams_by_hand(make):
    agent = make(gamma=0.5, tau=0.5, gamma_int=0.8, horizon_length=2, minibatch_size=16, seq_length=2)
    rollout = Rollout(2, torch.device("cpu"), 2)
    rollout.fields = {
        "values": torch.tensor([[[1.0, 2.0]], [[3.0, 4.0]]]),
        "dones_after": torch.tensor([[1.0], [0.0]]),
    }
    agent.intrinsic = torch.tensor([[[1.0]], [[2.0]]])
    rewards = torch.tensor([[[10.0, 99.0]], [[20.0, 99.0]]])
    got = agent.advantages(rollout, rewards, torch.tensor([[5.0, 6.0]]))[:, 0]
    # the task's: step 1: 20 + 0.5 x 5 - 3 = 19.5; step 0 ended: 10 - 1 = 9
    assert got[:, 0].tolist() == pytest.approx([9.0, 19.5])
    # intrinsic, which no end stops: step 1: 2 + 0.8 x 6 - 4 = 2.8; step 0: 1 + 0.8 x 4 - 2 + 0.8 x 0.5 x 2.8 = 3.32
    assert got[:, 1].tolist() == pytest.approx([3.32, 2.8])
    agent.options.extrinsic_coef, agent.options.intrinsic_coef = 2.0, 1.0
    assert agent.combine_advantages(got).tolist() == pytest.approx([2 * 9.0 + 3.32, 2 * 19.5 + 2.8])


@pytest.mark.parametrize("reset_mode", ["same_step", "next_step"])
@pytest.mark.parametrize("fused", [True, False])
def test_the_task_s_reward_is_the_first_stream_on_both_rollouts(make, reset_mode, fused):
    agent = make(env=ToyVecEnv(N, reset_mode=reset_mode), fused=fused, max_epochs=3)
    agent.train()
    rewards = agent.rollout.raw_rewards
    assert rewards.shape == (T, N, 2)
    assert torch.allclose(agent.rollout.rewards[..., 0], 0.5 * rewards[..., 0])  # the reward shaper's scale
    assert (rewards[..., 1] > 0).all()
    assert torch.equal(rewards[..., 1:], agent.intrinsic)
    assert agent.metrics["return_mean_1"] > 0 > agent.metrics["return_mean"]


def test_both_paths_learn_the_same_from_one_rollout(make):
    weights = []
    for fused in (True, False):
        agent = make("discrete", fused=fused, max_epochs=1)
        seed_all()
        agent.reset_environments()
        with torch.no_grad():
            last = agent.collect(agent.rollout)
            agent.fast.refresh()
            batch, _ = agent.make_batch(agent.rollout, last)
        agent._set_mode(train=True)
        seed_all()
        agent.update(batch)
        weights.append([p.detach().clone() for p in agent.model.parameters()])
    for ours, theirs in zip(*weights, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


# ---- observations and networks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4, 84, 84), (64, 64, 3), (36, 40, 3)])
def test_pictures_go_through_convolutions_whichever_way_round(shape):
    size = torch.Size(shape).numel()
    net = FeatureNet(size, shape, [], 8, depth=2)
    assert net(torch.randn(2, size)).shape == (2, 8)
    assert sum(isinstance(layer, torch.nn.Conv2d) for layer in net.layers) == 3


@pytest.mark.parametrize("env", [{"dict_obs": True}, {"agents": 2}, {"masks": True, "action": "discrete"}, {"states": True}])
def test_dicts_agents_masks_and_central_values(tmp_path, monkeypatch, env):
    monkeypatch.setitem(registry.networks._entries, "dict_reader", DictBuilder)
    env = {"action": "continuous", **env}
    params = toy_params(env["action"], 4, central="states" in env, max_epochs=2, use_action_masks="masks" in env, **SMALL_NETS)
    if "dict_obs" in env:
        params["network"]["name"] = "dict_reader"
    agent = our_agent(params, ToyVecEnv(4, **env), tmp_path, "rnd")
    agent.train()
    assert agent.metrics["rewards/intrinsic"] > 0


def test_memory(tmp_path):
    agent = our_agent(toy_params(rnn="lstm", max_epochs=2, **SMALL_NETS), ToyVecEnv(N, reset_mode="next_step"), tmp_path, "rnd")
    agent.train()
    assert agent.metrics["rewards/intrinsic"] > 0


# ---- company --------------------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(kw_only=True)
class PenaltyOptions(AgentOptions):
    penalty: float = 3.0


class Penalty(Agent):
    """As SPO: nothing but the policy's loss is its own."""

    def policy_loss(self, mb, out):
        ratio = torch.exp(mb.old_neglogp - out.neglogp)
        return -ratio * mb.advantages + self.options.penalty * (ratio - 1) ** 2


@dataclasses.dataclass(kw_only=True)
class RNDPenaltyOptions(RNDOptions, PenaltyOptions):
    pass


def test_it_joins_an_algorithm_with_a_loss_of_its_own(make):
    register_algo("rnd_penalty", config=RNDPenaltyOptions, policy=RNDPolicy)(type("RNDPenalty", (RND, Penalty), {}))
    agent = make(algo="rnd_penalty", penalty=7.0, max_epochs=2)
    assert type(agent).policy_loss is Penalty.policy_loss
    agent.train()
    assert agent.options.penalty == 7.0
    assert agent.metrics["rewards/intrinsic"] > 0
    assert agent.metrics["losses/rnd"] > 0


def test_it_joins_spo(make):
    register_algo("rnd_spo", config=RNDOptions, policy=RNDPolicy)(type("RNDSPO", (RND, SPO), {}))
    agent = make(algo="rnd_spo", max_epochs=2)
    assert type(agent).policy_loss is SPO.policy_loss
    agent.train()
    assert agent.metrics["rewards/intrinsic"] > 0


@dataclasses.dataclass(kw_only=True)
class RNDPPGOptions(RNDOptions, PPGOptions):
    pass


@pytest.mark.parametrize("separate", [False, True])
def test_it_joins_ppg(tmp_path, separate):
    register_algo("rnd_ppg", config=RNDPPGOptions, policy=RNDPolicy)(type("RNDPPG", (RND, PPG), {}))
    params = toy_params("discrete", n_pi=2, aux_epochs=1, max_epochs=2, **SMALL_NETS)
    params["network"]["separate"] = separate
    agent = our_agent(params, ToyVecEnv(N, "discrete"), tmp_path, "rnd_ppg")
    agent.train()
    assert agent.metrics["rewards/intrinsic"] > 0
    assert agent.metrics["ppg/aux_value"] > 0


def test_a_resume_is_exact(tmp_path):
    run = ("task=TorchCartPole", *SMALL, "train=RND", "train.params.config.rnd_features=8", "seed=3")
    command(*run, f"run_dir={tmp_path}/whole", "max_epochs=5")
    command(*run, f"run_dir={tmp_path}/parts", "max_epochs=3")
    command(f"resume={tmp_path}/parts", "max_epochs=5")
    whole, parts = (torch.load(tmp_path / name / "nn" / "last.pth", weights_only=True) for name in ("whole", "parts"))
    for name, value in whole["model"].items():
        assert torch.equal(value, parts["model"][name]), name
    for name in ("rnd", "rnd_scale", "rnd_obs"):
        for key, value in whole["gamesmith"]["extras"]["parts"][name].items():
            assert torch.equal(value, parts["gamesmith"]["extras"]["parts"][name][key]), key


# ---- bad input --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("gamma_int", 1.0), ("update_proportion", 0.0), ("update_proportion", 1.5), ("extrinsic_coef", -1.0), ("intrinsic_coef", -1.0),
        ("rnd_features", 0), ("rnd_units", [0]), ("rnd_learning_rate", 0.0),
    ],
)  # fmt: skip
def test_bad_knobs_are_refused(key, value):
    with pytest.raises(ValueError, match=key):
        RNDOptions(**{key: value})


def test_a_task_with_several_rewards_is_refused(make):
    with pytest.raises(UserError, match="value_size"):
        make(env=ToyVecEnv(N, value_size=2))
