"""What GAIL and AMP share, by hand: the gradient penalty, the replay buffer, who is paid for what, resuming, the player's keys."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from algos.amp import AMPDiscriminator, AMPOptions
from algos.discriminator import DiscriminatorOptions, Replay, gradient_penalty
from algos.gail import GAILDiscriminator, GAILOptions
from core import checkpoint, demos, registry
from core.build import make_env
from core.config import algo_options, to_params
from core.demos import Demonstrations
from core.errors import UserError
from core.policy import Policy
from core.run_dir import read_metrics
from tests.agents import our_agent
from tests.command import SMALL, command
from tests.experts import demonstrations
from tests.ranks import finish, start
from tests.toys import ToyVecEnv, toy_params

PENDULUM = ("task=TorchPendulum", *SMALL)
CPU = torch.device("cpu")


def judge(cls: Any, options: Any, size: int = 3, **policy: Any) -> Any:
    """A discriminator for a policy with `size` numbers in and two torques out."""
    given = {"obs_shape": (size,), "env_info": {}, "actions_num": 2, "action_kind": "continuous", "clip_actions": True, **policy}
    return cls(SimpleNamespace(**given), options)


def demo_file(env: ToyVecEnv, path: Any, rows: int = 40, shift: float = 3.0) -> str:
    """Transitions of nobody: states around `shift`, where the toy's are around 0."""
    rng = np.random.RandomState(1)
    obs, following = (rng.randn(rows, 3).astype(np.float32) + shift for _ in range(2))
    actions = {"continuous": rng.uniform(-1, 1, (rows, 2)).astype(np.float32), "discrete": rng.randint(0, 3, rows)}[env.action]
    ends = np.arange(rows) % 10 == 9
    arrays = {
        "obs": obs,
        "actions": actions,
        "next_obs": following,
        "rewards": np.zeros(rows, np.float32),
        "terminated": ends,
        "dones": ends,
    }
    meta = {
        "task": {"name": "toy"}, "observation_space": demos.describe(env.observation_space), "clip_actions": True,
        "action_space": demos.describe(env.action_space), "episode_returns": [0.0] * int(ends.sum()),
    }  # fmt: skip
    demos.write(path, arrays, meta)
    return str(path)


def toy_agent(algo: str, tmp_path: Any, reset_mode: str = "same_step", action: str = "continuous", rnn: Any = None, **config: Any) -> Any:
    env = ToyVecEnv(action=action, reset_mode=reset_mode)
    file = demo_file(env, tmp_path / "demos.npz") if not (tmp_path / "demos.npz").exists() else f"{tmp_path}/demos.npz"
    params = toy_params(action, rnn=rnn, **{"max_epochs": 2, "demos": file, "disc_steps": 2, "disc_batch_size": 8, **config})
    return our_agent(params, env, tmp_path, algo)


# ---- the discriminator ----------------------------------------------------------------------------------------------------


def test_the_gradient_penalty_of_a_linear_score_is_its_squared_weight():
    w = torch.tensor([3.0, -4.0, 12.0], requires_grad=True)
    x = torch.randn(5, 3, requires_grad=True)
    penalty = gradient_penalty(x @ w, x)
    assert penalty.tolist() == pytest.approx([169.0] * 5)  # 9 + 16 + 144
    penalty.sum().backward()
    assert w.grad is not None
    assert w.grad.tolist() == pytest.approx([30.0, -40.0, 120.0])  # 5 rows of 2 w: a second derivative


def test_the_gradient_penalty_of_a_curved_score():
    x = torch.tensor([[1.0, 2.0], [0.0, -1.0]], requires_grad=True)
    assert gradient_penalty((x**2).sum(-1), x).tolist() == [20.0, 4.0]  # |2 x|^2


def test_the_objective_adds_penalty_and_regularisers_by_their_weights():
    options = AMPOptions(disc_units=[], disc_grad_penalty=10.0, disc_logit_reg=0.05, disc_weight_decay=0.01)
    disc = judge(AMPDiscriminator, options, size=1)
    with torch.no_grad():
        disc.head.weight.copy_(torch.tensor([[0.3, 0.4]]))
        disc.head.bias.fill_(0.5)
    zeros = torch.zeros(4, 2)  # normalized: 0, so that all scores are 0.5
    loss, parts = disc.objective(zeros, zeros)
    # eq. 6: (0.5 - 1)^2 + (0.5 + 1)^2 = 2.5; |w|^2 = 0.25: + 10 / 2 x 0.25 + 0.05 x 0.25 + 0.01 x 0.25
    assert loss.item() == pytest.approx(2.5 + 1.25 + 0.0125 + 0.0025)
    assert parts["losses/disc"].item() == pytest.approx(2.5)
    assert parts["disc/grad_penalty"].item() == pytest.approx(0.25)
    assert parts["disc/policy_accuracy"].item() == 0.0  # 0.5 is taken for a demonstration
    assert parts["disc/demo_accuracy"].item() == 1.0
    without, parts = judge(AMPDiscriminator, AMPOptions(disc_units=[], disc_grad_penalty=0.0), size=1).objective(zeros, zeros)
    assert "disc/grad_penalty" not in parts
    assert without.requires_grad


