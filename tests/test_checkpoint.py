"""Checkpoints: whole at any moment, never executed, fitting or refused, and continued bit by bit where that is promised."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from rl_games.algos_torch import players

from algos.extras import Extras
from core import checkpoint
from core.errors import UserError
from core.quiet import quiet
from core.run_dir import read_metrics
from tests.agents import our_agent, stock_agent, train_stock
from tests.command import SMALL, command
from tests.experts import teacher
from tests.toys import ToyVecEnv, toy_params

TIMES = {"seconds", "fps", "fps_step", "fps_play", "time/step", "time/play", "time/prepare", "time/update"}


# ---- going on ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case",
    {
        "continuous": ("task=TorchPendulum", "train=RPO"),
        "discrete": ("task=TorchCartPole", "train=PPO"),
        "lstm": ("task=TorchPendulum", "train=PPO", "++train.params.network.rnn={name: lstm, units: 8, layers: 1}"),
        "gtrxl": ("task=TorchCartPole", "train=PPO", "train.params.network.name=gtrxl", "++train.params.network.memory_length=8"),
        "rms_advantage": ("task=TorchCartPole", "train.params.config.normalize_rms_advantage=True"),
    }.items(),
    ids=lambda case: case[0],
)
def test_a_resumed_run_is_the_uninterrupted_one_bit_by_bit(case, tmp_path):
    task = [*case[1], *SMALL, f"runs_dir={tmp_path}", "train.params.config.save_best_after=1", "max_frames=100_000"]
    command(*task, "max_epochs=6", f"run_dir={tmp_path}/whole")
    command(*task, "max_epochs=3", f"run_dir={tmp_path}/parts")
    torch.rand(11)  # whatever happens between, the run goes on from its own random state
    command(f"resume={tmp_path}/parts", "max_epochs=6")
    a, b = (checkpoint.load(tmp_path / run / "nn" / "last.pth") for run in ("whole", "parts"))
    for name in a["model"]:
        assert torch.equal(a["model"][name], b["model"][name]), name
    assert _equal(a["optimizer"], b["optimizer"])
    assert _equal(a["gamesmith"]["rng"], b["gamesmith"]["rng"])
    lines = [read_metrics(tmp_path / run / "metrics.jsonl") for run in ("whole", "parts")]
    for whole, parts in zip(*lines, strict=True):
        assert {k: v for k, v in whole.items() if k not in TIMES} == {k: v for k, v in parts.items() if k not in TIMES}


def _equal(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_equal(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(_equal, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def test_environments_without_state_restart_and_the_rest_goes_on(tmp_path):
    batch = "train.params.config.minibatch_size_per_env=16"  # all rows: the task's tuned pair has more than SMALL's rollouts give
    task = ["task=CartPole", *SMALL, batch, f"run_dir={tmp_path}/run", "train.params.config.save_best_after=1"]
    command(*task, "max_epochs=8")
    before = checkpoint.load(tmp_path / "run" / "nn" / "last.pth")
    result = command(f"resume={tmp_path}/run", "max_epochs=9")
    after = checkpoint.load(tmp_path / "run" / "nn" / "last.pth")
    assert before["gamesmith"]["running"] is None
    assert (before["epoch"], after["epoch"]) == (8, 9)
    assert after["frame"] > before["frame"]
    steps = [s["optimizer"]["state"][0]["step"].item() for s in (before, after)]
    assert steps == [8 * 2, 9 * 2]  # one minibatch in each of two mini-epochs
    assert result["return_best"] >= before["last_mean_rewards"] > 0
    assert [line["epoch"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl")] == list(range(1, 10))
    sessions = json.loads((tmp_path / "run" / "run.json").read_text())["sessions"]
    assert [s["exit_reason"] for s in sessions] == ["max_epochs", "max_epochs"]


def test_resume_needs_the_same_number_of_environments(tmp_path):
    command("task=TorchPendulum", *SMALL, f"run_dir={tmp_path}/run", "max_epochs=1")
    with pytest.raises(UserError, match="made with 4 rows, this run has 8"):
        command(f"resume={tmp_path}/run", "max_epochs=2", "num_envs=8")


def test_a_refused_resume_leaves_the_run_as_it_was(tmp_path):
    run = tmp_path / "run"
    command("task=TorchPendulum", *SMALL, f"run_dir={run}", "max_epochs=1")
    files = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for change in ("train.params.network.mlp.units=[7]", "num_envs=8"):
        with pytest.raises(UserError, match="checkpoint"):
            command(f"resume={run}", "max_epochs=2", change)
    kept = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and "tfevents" not in path.name}
    assert kept == {path: content for path, content in files.items() if "tfevents" not in path.name}
    assert command(f"resume={run}", "max_epochs=2")["epochs"] == 2


def test_a_registered_part_of_another_size_is_told_and_sums_begin_anew(tmp_path):
    argv = ("task=CartPole", "train=RND", *SMALL, "max_epochs=1")
    command(*argv, f"run_dir={tmp_path}/run")
    with pytest.raises(UserError, match=r"does not fit this algorithm's settings: .*size mismatch"):
        command(f"resume={tmp_path}/run", "max_epochs=2", "train.params.config.rnd_features=8")
    last = f"checkpoint={tmp_path}/run/nn/last.pth"
    command(*argv, last, "num_envs=8", f"run_dir={tmp_path}/wide")  # its running sums of intrinsic rewards are one per environment


class Collection:
    """What an agent has collected; no module."""

    def __init__(self):
        self.rows = []

    def state_dict(self):
        return {"rows": self.rows}

    def load_state_dict(self, state):
        self.rows = state["rows"]


def test_a_new_run_from_a_checkpoint_takes_modules_and_not_what_was_collected():
    def extras():
        made = Extras(torch.device("cpu"))
        return made, made.add("net", torch.nn.Linear(2, 2)), made.add("data", Collection())

    before, net, data = extras()
    data.rows = [1, 2]
    for modules_only, rows in ((False, [1, 2]), (True, [])):
        after, new_net, new_data = extras()
        after.load_state_dict(before.state_dict(), modules_only=modules_only)
        assert torch.equal(new_net.weight, net.weight)
        assert new_data.rows == rows


def test_random_state_continues():
    state = checkpoint.rng_state()
    first = (torch.rand(3), np.random.rand(3), np.random.randn(1))
    checkpoint.set_rng_state(state)
    assert torch.equal(first[0], torch.rand(3))
    assert np.array_equal(first[1], np.random.rand(3))
    with checkpoint.kept_rng():
        torch.rand(5)
    assert np.array_equal(first[2], np.random.randn(1))


# ---- whole at any moment ----------------------------------------------------------------------------------------------------

WRITER = """
import sys, torch
from algos.extras import Extras
from core import checkpoint
n = 0
while True:
    n += 1
    checkpoint.save(sys.argv[1], {"model": {"x": torch.full((300_000,), float(n))}, "epoch": n})
    print(n, flush=True)
