"""DAPG: the weight of the demonstrations, their loss, the cloning before the first epoch, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from algos.batch import Batch
from algos.dapg import DAPGOptions
from core import checkpoint, demos
from core.errors import UserError
from core.run_dir import read_metrics
from tests.agents import our_agent
from tests.command import SMALL, command
from tests.experts import demonstrations, teacher
from tests.ranks import finish, start
from tests.toys import ToyVecEnv, toy_params


def demo_file(path: Path, env: ToyVecEnv, actions: list[Any], obs: float = 0.5) -> str:
    """One episode of the given actions, all from the same observation."""
    kind = np.float32 if env.action == "continuous" else np.int64
    count = len(actions)
    seen = np.full((count, 3), obs, np.float32)
    last = np.arange(count) == count - 1
    arrays = {
        "obs": seen, "next_obs": seen, "actions": np.array(actions, kind), "rewards": np.ones(count, np.float32), "terminated": last,
        "dones": last,
    }  # fmt: skip
    spaces = {"observation_space": demos.describe(env.observation_space), "action_space": demos.describe(env.action_space)}
    demos.write(path, arrays, {**spaces, "task": {"name": "toy"}, "clip_actions": True, "episode_returns": [float(count)]})
    return str(path)


def agent_with(tmp_path: Path, actions: list[Any], action: str = "continuous", **config: Any) -> Any:
    env = ToyVecEnv(action=action)
    file = demo_file(tmp_path / "d.npz", env, actions)
    return our_agent(toy_params(action, demos=file, **config), env, tmp_path / "run", "dapg")


def batch_of(advantages: list[float], mask: list[float] | None = None) -> Batch:
    fields = {"advantages": torch.tensor(advantages), "mask": None if mask is None else torch.tensor(mask)}
    return Batch({"actions": torch.zeros(len(advantages), 2), **fields})


# ---- eq. 7 ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("advantages", "mask", "weight"),
    [
        ([0.5, 2.0, -3.0], None, 0.05),  # 0.1 * 0.5^2 * 2
        ([0.5, 2.0, -3.0], [1.0, 0.0, 1.0], 0.0125),  # the row of 2 is no transition: 0.1 * 0.5^2 * 0.5
        ([-0.5, -2.0], None, 0.0),  # no advantage to be worth as much as: not a push away from the demonstrations
    ],
)
def test_weight_by_hand(advantages: Any, mask: Any, weight: float, tmp_path: Path) -> None:
    agent = agent_with(tmp_path, [[0.0, 0.0]], dapg_lambda0=0.1, dapg_lambda1=0.5)
    agent.epoch_num = 3  # k = 2
    agent.transform_batch(batch_of(advantages, mask))
    assert agent.weight.item() == pytest.approx(weight)
    assert agent.metrics["dapg/weight"] == pytest.approx(weight)


def test_the_largest_advantage_is_that_of_all_ranks(tmp_path: Path, monkeypatch: Any) -> None:
    agent = agent_with(tmp_path, [[0.0, 0.0]], dapg_lambda0=0.1)
    monkeypatch.setattr(agent.ranks, "gather", lambda value: [value, 7.0], raising=False)
    agent.epoch_num = 1
    agent.transform_batch(batch_of([1.0, 2.0]))
    assert agent.weight.item() == pytest.approx(0.7)


# ---- eq. 6, second sum ------------------------------------------------------------------------------------------------------------


def zeroed(agent: Any) -> Any:
    """Means 0 and standard deviation 1, or equal logits, whatever is seen."""
    with torch.no_grad():
        for parameter in agent.model.parameters():
            parameter.zero_()
    return agent


@pytest.mark.parametrize(
    ("action", "actions", "neglogp"),
    [
        ("continuous", [[1.0, -0.5]] * 4, 0.5 * (1 + 0.25) + math.log(2 * math.pi)),  # two actions: 2 * 0.5 log(2 pi)
        ("discrete", [2] * 4, math.log(3)),
        ("multi_discrete", [[1, 2]] * 4, math.log(2) + math.log(3)),
    ],
)
def test_loss_by_hand(action: str, actions: Any, neglogp: float, tmp_path: Path) -> None:
    agent = zeroed(agent_with(tmp_path, actions, action))
    agent.weight.fill_(0.5)
    loss = agent.extra_losses(batch_of([0.0] * 32), None)
    assert list(loss) == ["demo"]
    assert loss["demo"].item() == pytest.approx(0.5 * neglogp, rel=1e-5)


def test_its_gradient_makes_the_demonstrations_likelier(tmp_path: Path) -> None:
    agent = zeroed(agent_with(tmp_path, [[1.0, -0.5]] * 4))
    agent.weight.fill_(0.5)
    agent.extra_losses(batch_of([0.0] * 32), None)["demo"].backward()
    # d/dmu of 0.5 (a - mu)^2 / 1 is mu - a = -1 and 0.5, times the weight
    assert agent.model.a2c_network.mu.bias.grad.tolist() == pytest.approx([-0.5, 0.25])


# ---- behaviour cloning --------------------------------------------------------------------------------------------------------------


def test_cloning_step_by_hand(tmp_path: Path) -> None:
    agent = zeroed(agent_with(tmp_path, [[1.0, -0.5]], bc_epochs=1, bc_learning_rate=0.01, normalize_input=False))
    agent.on_train_start()
    # Adam's first step is the learning rate against the gradient's sign; the mean's error is 1 + 0.25; the width is not cloned
    assert agent.model.a2c_network.mu.bias.tolist() == pytest.approx([0.01, -0.01], rel=1e-4)
    assert agent.model.a2c_network.sigma.tolist() == [0.0, 0.0]
    assert agent.bc_loss == pytest.approx(1.25)


@pytest.mark.parametrize(
    ("action", "actions"), [("continuous", [[0.5, -0.5]] * 64), ("discrete", [1] * 64), ("multi_discrete", [[1, 0]] * 64)]
)
def test_cloned_actions(action: str, actions: Any, tmp_path: Path) -> None:
    agent = agent_with(tmp_path, actions, action, bc_epochs=40, bc_learning_rate=0.01)
    agent.on_train_start()
    agent.model.eval()
    best = agent.policy.best_actions(agent.policy.act(torch.full((8, 3), 0.5)))
    assert torch.allclose(best.float(), torch.tensor(actions[:8]).float(), atol=0.1)
    stats = agent.model.running_mean_std
    # before anything was seen rl_games' statistics count one row of mean 0: (1 * 0 + 64 * 0.5) / 65
    assert stats.running_mean.tolist() == pytest.approx([64 * 0.5 / 65] * 3)


def test_nothing_is_cloned_in_a_run_that_goes_on(tmp_path: Path) -> None:
    agent = agent_with(tmp_path, [[1.0, -0.5]])
    before = [p.clone() for p in agent.model.parameters()]
    agent.epoch_num = 4
    agent.on_train_start()
    assert all(torch.equal(a, b) for a, b in zip(before, agent.model.parameters(), strict=True))


def test_zero_epochs_clone_nothing(tmp_path: Path) -> None:
    agent = agent_with(tmp_path, [[1.0, -0.5]], bc_epochs=0)
    before = [p.clone() for p in agent.model.parameters()]
    agent.on_train_start()
    assert all(torch.equal(a, b) for a, b in zip(before, agent.model.parameters(), strict=True))


# ---- composition ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("env", "settings"),
    [
        ({"reset_mode": "next_step"}, {}),
        ({"states": True}, {"central": True}),
        ({"agents": 2}, {}),
        ({}, {"fused": False}),
    ],
)
def test_trains_with(env: dict[str, Any], settings: dict[str, Any], tmp_path: Path) -> None:
    toy = ToyVecEnv(**env)
    file = demo_file(tmp_path / "d.npz", toy, [[0.5, 0.5]] * 8)
    agent = our_agent(toy_params(demos=file, **settings), toy, tmp_path / "run", "dapg")
    agent.train()
    assert agent.metrics["losses/demo"] != 0.0
    assert all(torch.isfinite(p).all() for p in agent.model.parameters())


def test_fast_and_plain_path_agree(tmp_path: Path) -> None:
    weights = []
    for fused in (True, False):
        (tmp_path / str(fused)).mkdir()
        agent = agent_with(
            tmp_path / str(fused), [[0.5, -0.5]] * 8, max_epochs=1, fused=fused, dapg_lambda0=1.0, mini_epochs=1, shuffle=False
        )
        agent.on_train_start()
        agent.weight.fill_(1.0)
        agent.fast.refresh()
        torch.manual_seed(3)
        mb = Batch({"obs": torch.randn(6, 3), "actions": torch.randn(6, 2)})
        agent._updating = fused
        weights.append(agent.extra_losses(mb, None)["demo"].item())
    assert weights[0] == pytest.approx(weights[1], rel=1e-4)


def test_a_resumed_run_is_the_uninterrupted_one_bit_by_bit(tmp_path: Path) -> None:
    file = demonstrations("task=TorchPendulum")
    task = [
        "task=TorchPendulum",
        "train=DAPG",
        *SMALL,
        "train.params.config.minibatch_size_per_env=16",
        f"train.params.config.demos={file}",
    ]
    command(*task, "max_epochs=6", f"run_dir={tmp_path}/whole")
    command(*task, "max_epochs=3", f"run_dir={tmp_path}/parts")
    torch.rand(11)
    command(f"resume={tmp_path}/parts", "max_epochs=6")
    a, b = (checkpoint.load(tmp_path / run / "nn" / "last.pth")["model"] for run in ("whole", "parts"))
    assert all(torch.equal(a[name], b[name]) for name in a)
    weights = [line["dapg/weight"] for line in read_metrics(tmp_path / "parts" / "metrics.jsonl")]
    assert len(weights) == 6
    assert "dapg/bc_loss" in read_metrics(tmp_path / "parts" / "metrics.jsonl")[0]


@pytest.mark.long
def test_two_ranks_stay_one_run(tmp_path: Path) -> None:
    file = demonstrations("task=TorchPendulum")
    line = ["train.py", "task=TorchPendulum", "train=DAPG", *SMALL, f"train.params.config.demos={file}", "max_epochs=3", "progress=off"]
    ended = finish(start(*[[*line, f"run_dir={tmp_path}/run"]] * 2))
    assert [status for status, _, _ in ended] == [0, 0], ended  # ranks whose weights differ end the run with an error
    assert len(read_metrics(tmp_path / "run" / "metrics.jsonl")) == 3


# ---- what is refused ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [("dapg_lambda0", -1), ("dapg_lambda1", 1.5), ("bc_epochs", -1), ("bc_learning_rate", 0), ("bc_minibatch_size", 0)],
)
def test_options(key: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{key} is {value}: it must be"):
        DAPGOptions(**{key: value})


PENDULUM = ("task=TorchPendulum", "train=DAPG", *SMALL)


@pytest.mark.parametrize(
    ("extra", "told"),
    [
        ((), r"train.params.config.demos is missing"),
        (("train.params.config.demos=nowhere.npz",), r"'nowhere.npz' does not exist"),
        (("train.params.config.demos=OWN", "++train.params.network.rnn={name: lstm, units: 8, layers: 1}"), r"network with memory"),
        (("train.params.config.demos=OTHER",), r"observations Box of shape \(4,\).* are Box of shape \(3,\)"),
        (("train.params.config.demos=CHECKPOINT",), r"is not a demonstration file"),
    ],
)
def test_refused_before_there_is_a_run_directory(extra: Any, told: str, tmp_path: Path) -> None:
    for name, path in (
        ("OWN", demonstrations("task=TorchPendulum")),
        ("OTHER", demonstrations("task=TorchCartPole")),
        ("CHECKPOINT", teacher("task=TorchPendulum")),
    ):
        extra = [e.replace(name, path) for e in extra]
    with pytest.raises(UserError, match=told):
        command(*PENDULUM, "train.params.config.minibatch_size_per_env=16", *extra, f"run_dir={tmp_path}/run", "max_epochs=1")
    assert not (tmp_path / "run").exists()


def test_playing_needs_no_demonstrations(tmp_path: Path) -> None:
    file = tmp_path / "d.npz"
    file.write_bytes(Path(demonstrations("task=TorchPendulum")).read_bytes())
    result = command(*PENDULUM, f"train.params.config.demos={file}", f"run_dir={tmp_path}/run", "max_epochs=1")
    file.unlink()
    assert command("test=True", f"checkpoint={result['checkpoint']}", "player.games_num=1")["episodes"] == 1