def test_the_normalizer_learns_only_where_it_is_told(tmp_path):
    agent = toy_agent("gail", tmp_path)
    agent.train()
    stats = agent.disc.stats
    # 16 x 8 rows of the policy and as many demonstrated ones, in each of two epochs; rl_games counts from 1
    assert stats.count.item() == 1 + 2 * 2 * 16 * 8
    before = stats.running_mean.clone()
    agent.disc.train()
    agent.disc(torch.ones(7, stats.running_mean.numel()))
    assert torch.equal(stats.running_mean, before)
    assert 1.0 < before[0] < 2.0  # between the toy's 0 and the demonstrations' 3


# ---- the replay buffer ------------------------------------------------------------------------------------------------------


def numbers(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32).unsqueeze(1)


def test_the_replay_buffer_overwrites_the_oldest():
    replay = Replay(4, 1, 1.0, CPU)
    assert len(replay) == 0
    replay.add(numbers(1, 2, 3))
    assert replay.rows.flatten().tolist() == [1, 2, 3]
    replay.add(numbers(4, 5))
    assert replay.rows.flatten().tolist() == [5, 2, 3, 4]
    replay.add(numbers(6, 7, 8, 9, 10, 11))  # more than it holds: the last four, from where 2 stood
    assert sorted(replay.rows.flatten().tolist()) == [8, 9, 10, 11]
    assert len(replay) == 4


def test_a_full_replay_buffer_takes_a_share_of_what_comes():
    torch.manual_seed(0)
    replay = Replay(1000, 1, 0.1, CPU)
    replay.add(torch.zeros(1000, 1))  # not full before: all
    assert len(replay) == 1000
    replay.add(torch.ones(1000, 1))
    assert 60 < replay.rows.sum() < 140  # binomial(1000, 0.1) has a standard deviation of 9.5


def test_a_restored_replay_buffer_goes_on_where_the_other_stood():
    one, other = Replay(4, 1, 1.0, CPU), Replay(4, 1, 1.0, CPU)
    one.add(numbers(1, 2, 3))
    one.add(numbers(4, 5))
    other.load_state_dict(one.state_dict())
    for replay in (one, other):
        replay.add(numbers(6))
    assert other.rows.flatten().tolist() == one.rows.flatten().tolist() == [5, 6, 3, 4]
    small, large = Replay(2, 1, 1.0, CPU), Replay(6, 1, 1.0, CPU)
    for replay in (small, large):
        replay.load_state_dict(one.state_dict())
        replay.add(numbers(7))
    assert small.rows.flatten().tolist() == [7, 6]
    assert large.rows.flatten().tolist() == [5, 6, 3, 4, 7]


# ---- in an agent --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rnn", [None, "gru"])
@pytest.mark.parametrize("reset_mode", ["same_step", "next_step"])
@pytest.mark.parametrize("algo", ["gail", "amp"])
def test_reset_rows_are_neither_judged_nor_paid(algo, reset_mode, rnn, tmp_path):
    agent = toy_agent(algo, tmp_path, reset_mode, rnn=rnn, task_reward_coef=0.0, imitation_reward_coef=2.0)
    assert agent.fast.step_reason is None  # no hook of a step
    agent.train()
    rollout = agent.rollout
    count = int(rollout.valid.sum())
    assert len(agent.played) == count
    assert (count < 16 * 8) is (reset_mode == "next_step")
    rewards, components = agent.combine_rewards(rollout)
    assert bool((rewards[~rollout.valid] == 0).all())
    paid = agent.disc.reward(agent.disc(agent.played))
    assert rewards[rollout.valid].squeeze(-1).tolist() == pytest.approx((2.0 * paid).tolist(), rel=1e-5, abs=1e-6)
    assert components["imitation"].mean().item() == pytest.approx(paid.mean().item())