"""


def test_kill_9_while_writing_leaves_a_whole_file(tmp_path):
    path = tmp_path / "last.pth"
    root = Path(__file__).resolve().parents[1]
    rng = np.random.RandomState(0)
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], cwd=root, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        process.stdout.readline()  # the first one is there
        time.sleep(rng.uniform(0.0, 0.05))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        state = checkpoint.load(path)
        assert (state["model"]["x"] == state["epoch"]).all()


def test_a_save_that_fails_keeps_the_old_file(tmp_path):
    path = tmp_path / "last.pth"
    checkpoint.save(path, {"model": {}, "epoch": 1})
    with pytest.raises((pickle.PicklingError, AttributeError, TypeError)):
        checkpoint.save(path, {"model": {}, "epoch": (lambda: 0)})
    assert checkpoint.load(path)["epoch"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["last.pth"]
    with pytest.raises(UserError, match="cannot write checkpoint"):
        checkpoint.save(tmp_path / "no" / "last.pth", {})


# ---- refused ------------------------------------------------------------------------------------------------------------------


class Bomb:
    """Unpickling this makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_a_malicious_pickle_is_never_executed(tmp_path):
    torch.save({"model": {}, "epoch": Bomb(tmp_path / "boom")}, tmp_path / "bad.pth")
    with pytest.raises(UserError, match="holds more than tensors"):
        checkpoint.load(tmp_path / "bad.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Bomb(tmp_path / "boom")))
    with pytest.raises(UserError, match="not a checkpoint"):
        checkpoint.load(tmp_path / "plain.pth")
    assert not (tmp_path / "boom").exists()


@pytest.mark.parametrize("part", [0.0, 0.3, 0.9])
def test_a_truncated_file_is_told(tmp_path, part):
    whole = checkpoint.save(tmp_path / "a.pth", {"model": {"x": torch.zeros(1000)}}).read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: int(len(whole) * part)])
    with pytest.raises(UserError, match=r"cut\.pth"):
        checkpoint.load(tmp_path / "cut.pth")


