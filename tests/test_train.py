"""train.py as a user runs it: whole runs, signals, kill -9, and every mistake told with exit status 2 and no traceback."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from algos import new
from core import checkpoint
from core.errors import UserError
from core.run_dir import read_metrics
from tests.command import SMALL, command, resolve

ROOT = Path(__file__).resolve().parents[1]
TORCH = ("task=TorchPendulum", *SMALL)


def start(*argv: str, module: str = "train.py") -> subprocess.Popen[str]:
    run = [module] if module.endswith(".py") else ["-m", module]
    return subprocess.Popen(
        [sys.executable, *run, *argv],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "COLUMNS": "100"},
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


# ---- whole runs -------------------------------------------------------------------------------------------------------------


def test_a_run_from_the_shell_and_its_files(tmp_path):
    status, out, err = finish(start(*TORCH, "train=RPO", "max_frames=1_000", f"run_dir={tmp_path}/run", "seed=0"))
    assert (status, err) == (0, "")
    assert re.search(r"rpo \(algos\.rpo\.RPO\)", out)
    assert "4 envs x 16 steps = 64 rows = 1 minibatches x 64, 2 mini-epochs" in out
    said = re.search(r"^python train\.py (test=True checkpoint=.*)$", out, re.MULTILINE)
    assert said
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert {"task", "algo", "seed", "frames", "epochs", "seconds", "fps", "return_mean", "return_best", "exit_reason", "checkpoint"} <= set(
        result
    )
    assert (result["task"], result["algo"], result["seed"]) == ("TorchPendulum", "rpo", 0)
    assert (result["frames"], result["epochs"], result["exit_reason"]) == (1024, 16, "max_frames")
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [line["frames"] for line in lines] == [64 * n for n in range(1, 17)]
    assert list((tmp_path / "run" / "summaries").glob("events.out.*"))
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    assert about["exit_reason"] == "max_frames"
    status, out, err = finish(start(*said.group(1).split(), "player.games_num=2"))
    assert (status, err) == (0, "")
    assert "2 episodes, deterministic actions" in out


def test_the_saved_config_repeats_the_run(tmp_path):
    command(*TORCH, "train=RPO", "max_epochs=2", f"run_dir={tmp_path}/a", "seed=3")
    status, _, err = finish(start("--config-path", f"{tmp_path}/a", "--config-name", "config", f"run_dir={tmp_path}/b"))
    assert (status, err) == (0, "")
    a, b = (checkpoint.load(tmp_path / run / "nn" / "last.pth")["model"] for run in "ab")
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_rl_games_flags_train_and_play_a_stock_yaml(tmp_path):
    import rl_games

    stock = Path(next(iter(rl_games.__path__))) / "configs" / "mujoco" / "halfcheetah_envpool.yaml"
    small = ["num_envs=4", "train.params.torch_threads=1", "train.params.config.minibatch_size=64", "train.params.config.horizon_length=32"]
    status, out, err = finish(start("--file", str(stock), "--train", *small, "max_epochs=2", f"run_dir={tmp_path}/run"))
    assert (status, err) == (0, "")
    assert "a2c_continuous" in out
    status, out, err = finish(start("--file", str(stock), "--play", "--checkpoint", f"{tmp_path}/run/nn/last.pth", "player.games_num=2"))
    assert (status, err) == (0, "")
    assert "2 episodes" in out


def test_evaluation_in_training_leaves_the_run_as_it_is(tmp_path):
    command(*TORCH, "max_epochs=4", f"run_dir={tmp_path}/a")
    command(*TORCH, "max_epochs=4", f"run_dir={tmp_path}/b", "train.params.config.eval_every=2", "train.params.config.eval_games=2")
    a, b = (checkpoint.load(tmp_path / run / "nn" / "last.pth")["model"] for run in "ab")
    assert all(torch.equal(a[name], b[name]) for name in a)
    lines = read_metrics(tmp_path / "b" / "metrics.jsonl")
    assert ["eval/return_mean" in line for line in lines] == [False, True, False, True]


def test_evaluation_in_training_counts_games_as_playing_does(tmp_path):
    lives = "+train.params.config.player={n_game_life: 3}"
    command(*TORCH, lives, "max_epochs=1", f"run_dir={tmp_path}/a", "train.params.config.eval_every=1", "train.params.config.eval_games=2")
    (line,) = read_metrics(tmp_path / "a" / "metrics.jsonl")
    assert line["eval/length_mean"] == 3 * 200  # Pendulum's episodes all last 200 steps


def test_a_checkpoint_starts_a_new_run(tmp_path):
    command(*TORCH, "max_epochs=2", f"run_dir={tmp_path}/a")
    command(*TORCH, "max_epochs=1", f"run_dir={tmp_path}/b", f"checkpoint={tmp_path}/a/nn/last.pth", "train.params.config.learning_rate=1e-12",
            "train.params.config.lr_schedule=constant")  # fmt: skip
    a, b = (checkpoint.load(tmp_path / run / "nn" / "last.pth") for run in "ab")
    assert b["epoch"] == 1
    assert torch.allclose(a["model"]["a2c_network.mu.weight"], b["model"]["a2c_network.mu.weight"], atol=1e-6)


def test_a_run_in_legs_is_the_run_in_one_go(tmp_path):
    """`pause_at` ends an invocation and touches nothing else: the linear schedule runs over max_frames."""
    budget = (*TORCH, "train=PPO", "train.params.config.lr_schedule=linear", "max_frames=512")
    command(*budget, f"run_dir={tmp_path}/whole")
    paused = command(*budget, f"run_dir={tmp_path}/legs", "pause_at=200")
    assert (paused["exit_reason"], paused["frames"]) == ("pause_at", 256)
    assert "pause_at" in resolve(f"resume={tmp_path}/legs")
    assert resolve(f"resume={tmp_path}/legs")["pause_at"] is None
    assert command(f"resume={tmp_path}/legs")["exit_reason"] == "max_frames"
    whole, legs = (read_metrics(tmp_path / run / "metrics.jsonl") for run in ("whole", "legs"))
    rates = [line["info/last_lr"] for line in whole]
    assert rates == [line["info/last_lr"] for line in legs]
    assert rates[-1] < rates[0] / 8
    models = [checkpoint.load(tmp_path / run / "nn" / "last.pth")["model"] for run in ("whole", "legs")]
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


@pytest.mark.parametrize("schedule", ["constant", "adaptive", "linear"])
def test_a_rate_given_with_resume_counts_from_there(schedule, tmp_path):
    budget = (*TORCH, "train=PPO", f"train.params.config.lr_schedule={schedule}", "max_frames=640")
    command(*budget, "train.params.config.learning_rate=1e-3", f"run_dir={tmp_path}/run", "pause_at=256")
    run = f"{tmp_path}/run"
    ended = checkpoint.load(f"{run}/nn/last.pth")["gamesmith"]["schedule"]["last_lr"]
    changed = ("train.params.config.learning_rate=1e-5", "train.params.config.entropy_coef=0.125")
    still = ("train.params.config.kl_threshold=1e9",)  # no KL divergence gets there: the rate grows by 1.5 at each of the two minibatches
    command(f"resume={run}", *changed, *(still if schedule == "adaptive" else ()), "pause_at=320")
    state = checkpoint.load(f"{run}/nn/last.pth")["gamesmith"]["schedule"]
    rate = {"constant": 1e-5, "adaptive": ended / 100 * 1.5**2, "linear": 1e-5 * (640 - 320) / 640}[schedule]
    assert state["last_lr"] == pytest.approx(rate, rel=0.1)  # linear: it ends at 1e-6
    assert state["entropy_coef"] == 0.125


def test_an_algorithm_outside_the_repository(tmp_path):
    new.write("MyPaper", tmp_path)
    outside = ["--config-dir", f"{tmp_path}/cfg", f"modules=[{tmp_path}/my_paper.py]", "train=MyPaper"]
    status, out, err = finish(start(*outside, *TORCH, "max_epochs=2", f"run_dir={tmp_path}/run", "train.params.config.my_paper_coef=2"))
    assert (status, err) == (0, "")
    assert "my_paper" in out
    status, out, err = finish(start("test=True", f"checkpoint={tmp_path}/run/nn/last.pth", "player.games_num=1"))
    assert (status, err) == (0, "")


# ---- stopped ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "reason"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated")])
def test_a_signal_saves_and_exits_cleanly(tmp_path, number, reason):
    process = start(*TORCH, "max_frames=100_000_000", f"run_dir={tmp_path}/run")
    wait_for(tmp_path / "run" / "metrics.jsonl")
    process.send_signal(number)
    status, out, err = finish(process)
    assert (status, err) == (0, "")
    assert f"{reason}: finishing this epoch, then saving" in out
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["exit_reason"] == reason
    state = checkpoint.load(tmp_path / "run" / "nn" / "last.pth")
    assert state["epoch"] == result["epochs"] == read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]["epoch"]


def test_kill_9_leaves_a_run_that_resumes(tmp_path):
    process = start(*TORCH, "max_frames=100_000_000", f"run_dir={tmp_path}/run", "save_interval=0.001")
    wait_for(tmp_path / "run" / "metrics.jsonl")
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    finish(process)
    saved = checkpoint.load(tmp_path / "run" / "nn" / "last.pth")["epoch"]
    result = command(f"resume={tmp_path}/run", f"max_epochs={saved + 2}")
    assert result["epochs"] == saved + 2
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [line["epoch"] for line in lines] == list(range(1, saved + 3))
    sessions = json.loads((tmp_path / "run" / "run.json").read_text())["sessions"]
    assert [s["exit_reason"] for s in sessions] == ["killed", "max_epochs"]


def wait_for(path: Path) -> None:
    for _ in range(600):
        if path.exists() and path.stat().st_size:
            return
        time.sleep(0.1)
    raise AssertionError(f"{path} did not appear")


# ---- mistakes -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (("task=Pendulm",), "unknown task 'Pendulm' at task=. Did you mean 'Pendulum'?"),
        (("task=TorchPendulum", "train.params.config.learning_rat=1"), "train.params.config.learning_rat"),
        (("test=True", "checkpoint=runs/none/nn/best.pth"), "does not exist"),
    ],
)
def test_mistakes_end_with_status_2_and_no_traceback(argv, told):
    status, _, err = finish(start(*argv))
    assert status == 2
    assert err.startswith("error: ")
    assert told in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (("train=PPOO", "task=CartPole"), "unknown algorithm config 'PPOO' at train=. Did you mean 'PPO'"),
        (("train.params.algo.name=rpoo",), r"unknown algorithm 'rpoo' at train.params.algo.name. Did you mean 'rpo'"),
        (("train.params.network.name=actor_critik",), "Did you mean 'actor_critic'"),
        (("train.params.model.name=continuous",), "Did you mean 'continuous_a2c"),
        (("task=TorchCartPole", "train.params.model.name=continuous_a2c"), "for continuous actions, but the task's actions are discrete"),
        (("train.params.config.use_action_masks=true",), "this task has no action masks"),
        (("train.params.config.torch_compile=foo",), "'reduce-overhead'"),
        (("max_frames=0",), r"max_frames is 0, but valid are -1 \(no limit\) and 1 or more"),
        (("train=TRPO", "train.params.config.max_kl=nan"), "max_kl is nan, but should be a finite number"),
        (("train=RPO", "train.params.config.rpo_alpha=-1"), "rpo_alpha is -1, but should be greater than or equal to 0"),
        (("task=envpool", "task.id=HalfCheeta-v4"), "HalfCheetah-v4"),
        (("task=gymnasium", "task.id=CartPole-v7"), "CartPole-v1"),
        (("task.id=Pendulun",), "Did you mean 'Pendulum'"),
        (("train.params.config.minibatch_size=100",), r"horizon_length 16 x num_actors 4 = 64 rows .*Working values"),
        (("task=TorchCartPole", "train=RPO"), "'rpo' needs continuous actions, but the task's are discrete"),
        (("device=cuda:9",), "device is 'cuda:9', but this machine has"),
        (("seeed=1",), "seeed.*Did you mean 'seed'|seeed.*seed"),
        (("runs_dir=/proc/nowhere",), "cannot write"),
        (("player.games_nun=3",), "player.games_num"),
        (("observers=[heigth]",), "unknown observer 'heigth'"),
        (("num_envs=0",), "num_envs"),
        (("test=True",), "test=True needs a checkpoint"),
        (("train.params.config.horizon_length=abc",), "train.params.config.horizon_length"),
        (("train.params.config.bootstrap_from=terminal",), "terminal_obs"),
    ],
)
def test_mistakes_are_told_before_training_and_leave_nothing(argv, told, tmp_path):
    given = {a.split("=")[0] for a in argv}
    base = [a for a in (*TORCH, f"runs_dir={tmp_path}/runs") if a.split("=")[0] not in given]
    with pytest.raises(UserError, match=told):
        command(*base, *argv, "max_epochs=1")
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").iterdir())


def test_a_recurrent_policy_needs_whole_sequences(tmp_path):
    with pytest.raises(UserError, match="seq_length"):
        command(
            *TORCH,
            "++train.params.network.rnn={name: lstm, units: 8, layers: 1}",
            "train.params.config.seq_length=5",
            f"runs_dir={tmp_path}",
        )


def test_a_run_that_fails_says_so(tmp_path):
    (tmp_path / "faulty.py").write_text(
        "from algos.agent import Agent\nfrom algos.options import AgentOptions\nfrom core.registry import register_algo\n"
        "@register_algo('faulty', config=AgentOptions)\nclass Faulty(Agent):\n"
        "    def extra_update(self, batch):\n        raise ZeroDivisionError('on purpose')\n"
    )
    argv = (*TORCH, f"modules=[{tmp_path}/faulty.py]", "train.params.algo.name=faulty", f"run_dir={tmp_path}/run")
    status, _, err = finish(start(*argv))
    assert status == 1
    assert "on purpose" in err
    assert json.loads((tmp_path / "run" / "result.json").read_text())["exit_reason"] == "failed"
    assert "on purpose" in json.loads((tmp_path / "run" / "run.json").read_text())["exit_reason"]


def test_resume_of_what_is_no_run(tmp_path):
    with pytest.raises(UserError, match=r"no run directory|not a run directory|is no run"):
        resolve(f"resume={tmp_path}")


# ---- scaffold ---------------------------------------------------------------------------------------------------------------------


def test_scaffold_names():
    assert [new.snake(n) for n in ("MyAlgo", "TD3", "AMPPlus", "PPO2Clip")] == ["my_algo", "td3", "amp_plus", "ppo2_clip"]


@pytest.mark.parametrize("name", ["myalgo", "My-Algo", "1Algo", "", "RPO", "Agent", "Losses", "Class"])
def test_scaffold_refuses_bad_and_taken_names(name, tmp_path):
    with pytest.raises(UserError, match=r"cannot name an algorithm|is taken"):
        new.write(name, tmp_path)
    assert not list(tmp_path.iterdir())


def test_scaffold_does_not_overwrite(tmp_path):
    new.write("MyAlgo", tmp_path)
    with pytest.raises(UserError, match="exists already"):
        new.write("MyAlgo", tmp_path)


def test_scaffold_writes_from_the_template(tmp_path):
    code, config = new.write("SmoothPPO", tmp_path)
    text = code.read_text()
    assert "class SmoothPPO(Agent)" in text
    assert '@register_algo("smooth_ppo", config=SmoothPPOOptions)' in text
    assert "smooth_ppo_coef" in text
    assert "smooth_ppo_coef: 1.0" in config.read_text()
    assert "emplate" not in config.read_text()