def test_the_task_is_paid_by_its_own_weight(tmp_path):
    agent = toy_agent("gail", tmp_path, task_reward_coef=0.5, imitation_reward_coef=0.0)
    agent.train()
    rewards, _ = agent.combine_rewards(agent.rollout)
    assert torch.equal(rewards, 0.5 * agent.rollout.rewards)
    assert agent.metrics["return_mean"] != agent.metrics["shaped_return_mean"]  # statistics stay the task's own


@pytest.mark.parametrize("algo", ["gail", "amp"])
@pytest.mark.parametrize("action", ["continuous", "discrete"])
def test_it_learns_who_demonstrated(algo, action, tmp_path):
    agent = toy_agent(algo, tmp_path, action=action, max_epochs=12, disc_steps=20, disc_batch_size=64, disc_learning_rate=3e-3)
    agent.train()
    told = agent.metrics
    assert told["disc/demo_score"] > told["disc/policy_score"] + 0.5
    assert told["disc/demo_accuracy"] > 0.9


def test_replay_is_half_of_the_policys_side(tmp_path):
    agent = toy_agent("amp", tmp_path, max_epochs=1, disc_replay_size=32)
    agent.train()
    assert len(agent.replay) == 32
    seen = []
    agent.disc.objective = lambda policy, demonstrated: seen.append(policy) or type(agent.disc).objective(agent.disc, policy, demonstrated)
    agent.replay.data.fill_(77.0)
    agent.extra_update(None)
    assert [(policy == 77).all(1).sum().item() for policy in seen] == [4, 4]  # of 8 rows, in each of two steps


def saved(path: Any) -> dict[str, Any]:
    state = checkpoint.load(path)
    return {"model": state["model"], **state["gamesmith"]["extras"]["parts"], "optimizers": state["gamesmith"]["extras"]["optimizers"],
            "ranks": [own["parts"] for own in state["gamesmith"].get("ranks", [])]}  # fmt: skip


def assert_same(a: Any, b: Any) -> None:
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict | list):
        assert len(a) == len(b)
        for x, y in zip(a.items(), b.items(), strict=True) if isinstance(a, dict) else enumerate(zip(a, b, strict=True)):
            assert_same(x, y) if isinstance(a, dict) else assert_same(*y)
    elif isinstance(a, tuple):
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert a == b


@pytest.mark.parametrize("algo", ["gail", "amp"])
def test_a_resumed_run_is_the_uninterrupted_one(algo, tmp_path):
    file = demonstrations("task=TorchPendulum")
    given = [*PENDULUM, f"train.params.algo.name={algo}", f"train.params.config.demos={file}", "seed=3"]
    if algo == "amp":
        given += ["train.params.config.disc_replay_size=150", "train.params.config.disc_replay_keep=0.5"]
    command(*given, f"run_dir={tmp_path}/whole", "max_epochs=6")
    command(*given, f"run_dir={tmp_path}/parts", "max_epochs=3")
    command(f"resume={tmp_path}/parts", "max_epochs=6")
    whole, parts = (saved(tmp_path / run / "nn" / "last.pth") for run in ("whole", "parts"))
    assert "disc" in whole
    assert ("replay" in whole) is (algo == "amp")
    assert_same(whole, parts)


@pytest.mark.long
def test_two_ranks_share_the_discriminator_and_keep_a_replay_buffer_each(tmp_path):
    file = demonstrations("task=TorchPendulum")
    given = [
        *PENDULUM,
        "train.params.algo.name=amp",
        f"train.params.config.demos={file}",
        "train.params.config.disc_replay_size=150",
        "progress=off",
    ]

    def run(*arguments: str) -> None:
        for status, _, error in finish(start(*[["train.py", *arguments]] * 2)):
            assert status == 0, error

    run(*given, f"run_dir={tmp_path}/whole", "max_epochs=4")  # the ranks' weights are compared after each epoch
    run(*given, f"run_dir={tmp_path}/parts", "max_epochs=2")
    run(f"resume={tmp_path}/parts", "max_epochs=4", "progress=off")
    whole, parts = (saved(tmp_path / run / "nn" / "last.pth") for run in ("whole", "parts"))
    first, second = (own["replay"]["rows"] for own in whole["ranks"])
    assert len(first) == len(second) == 150
    assert not torch.equal(first, second)
    assert_same(whole, parts)


