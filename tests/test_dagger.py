"""DAgger: who acts, what the teacher is shown, what is minimised, the dataset, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from algos.dagger import DAggerOptions, Dataset
from algos.heads import Output
from core import checkpoint, registry
from core.build import make_env
from core.config import CONFIG_DIR
from core.errors import UserError
from core.run_dir import read_metrics
from tests.agents import our_agent
from tests.command import SMALL, command
from tests.experts import teacher
from tests.ranks import finish, start
from tests.test_checkpoint import _equal
from tests.toys import toy_params

registry.discover()

PENDULUM, CARTPOLE = "task=TorchPendulum", "task=TorchCartPole"
LSTM = "++train.params.network.rnn={name: lstm, units: 8, layers: 1}"
SIZE = (*SMALL, "train.params.config.minibatch_size_per_env=16")


def student(tmp_path: Path, task: str = "Pendulum", hidden: list[int] | None = None, **config: Any) -> Any:
    """An agent whose teacher sees the whole observation."""
    options = {"name": task, "kind": "torch", "id": task, "hidden_obs": hidden}
    env = make_env({"task": options}, 8, 0, "cpu")
    action = "continuous" if task == "Pendulum" else "discrete"
    of = teacher(PENDULUM if task == "Pendulum" else CARTPOLE)
    return our_agent(toy_params(action, teacher=of, **config), env, tmp_path / "run", "dagger")


def ready(agent: Any, epoch: int = 1) -> Any:
    agent.reset_environments()
    agent.epoch_num = epoch
    agent.before_epoch()
    return agent


# ---- alg. 3.1: who acts -------------------------------------------------------------------------------------------------------------


def test_share_of_the_teacher(tmp_path: Path) -> None:
    agent = ready(student(tmp_path, dagger_beta=0.8, dagger_beta_decay=0.5), epoch=3)
    assert agent.beta == pytest.approx(0.2)  # 0.8 * 0.5^2
    assert agent.metrics["dagger/beta"] == pytest.approx(0.2)


@pytest.mark.parametrize("task", ["Pendulum", "CartPole"])
@pytest.mark.parametrize("hidden", [None, [1]])
def test_the_teacher_acts_with_share_1_and_sees_the_whole(task: str, hidden: Any, tmp_path: Path) -> None:
    agent = ready(student(tmp_path, task, hidden, dagger_beta=1.0))
    assert agent.teacher.sees == ("states" if hidden else "obs")
    whole = agent.obs[agent.teacher.sees]
    assert whole.shape[1] == agent.obs["obs"].shape[1] + bool(hidden)
    expected = agent.teacher.act(whole)
    assert torch.equal(agent.act(agent.obs["obs"])["actions"], agent.teacher.best_actions(expected))
    key = "mus" if task == "Pendulum" else "logits"
    assert torch.equal(agent.label[:, : expected[key].shape[1]], expected[key])


def test_the_student_acts_with_share_0(tmp_path: Path) -> None:
    agent = ready(student(tmp_path, dagger_beta=0.0))
    result = agent.act(agent.obs["obs"])
    assert torch.equal(result["actions"], result["mus"])
    agent.options.dagger_deterministic = False
    result = agent.act(agent.obs["obs"])
    assert not torch.equal(result["actions"], result["mus"])


def test_a_share_between_mixes_by_the_row(tmp_path: Path) -> None:
    agent = ready(student(tmp_path, dagger_beta=0.5))
    torch.manual_seed(1)
    by_teacher = 0
    for _ in range(50):
        result = agent.act(agent.obs["obs"])
        theirs = agent.label[:, :1]
        own, teachers = (result["actions"] == result["mus"]).flatten(), (result["actions"] == theirs).flatten()
        assert (own | teachers).all()
        by_teacher += int(teachers.sum())
    assert 150 < by_teacher < 250  # of 400, expected 200 with deviation 10


# ---- what is minimised --------------------------------------------------------------------------------------------------------------


def output(**parts: Any) -> Output:
    return Output(neglogp=torch.zeros(1), values=torch.zeros(1, 1), entropy=torch.zeros(1), **parts)


def test_distance_of_gaussians(tmp_path: Path) -> None:
    agent = student(tmp_path)
    label = torch.tensor([[1.0, 1.0]])  # mean 1, deviation 1
    out = output(mus=torch.tensor([[3.0]]), sigmas=torch.tensor([[2.0]]))
    assert agent.distance(label, out).tolist() == [4.0]  # (3 - 1)^2
    agent.options.dagger_target = "distribution"
    # KL(N(1, 1) || N(3, 2)) = log(2 / 1) + (1 + 4) / (2 * 4) - 1/2
    assert agent.distance(label, out).tolist() == pytest.approx([math.log(2) + 0.625 - 0.5])


def test_distance_of_choices(tmp_path: Path) -> None:
    agent = student(tmp_path, "CartPole")
    label = torch.tensor([[0.0, 0.0], [0.0, math.log(3)]])  # probabilities 1/2, 1/2 and 1/4, 3/4
    out = output(logits=torch.tensor([[0.0, math.log(3)], [0.0, 0.0]]))
    # the likeliest choices (the first of equal ones) 0 and 1, to which the student gives 1/4 and 1/2
    assert agent.distance(label, out).tolist() == pytest.approx([math.log(4), math.log(2)])
    agent.options.dagger_target = "distribution"
    # 1/2 log(2) + 1/2 log(2/3), and 1/4 log(1/2) + 3/4 log(3/2)
    by_hand = [0.5 * math.log(2) + 0.5 * math.log(2 / 3), 0.25 * math.log(0.5) + 0.75 * math.log(1.5)]
    assert agent.distance(label, out).tolist() == pytest.approx(by_hand)


def test_distance_of_several_heads_is_their_sum(tmp_path: Path) -> None:
    agent = student(tmp_path, "CartPole")
    agent.choices = [2, 3]
    label = torch.tensor([[0.0, 1.0, 0.0, 0.0, 1.0]])
    out = output(logits=[torch.zeros(1, 2), torch.zeros(1, 3)])
    assert agent.distance(label, out).tolist() == pytest.approx([math.log(2) + math.log(3)])
    agent.options.dagger_target = "distribution"
    same = output(logits=[label[:, :2], label[:, 2:]])
    assert agent.distance(label, same).tolist() == pytest.approx([0.0], abs=1e-6)


# ---- the dataset --------------------------------------------------------------------------------------------------------------------


def test_dataset_keeps_the_newest_and_goes_on() -> None:
    kept = Dataset(2)
    for epoch in (1.0, 2.0, 3.0):
        kept.add(
            {"obs": {"a": torch.full((4, 1), epoch)}, "actions": torch.full((4,), epoch), "rnn_states": [torch.full((1, 2, 5), epoch)]}
        )
    other = Dataset(2)
    other.load_state_dict(kept.state_dict())
    for dataset in (kept, other):
        batch = dataset.batch(seq_length=2)
        assert batch.actions.tolist() == [2.0] * 4 + [3.0] * 4
        assert batch.obs["a"].flatten().tolist() == batch.actions.tolist()
        assert batch.rnn_states[0].shape == (1, 4, 5)  # two sequences of each epoch
        assert batch.rnn_states[0][0, :, 0].tolist() == [2.0, 2.0, 3.0, 3.0]
    smaller = Dataset(1)
    smaller.load_state_dict(kept.state_dict())
    assert smaller.batch(2).actions.tolist() == [3.0] * 4


@pytest.mark.parametrize("envs", [1, 4])
def test_labels_of_an_epoch_survive_the_next(envs: int, tmp_path: Path) -> None:
    env = make_env({"task": {"name": "t", "kind": "torch", "id": "Pendulum"}}, envs, 0, "cpu")
    params = toy_params(num_envs=envs, teacher=teacher(PENDULUM), dagger_epochs_kept=3, minibatch_size=16)
    agent = our_agent(params, env, tmp_path / "run", "dagger")
    agent.reset_environments()
    agent.train_epoch()
    before = {name: value.clone() for name, value in agent.dataset.epochs[0].items()}
    metrics = agent.train_epoch()
    assert metrics["dagger/rows"] == 2 * 16 * envs
    assert all(torch.equal(agent.dataset.epochs[0][name], value) for name, value in before.items())
    told = agent.teacher.act(agent.dataset.epochs[1]["obs"])  # the label belongs to the state beside it
    assert torch.allclose(agent.dataset.epochs[1]["label"], torch.cat([told["mus"], told["sigmas"]], dim=1), atol=1e-6)


@pytest.mark.parametrize("case", [(PENDULUM, "task.hidden_obs=[2]", LSTM), (CARTPOLE, "train.params.config.dagger_target=distribution")])
def test_a_resumed_run_is_the_uninterrupted_one_bit_by_bit(case: Any, tmp_path: Path) -> None:
    task = [*case, "train=DAgger", *SIZE, f"train.params.config.teacher={teacher(case[0])}", "train.params.config.dagger_epochs_kept=4"]
    command(*task, "max_epochs=6", f"run_dir={tmp_path}/whole")
    command(*task, "max_epochs=3", f"run_dir={tmp_path}/parts")
    torch.rand(11)
    command(f"resume={tmp_path}/parts", "max_epochs=6")
    a, b = (checkpoint.load(tmp_path / run / "nn" / "last.pth") for run in ("whole", "parts"))
    assert _equal(a["model"], b["model"])
    assert _equal(a["gamesmith"]["extras"], b["gamesmith"]["extras"])
    assert len(a["gamesmith"]["extras"]["parts"]["dataset"]["epochs"]) == 4


# ---- it teaches ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["action", "distribution"])
def test_the_student_comes_closer(target: str, tmp_path: Path) -> None:
    extra = (f"train.params.config.teacher={teacher(PENDULUM)}", f"train.params.config.dagger_target={target}")
    command(PENDULUM, "train=DAgger", *SIZE, *extra, f"run_dir={tmp_path}/run", "max_epochs=30", "train.params.config.learning_rate=3e-3")
    losses = [line["losses/dagger"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    assert np.mean(losses[-5:]) < 0.2 * np.mean(losses[:2])


@pytest.mark.parametrize(("schedule", "end"), [("linear", 0.0), ("constant", 3e-4), ("adaptive", 3e-4)])
def test_learning_rate(schedule: str, end: float, tmp_path: Path) -> None:
    extra = (f"train.params.config.teacher={teacher(PENDULUM)}", f"train.params.config.lr_schedule={schedule}", "max_frames=320")
    command(PENDULUM, "train=DAgger", *SIZE, *extra, f"run_dir={tmp_path}/run")
    assert read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]["info/last_lr"] == pytest.approx(end, abs=1e-6)


def test_next_step_resets_and_memory(tmp_path: Path) -> None:
    of = command("task=CartPole", *SIZE, f"run_dir={tmp_path}/teacher", "max_epochs=2")["checkpoint"]
    ask = ("task=CartPoleNoVel", "train=DAgger", *SIZE, LSTM, f"train.params.config.teacher={of}")
    assert command(*ask, f"run_dir={tmp_path}/run", "max_epochs=8")["epochs"] == 8


@pytest.mark.long
def test_two_ranks_stay_one_run(tmp_path: Path) -> None:
    line = [
        "train.py",
        PENDULUM,
        "train=DAgger",
        *SMALL,
        f"train.params.config.teacher={teacher(PENDULUM)}",
        "max_epochs=3",
        "progress=off",
    ]
    ended = finish(start(*[[*line, f"run_dir={tmp_path}/run"]] * 2))
    assert [status for status, _, _ in ended] == [0, 0], ended  # ranks whose weights differ end the run with an error
    assert len(read_metrics(tmp_path / "run" / "metrics.jsonl")) == 3


# ---- what is refused ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("key", "value"), [("dagger_beta", 1.5), ("dagger_beta_decay", -0.1), ("dagger_epochs_kept", 0)])
def test_options(key: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{key} is {value}: it must be"):
        DAggerOptions(**{key: value})


@pytest.fixture(scope="module")
def remembering(tmp_path_factory: Any) -> str:
    folder = tmp_path_factory.mktemp("lstm") / "run"
    return str(command(PENDULUM, *SIZE, LSTM, f"run_dir={folder}", "max_epochs=1")["checkpoint"])


@pytest.fixture(scope="module")
def sac(tmp_path_factory: Any) -> str:
    folder = tmp_path_factory.mktemp("sac") / "run"
    yaml = f"file={CONFIG_DIR.parent}/tests/data/sac.yaml"
    return str(
        command(PENDULUM, yaml, "num_envs=4", "train.params.config.num_warmup_steps=8", f"run_dir={folder}", "max_epochs=10")["checkpoint"]
    )


def refused(tmp_path: Path, told: str, *extra: str, task: str = PENDULUM) -> None:
    with pytest.raises(UserError, match=told):
        command(task, "train=DAgger", *SIZE, *extra, f"run_dir={tmp_path}/run", "max_epochs=1")
    assert not (tmp_path / "run").exists()


def test_no_teacher(tmp_path: Path) -> None:
    refused(tmp_path, r"train.params.config.teacher is missing")
    refused(tmp_path, r"checkpoint 'nowhere.pth' does not exist", "train.params.config.teacher=nowhere.pth")


def test_a_teacher_with_memory(tmp_path: Path, remembering: str) -> None:
    refused(tmp_path, r"teacher '.*' has memory", f"train.params.config.teacher={remembering}")


def test_a_teacher_of_other_actions(tmp_path: Path) -> None:
    of = f"train.params.config.teacher={teacher(CARTPOLE)}"
    refused(tmp_path, r"acts in Discrete\(2\), but the task's actions are Box\(-2.0, 2.0, \(1,\), float32\)", of)


def test_a_teacher_of_other_observations(tmp_path: Path) -> None:
    of = f"train.params.config.teacher={teacher(PENDULUM)}"
    narrow = command(PENDULUM, "task.hidden_obs=[0]", *SIZE, f"run_dir={tmp_path}/narrow", "max_epochs=1")["checkpoint"]
    # made for two numbers, and the task has three; made for two, and the task has one and, as its state, three
    refused(
        tmp_path, r"made for observations .*\(2,\), float32\), but the task has 'obs' .*\(3,\)", f"train.params.config.teacher={narrow}"
    )
    both = r"but the task has 'obs' Box.*\(1,\), float32\) and 'states' Box.*\(3,\), float32\)"
    refused(tmp_path, both, f"train.params.config.teacher={narrow}", "task.hidden_obs=[0,1]")
    env = make_env({"task": {"name": "t", "kind": "torch", "id": "Pendulum"}}, 1, 0, "cpu")
    with pytest.raises(UserError, match=r"but the task has no 'states'"):
        checkpoint.frozen_policy(of.partition("=")[2], env.get_env_info(), 1, "cpu", sees="states")


def test_sac_teaches_actions_only(tmp_path: Path, sac: str) -> None:
    of = f"train.params.config.teacher={sac}"
    assert command(PENDULUM, "train=DAgger", *SIZE, of, f"run_dir={tmp_path}/ok", "max_epochs=2")["epochs"] == 2
    refused(tmp_path, r"no Gaussian or categorical policy", of, "train.params.config.dagger_target=distribution")