def test_a_damaged_file_is_told(tmp_path):
    data = bytearray(checkpoint.save(tmp_path / "a.pth", {"model": {"x": torch.zeros(1000)}}).read_bytes())
    middle = data.find(b"data.pkl") + 70
    data[middle : middle + 40] = b"\xff" * 40
    (tmp_path / "bad.pth").write_bytes(bytes(data))
    with pytest.raises(UserError, match=r"bad\.pth"):
        checkpoint.load(tmp_path / "bad.pth")


def test_what_is_no_checkpoint_is_told(tmp_path):
    (tmp_path / "a.txt").write_text("hello")
    with pytest.raises(UserError, match="is not a checkpoint"):
        checkpoint.load(tmp_path / "a.txt")
    torch.save({"weights": 1}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="has no 'model'"):
        checkpoint.load(tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"does not exist\. Did you mean '.*other\.pth'"):
        checkpoint.load(tmp_path / "othr.pth")


def test_a_checkpoint_of_another_algorithm_or_network_is_refused(tmp_path):
    agent = our_agent(toy_params(), ToyVecEnv(), tmp_path / "a", "rpo")
    agent.train()
    agent.save(str(tmp_path / "rpo"))
    other = our_agent(toy_params(), ToyVecEnv(), tmp_path / "b", "ppo")
    with pytest.raises(UserError, match="made by algorithm 'rpo', not by 'ppo'"):
        other.restore(str(tmp_path / "rpo.pth"))
    params = toy_params()
    params["network"]["mlp"]["units"] = [16, 9]
    wider = our_agent(params, ToyVecEnv(), tmp_path / "c", "rpo")
    with pytest.raises(UserError, match=r"'a2c_network.actor_mlp.2.weight' is \(8, 16\) there and \(9, 16\) here"):
        wider.restore(str(tmp_path / "rpo.pth"))


# ---- both ways with stock rl_games ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", ["continuous", "discrete"])
def test_stock_checkpoints_load(tmp_path, action):
    params = toy_params(action, save_best_after=1)
    theirs = train_stock(stock_agent(params, ToyVecEnv(action=action), tmp_path))
    files = sorted((tmp_path / "stock" / "nn").glob("*.pth"))
    assert files
    ours = our_agent(params, ToyVecEnv(action=action), tmp_path / "ours")
    ours.restore(str(next(f for f in files if f.name.startswith("last_"))))
    assert all(torch.equal(a, b) for a, b in zip(ours.model.state_dict().values(), theirs.model.state_dict().values(), strict=True))
    assert (ours.epoch_num, ours.frame) == (3, theirs.frame)
    assert ours.last_lr == theirs.optimizer.param_groups[0]["lr"]
    ours.max_epochs = 4
    assert ours.train()["epochs"] == 4