# ---- the player ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["TorchPendulum", "Hopper"])
@pytest.mark.parametrize("algo", ["gail", "amp"])
def test_the_player_tells_what_the_discriminator_thinks(algo, task, tmp_path):
    file = demonstrations(f"task={task}")
    given = [f"task={task}", *SMALL, f"train.params.algo.name={algo}", f"train.params.config.demos={file}"]
    result = command(*given, f"run_dir={tmp_path}/run", "max_epochs=2")
    ask = ["test=True", f"checkpoint={result['checkpoint']}", "player.games_num=1", "player.num_envs=1", f"record={tmp_path}/seen.npz"]
    played = command(*ask)
    assert json.loads((tmp_path / "run" / "eval.json").read_text())["imitation_reward_mean"] == played["imitation_reward_mean"]
    # the same from the recorded transitions
    state = checkpoint.load(result["checkpoint"])
    seen, disc = judged_again(registry.algos.get(algo), state, tmp_path / "seen.npz")
    scores = disc(seen)
    assert len(seen) == played["per_episode"][0]["length"]
    assert played["discriminator_score_mean"] == pytest.approx(scores.mean().item(), rel=1e-4, abs=1e-6)
    assert played["imitation_reward_mean"] == pytest.approx(disc.reward(scores).mean().item(), rel=1e-4)


def judged_again(entry: Any, state: dict[str, Any], path: Any) -> Any:
    """A file's transitions as a checkpoint's discriminator sees them, and that discriminator."""
    cfg = state["gamesmith"]["config"]
    params = to_params(cfg)
    env = make_env(cfg, 1, 0, "cpu")
    policy = Policy(params, env.get_env_info(), 1, "cpu")
    policy.load(state)
    disc = entry.cls.discriminator(policy, algo_options(entry, params["config"])).eval()
    disc.load_state_dict(state["gamesmith"]["extras"]["parts"]["disc"])
    kept = Demonstrations.load(path, policy)
    env.close()
    with torch.no_grad():
        return disc.inputs(kept.obs, kept.actions, kept.next_obs), disc.requires_grad_(False)


# ---- what is refused -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algo", ["gail", "amp"])
def test_demonstrations_that_are_missing_or_do_not_fit_are_refused_before_there_is_a_run(algo, tmp_path):
    given = [*PENDULUM, f"train.params.algo.name={algo}", f"run_dir={tmp_path}/run", "max_epochs=1"]
    with pytest.raises(UserError, match=r"train\.params\.config\.demos is missing: (GAIL|AMP) learns from demonstrations"):
        command(*given)
    with pytest.raises(UserError, match=r"'nowhere\.npz' does not exist"):
        command(*given, "train.params.config.demos=nowhere.npz")
    file = demonstrations("task=TorchCartPole")
    with pytest.raises(UserError, match=r"observations .* \(4,\).* but the task's are .* \(3,\)"):
        command(*given, f"train.params.config.demos={file}")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("disc_units", [0]), ("disc_learning_rate", 0.0), ("disc_steps", 0), ("disc_batch_size", 1), ("disc_grad_penalty", -1.0),
        ("disc_logit_reg", -1.0), ("disc_weight_decay", -1.0), ("disc_replay_size", -1), ("disc_replay_keep", 0.0),
    ],
)  # fmt: skip
def test_a_knob_out_of_range_is_named(name, value):
    with pytest.raises(ValueError, match=rf"{name} is .*: it must be"):
        DiscriminatorOptions(**{name: value})


@pytest.mark.parametrize(
    ("shape", "told"), [((4, 4, 1), r"arrays of shape \(4, 4, 1\)"), ({"image": (4,), "t": (1,)}, "a Dict of image, t")]
)
@pytest.mark.parametrize(("cls", "options"), [(GAILDiscriminator, GAILOptions()), (AMPDiscriminator, AMPOptions())])
def test_observations_that_are_no_flat_array_are_refused(cls, options, shape, told):
    with pytest.raises(UserError, match=f"discriminator reads flat observations, but the task's are {told}"):
        judge(cls, options, obs_shape=shape)


def test_metrics_are_written(tmp_path):
    file = demonstrations("task=TorchPendulum")
    command(*PENDULUM, "train.params.algo.name=amp", f"train.params.config.demos={file}", f"run_dir={tmp_path}/run", "max_epochs=2")
    last = list(read_metrics(tmp_path / "run" / "metrics.jsonl"))[-1]
    for name in ("losses/disc", "disc/policy_score", "disc/demo_score", "disc/policy_accuracy", "disc/demo_accuracy", "disc/grad_penalty"):
        assert np.isfinite(last[name]), name
    assert 0.0 <= last["rewards/imitation"] <= 1.0
