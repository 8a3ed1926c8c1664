"""V-trace: targets worked out by hand, whole rollouts in minibatches, replay, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch

from algos.batch import Batch
from algos.heads import Output
from algos.losses import gae
from algos.vtrace import Replay, VTraceOptions, vtrace
from core import checkpoint
from core.errors import UserError
from tests.agents import our_agent
from tests.command import SMALL, command
from tests.ranks import finish, start
from tests.test_learning import Mirror
from tests.toys import ToyVecEnv, toy_params

T = torch.tensor


def in_time(*values):
    return T(values).view(-1, 1, 1)


# three steps and the value that follows them
REWARDS, VALUES = in_time(1.0, 2.0, 3.0, 9.0), in_time(0.5, 1.0, 1.5, 2.0)


def run(ratios, dones=(0.0, 0.0, 0.0, 0.0), lam=1.0, rho_bar=1.0, c_bar=1.0):
    targets, advantages, has_next = vtrace(REWARDS, VALUES, T(dones).view(-1, 1), T(ratios).view(-1, 1), 0.5, lam, rho_bar, c_bar)
    return targets.flatten().tolist(), advantages.flatten().tolist(), has_next.flatten().tolist()


def test_targets_and_advantages_by_hand():
    # gamma = 1/2; pi/mu = 2, 0.5, 0.8: rho and c truncated to 1, 0.5, 0.8
    # rho_2 delta_2 = 0.8 (3 + 0.5 * 2   - 1.5) = 2                        v_2 = 1.5 + 2      = 3.5
    # rho_1 delta_1 = 0.5 (2 + 0.5 * 1.5 - 1)   = 0.875                    v_1 = 1 + 0.875 + 0.5 * 0.5 * 2   = 2.375
    # rho_0 delta_0 = 1   (1 + 0.5 * 1   - 0.5) = 1                        v_0 = 0.5 + 1 + 0.5 * 1 * 1.375   = 2.1875
    # r + gamma v_next - V:  1 + 0.5 * 2.375 - 0.5 = 1.6875;  2 + 0.5 * 3.5 - 1 = 2.75;  3 + 0.5 * 2 - 1.5 = 2.5
    targets, advantages, has_next = run((2.0, 0.5, 0.8, 7.0))
    assert targets == pytest.approx([2.1875, 2.375, 3.5, 2.0])
    assert advantages[:3] == pytest.approx([1.6875, 2.75, 2.5])
    assert has_next == [1, 1, 1, 0]


def test_rho_bar_c_bar_and_lambda_by_hand():
    # rho_bar = 2, c_bar = 1, lambda = 1/2: rho = 2, 0.5, 0.8; c = 0.5, 0.25, 0.4
    # v_2 = 3.5 as before;  v_1 = 1 + 0.875 + 0.5 * 0.25 * 2 = 2.125;  v_0 = 0.5 + 2 * 1 + 0.5 * 0.5 * 1.125 = 2.78125
    targets, _, _ = run((3.0, 0.5, 0.8, 1.0), lam=0.5, rho_bar=2.0)
    assert targets == pytest.approx([2.78125, 2.125, 3.5, 2.0])


def test_on_policy_it_is_the_n_step_bellman_target():
    # v_0 = 1 + 0.5 * 2 + 0.25 * 3 + 0.125 * V(x_3) = 2.75 + 0.25
    targets, _, _ = run((1.0, 1.0, 1.0, 1.0))
    assert targets == pytest.approx([3.0, 2 + 0.5 * 3 + 0.25 * 2, 3 + 0.5 * 2, 2.0])


def test_on_policy_with_lambda_it_is_gae():
    torch.manual_seed(0)
    rewards, values = torch.randn(6, 3, 2), torch.randn(6, 3, 2)
    dones = (torch.rand(6, 3) < 0.3).float()
    targets, _, _ = vtrace(rewards, values, dones, torch.ones(6, 3), 0.9, 0.8, 1.0, 1.0)
    expected = values[:-1] + gae(rewards[:-1], values[:-1], values[-1], dones[:-1], 0.9, 0.8)
    assert torch.allclose(targets[:-1], expected, atol=1e-6)


def test_an_end_cuts_the_trace():
    # the episode ends with step 1: v_1 = 1 + 0.5 (2 - 1) = 1.5, nothing of step 2 in it;  v_0 = 0.5 + 1 + 0.5 * 0.5 = 1.75
    # and with the last step, which then has a target: v_3 = 2 + 1 (9 - 2) = 9, advantage 7
    #     v_2 = 1.5 + 0.8 * 2.5 + 0.5 * 0.8 * 7 = 6.3;  advantage 3 + 0.5 * 9 - 1.5 = 6
    targets, advantages, has_next = run((2.0, 0.5, 0.8, 7.0), dones=(0.0, 1.0, 0.0, 1.0))
    assert targets == pytest.approx([1.75, 1.5, 6.3, 9.0])
    assert advantages == pytest.approx([1 + 0.5 * 1.5 - 0.5, 2 - 1, 6.0, 7.0])
    assert has_next == [1, 1, 1, 1]


# ---- in the agent -------------------------------------------------------------------------------------------------------------


def agent_of(tmp_path, kind="continuous", env=None, **settings):
    params = toy_params(kind, **{"max_epochs": 2, "clip_value": False, **settings})
    return our_agent(params, ToyVecEnv(action=kind, **(env or {})), tmp_path, "vtrace")


def test_the_gradient_is_weighted_by_the_truncated_ratio(tmp_path):
    # horizon 2, two environments; pi/mu = 1/2 and 4 in their first steps: rho = 1/2 and 1
    # v_1 = V_1, so that the advantage is r + gamma V_1 - V_0, and the returns V_0 + rho times it
    agent = agent_of(tmp_path, num_envs=2, horizon_length=2, minibatch_size=4, normalize_value=False, normalize_advantage=False, gamma=0.5)
    values = T([[1.0], [4.0], [2.0], [6.0]])  # environment by environment
    mb = Batch(
        {
            "actions": torch.zeros(4, 2), "old_neglogp": T([0.0, 0.0, math.log(4), 0.0]), "all_rewards": T([[3.0], [0.0], [5.0], [0.0]]),
            "dones_after": torch.zeros(4), "mask": None,
        },
        seq_length=2,
    )  # fmt: skip
    given = Output(neglogp=T([math.log(2), 0.0, 0.0, 0.0]), values=values, entropy=torch.zeros(4))
    corrected = agent.corrected(mb, given)
    advantages = [3 + 0.5 * 4 - 1, 5 + 0.5 * 6 - 2]  # 4 and 6
    assert corrected.rho[[0, 2]].tolist() == pytest.approx([0.5, 1.0])
    assert corrected.advantages[[0, 2]].tolist() == pytest.approx([0.5 * advantages[0], advantages[1]])
    assert corrected.returns[[0, 2]].flatten().tolist() == pytest.approx([1 + 0.5 * advantages[0], 2 + advantages[1]])
    assert corrected.mask.tolist() == [1, 0, 1, 0]
    loss = agent.policy_loss(corrected, given)  # rho * -log pi * advantage
    assert loss[[0, 2]].tolist() == pytest.approx([0.5 * 4 * math.log(2), 0.0])


CASES = {
    "continuous": {},
    "discrete": {"kind": "discrete"},
    "multi_discrete": {"kind": "multi_discrete", "env": {"masks": True}},
    "reset_rows": {"kind": "discrete", "env": {"reset_mode": "next_step"}},
    "plain": {"fused": False},
    "memory": {"rnn": "lstm", "seq_length": 16, "env": {"reset_mode": "next_step"}},
    "two_values": {"env": {"value_size": 2}},
    "replay": {"replay": 1, "env": {"reset_mode": "next_step"}},
    "replay_with_memory": {"rnn": "gru", "seq_length": 16, "replay": 2},
}


@pytest.mark.parametrize("case", CASES)
def test_minibatches_hold_whole_rollouts(case, tmp_path):
    agent = agent_of(tmp_path, **CASES[case])
    corrected, seen = agent.corrected, []

    def watching(mb, out):
        result = corrected(mb, out)
        seen.append((mb, result))
        return result

    agent.corrected = watching
    agent.train()
    assert all(p.isfinite().all() for p in agent.model.parameters())
    rows = torch.arange(16 * 8)
    for mb, result in seen:
        index = rows[mb.index]
        assert len(mb) == 32
        assert (index.view(2, 16) == index[::16].unsqueeze(1) + torch.arange(16)).all()
        assert (index[::16] % 16 == 0).all()
        assert result.mask.sum() > 0
        assert (result.rho <= 1).all()
    assert sum(result.mask.sum() for _, result in seen) < 32 * len(seen)  # last steps are left out
    assert agent.metrics["losses/rho"] < 1
    assert ("losses/replay_rho" in agent.metrics) is case.startswith("replay")
    if case == "reset_rows":
        assert any(mb.mask is not None and mb.mask.min() == 0 for mb, _ in seen)


def test_the_first_pass_over_new_data_is_on_policy(tmp_path):
    agent = agent_of(tmp_path, "discrete", normalize_input=False, max_epochs=1, mini_epochs=1, minibatch_size=128)
    agent.train()
    assert agent.metrics["losses/rho"] == pytest.approx(1.0, abs=1e-5)


def test_replay_keeps_the_last_rollouts_and_draws_whole_ones():
    replay = Replay(size=2, steps=3)
    for i in range(3):
        actions = torch.arange(6) + 10 * i  # two environments, three steps
        replay.add(Batch({"actions": actions, "mask": None, "normalized_obs": actions.float()}, 3))
    actions.zero_()  # what was added is a copy
    torch.manual_seed(0)
    drawn = {tuple(replay.draw(1).actions.tolist()) for _ in range(50)}
    assert drawn == {(10, 11, 12), (13, 14, 15), (20, 21, 22), (23, 24, 25)}
    assert "normalized_obs" not in replay.draw(1)
    other = Replay(size=2, steps=3)
    other.load_state_dict(replay.state_dict())
    assert [batch.actions.tolist() for batch in other.batches] == [batch.actions.tolist() for batch in replay.batches]


@pytest.mark.parametrize("replay", [0, 2])
@pytest.mark.parametrize("kind", ["continuous", "discrete"])
def test_learns_to_say_what_it_sees(kind, replay, tmp_path):
    params = toy_params(
        kind, num_envs=16, learning_rate=5e-3, max_epochs=40, minibatch_size=64, entropy_coef=0.0, gamma=0.9, reward_shaper={},
        games_to_track=200, clip_value=False, replay=replay,
    )  # fmt: skip
    assert our_agent(params, Mirror(kind, "next_step"), tmp_path, "vtrace").train()["return_mean"] > 0.6


def test_a_resumed_run_with_replay_is_the_uninterrupted_one_bit_by_bit(tmp_path):
    words = ("train.params.config.minibatch_size_per_env=8", "train.params.config.replay=2", "train.params.config.lr_schedule=adaptive")
    task = ["task=TorchCartPole", "train=VTrace", *SMALL, *words]
    command(*task, "max_epochs=5", f"run_dir={tmp_path}/whole")
    command(*task, "max_epochs=3", f"run_dir={tmp_path}/parts")
    command(f"resume={tmp_path}/parts", "max_epochs=5")
    whole, parts = (checkpoint.load(tmp_path / run / "nn" / "last.pth") for run in ("whole", "parts"))
    assert all(torch.equal(value, parts["model"][name]) for name, value in whole["model"].items())
    kept, again = (state["gamesmith"]["extras"]["parts"]["replay"]["batches"] for state in (whole, parts))
    assert len(kept) == 2
    assert all(torch.equal(a["obs"], b["obs"]) for a, b in zip(kept, again, strict=True))


def test_two_ranks_train_as_one(tmp_path):
    """A run compares the ranks' weights in its first epochs itself, and ends with an error where they differ."""
    words = ["train.py", "task=TorchPendulum", "train=VTrace", *SMALL, "train.params.config.minibatch_size_per_env=8", "device=cpu",
             "progress=off", "max_epochs=3", f"run_dir={tmp_path}/run"]  # fmt: skip
    for status, _, error in finish(start(words, words)):
        assert status == 0, error
    assert checkpoint.load(tmp_path / "run" / "nn" / "last.pth")["epoch"] == 3


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"minibatch_size": 8}, "minibatch_size is 8 rows: vtrace needs a multiple of horizon_length, 16"),
        ({"rnn": "lstm", "seq_length": 4}, "seq_length is 4: vtrace with memory needs that of horizon_length, 16"),
        ({"central": True, "env": {"states": True}}, "take train.params.config.central_value_config away"),
    ],
)
def test_what_it_cannot_serve_is_refused_before_training(settings, told, tmp_path):
    with pytest.raises(UserError, match=told):
        agent_of(tmp_path, **settings)


def test_replay_with_several_ranks_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="replay is 1: with 2 ranks vtrace keeps no rollouts; set 0"):
        agent_of(tmp_path, replay=1)


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        ({"c_bar": 0.0}, "c_bar is 0.0: it must be positive"),
        ({"rho_bar": 0.5}, "rho_bar is 0.5: it must be at least c_bar, 1.0"),
        ({"replay": -1}, "replay is -1"),
    ],
)
def test_a_bad_option_is_named(bad, told):
    with pytest.raises(ValueError, match=told):
        VTraceOptions(**bad)