@pytest.mark.parametrize("action", ["continuous", "discrete"])
def test_the_stock_player_plays_our_checkpoint(tmp_path, action):
    params = toy_params(action)
    env = ToyVecEnv(action=action)
    ours = our_agent(params, env, tmp_path)
    ours.train()
    ours.save(str(tmp_path / "ours"))
    params["config"].update(env_info=env.get_env_info(), vec_env=env, player={"games_num": 4, "deterministic": True})
    player_class = players.PpoPlayerContinuous if action == "continuous" else players.PpoPlayerDiscrete
    with quiet():
        player = player_class(params)
        player.restore(str(tmp_path / "ours.pth"))
    player.has_batch_dimension = True
    obs = torch.randn(8, 3)
    expected = ours.policy.env_actions(ours.policy.best_actions(ours.policy.act(obs)))
    assert torch.equal(player.get_action(obs, is_deterministic=True), expected)


def test_a_frozen_policy_is_the_one_that_was_trained(tmp_path):
    command("task=TorchPendulum", "train=RPO", *SMALL, f"run_dir={tmp_path}/run", "max_epochs=2")
    state = checkpoint.load(tmp_path / "run" / "nn" / "last.pth")
    from core.build import make_env

    env = make_env(state["gamesmith"]["config"], 3, 0, "cpu")
    frozen = checkpoint.frozen_policy(tmp_path / "run" / "nn" / "last.pth", env.get_env_info(), 3, "cpu")
    assert not frozen.model.training
    assert not any(p.requires_grad for p in frozen.model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(frozen.model.state_dict().values(), state["model"].values(), strict=True))
    assert frozen.act(torch.as_tensor(env.reset()))["actions"].shape == (3, 1)
    params = toy_params(num_envs=3, minibatch_size=16)
    agent = our_agent(params, env, tmp_path / "student")
    teacher = agent.load_frozen(str(tmp_path / "run" / "nn" / "last.pth"))
    obs = agent.read_obs(env.reset())["obs"]
    assert torch.equal(teacher.best_actions(teacher.act(obs)), frozen.best_actions(frozen.act(obs)))


@pytest.mark.parametrize(("sees", "part"), [("either", "states"), ("states", "states"), ("either", "obs")])
def test_a_frozen_policy_is_shown_what_it_was_made_for(sees, part, tmp_path):
    from core.build import make_env

    path = teacher("task=TorchPendulum")
    hidden = [2] if part == "states" else None
    env = make_env({"task": {"name": "t", "kind": "torch", "id": "Pendulum", "hidden_obs": hidden}}, 3, 0, "cpu")
    frozen = checkpoint.frozen_policy(path, env.get_env_info(), 3, "cpu", sees)
    assert frozen.sees == part
    obs = env.reset()
    assert frozen.act(obs["states"] if hidden else obs)["mus"].shape == (3, 1)


def test_a_frozen_policy_of_other_spaces_is_refused():
    from core.build import make_env

    path = teacher("task=TorchPendulum")
    hidden = make_env({"task": {"name": "t", "kind": "torch", "id": "Pendulum", "hidden_obs": [2]}}, 3, 0, "cpu")
    with pytest.raises(UserError, match=r"made for observations Box.*\(3,\).*, but the task has 'obs' Box.*\(2,\)"):
        checkpoint.frozen_policy(path, hidden.get_env_info(), 3, "cpu")
    cartpole = make_env({"task": {"name": "t", "kind": "torch", "id": "CartPole"}}, 3, 0, "cpu")
    with pytest.raises(UserError, match=r"acts in Box.*, but the task's actions are Discrete\(2\)"):
        checkpoint.frozen_policy(path, cartpole.get_env_info(), 3, "cpu", "either")
