"""`torchrun train.py ...` as a user runs it: one run directory, decisions taken together, and an end for all when one ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from core import checkpoint
from core.config import resolve_device
from core.errors import UserError
from core.run_dir import read_metrics
from tests.command import command
from tests.rank_fates import FATES, RATE, SMALL
from tests.ranks import ROOT, finish, free_ports, start


@pytest.fixture(scope="module")
def fates(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """The directory of the runs, and how each of `FATES` ended on either rank: its result, or its error as text."""
    out = tmp_path_factory.mktemp("fates")
    ports = [str(port) for port in free_ports(len(FATES))]
    first, second = finish(start(*[["-m", "tests.rank_fates", str(out), *ports]] * 2))
    assert first[0] == 0, first[2]
    assert second[0] == -signal.SIGKILL  # its last fate
    return out, [torch.load(out / f"rank{rank}.pt", weights_only=False) for rank in (0, 1)]


def result(out: Path, fate: str) -> dict[str, Any]:
    return json.loads((out / fate / "result.json").read_text())


FELL = "ValueError: the simulator fell over"
NAN = "'obs' is not finite in epoch 3, step 0, environment 0"


@pytest.mark.parametrize(
    ("fate", "one", "other"),
    [
        ("raise", 1, f"RankLost: rank 0 stops: rank 1 failed: {FELL}"),
        ("raise_on_first", 0, f"RankLost: rank 1 stops: rank 0 failed: {FELL}"),
        ("nan", 1, f"RankLost: rank 0 stops: rank 1 failed: {NAN}"),
        ("kill", None, "RankLost: rank 0 stops: rank 1 ended without a word (killed"),
    ],
)
def test_a_rank_that_ends_ends_the_others_with_its_reason(fate: str, one: int | None, other: str, fates: Any) -> None:
    out, told = fates
    if one is not None:
        assert (NAN if fate == "nan" else FELL) in told[one][fate]
        assert "RankLost" not in told[one][fate]
    assert told[1 - one if one is not None else 0][fate].startswith(other)
    assert told[0][f"{fate} seconds"] < 30
    assert result(out, fate)["exit_reason"] == "failed"
    assert result(out, fate)["error"] in told[0][fate]
    assert json.loads((out / fate / "run.json").read_text())["exit_reason"].startswith("failed: ")
    assert checkpoint.load(out / fate / "nn" / "last.pth")["epoch"] == 1


@pytest.mark.parametrize(("fate", "reason", "epochs"), [("term", "terminated", 3), ("stop", "should_stop", 2)])
def test_what_one_rank_decides_all_do(fate: str, reason: str, epochs: int, fates: Any) -> None:
    out, told = fates
    assert (result(out, fate)["exit_reason"], result(out, fate)["epochs"]) == (reason, epochs)
    assert checkpoint.load(out / fate / "nn" / "last.pth")["epoch"] == epochs
    assert [told[rank][fate]["exit_reason"] for rank in (0, 1)] == [reason] * 2


def test_ranks_that_disagree_are_told_key_and_values_before_there_is_a_run(fates: Any) -> None:
    out, told = fates
    for rank in (0, 1):
        assert told[rank]["disagree"].startswith("UserError: the ranks disagree on the config")
        assert f"{RATE} is 0.001 on rank 0 and 0.002 on rank 1" in told[rank]["disagree"]
        assert "train.params.config.adv_rms_momentum is not there on rank 0 and 0.9 on rank 1" in told[rank]["disagree"]
    assert not (out / "disagree").exists()


def test_an_algorithm_for_one_process_is_refused(fates: Any) -> None:
    for told in fates[1]:
        assert "algorithm 'sac' trains in one process, and this is one of 2 (WORLD_SIZE)" in told["sac"]


def torchrun(*argv: str) -> str:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "train.py", *argv]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_torchrun_leaves_one_run_directory(tmp_path: Path) -> None:
    out = torchrun(*SMALL, "seed=3", "max_frames=500", f"runs_dir={tmp_path}", "train.params.config.multi_gpu=true",
                   "train.params.config.eval_every=2", "train.params.config.eval_games=2")  # fmt: skip
    (folder,) = tmp_path.iterdir()
    assert out.count("evaluate it:") == 1
    assert "2, data-parallel: 8 environments" in out
    assert len(list((folder / "summaries").iterdir())) == 1
    lines = read_metrics(folder / "metrics.jsonl")
    assert [line["frames"] for line in lines] == [128, 256, 384, 512]  # 2 ranks x 4 environments x 16 steps
    assert ["eval/return_mean" in line for line in lines] == [False, True, False, True]
    saved = json.loads((folder / "result.json").read_text())
    assert (saved["ranks"], saved["frames"], saved["exit_reason"]) == (2, 512, "max_frames")
    own = checkpoint.load(folder / "nn" / "last.pth")["gamesmith"]["ranks"]
    assert len(own) == 2
    assert not torch.equal(own[0]["env_state"]["state"], own[1]["env_state"]["state"])  # no environment twice


@pytest.mark.long
def test_torchrun_resumes_in_the_same_directory_on_as_many_ranks_or_one(tmp_path: Path) -> None:
    torchrun(*SMALL, "seed=3", "max_frames=256", f"run_dir={tmp_path}/run")
    torchrun(f"resume={tmp_path}/run", "max_frames=500")
    torchrun(*SMALL, "seed=3", "max_frames=500", f"run_dir={tmp_path}/whole")
    parts, whole = (checkpoint.load(tmp_path / run / "nn" / "last.pth") for run in ("run", "whole"))
    assert all(torch.equal(parts["model"][name], whole["model"][name]) for name in whole["model"])
    assert command(f"resume={tmp_path}/run", "max_frames=640")["frames"] == 640
    torchrun(f"resume={tmp_path}/run", "max_frames=760")
    assert [line["frames"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl")] == [128, 256, 384, 512, 576, 640, 768]


@pytest.fixture
def ranked(monkeypatch: pytest.MonkeyPatch) -> Any:
    """resolve_device as rank 1 of `local` on a machine with `gpus`."""

    def resolve(asked: str, local: int, gpus: int, in_train: str | None = None) -> str:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        for name, value in {"WORLD_SIZE": 8, "LOCAL_WORLD_SIZE": local, "LOCAL_RANK": 1 if local > 1 else 0, "RANK": 1}.items():
            monkeypatch.setenv(name, str(value))
        return resolve_device(asked, in_train)

    return resolve


def test_each_rank_takes_its_own_gpu(ranked: Any) -> None:
    assert ranked("cuda", 2, 4) == "cuda:1"
    assert ranked("auto", 2, 2, "cuda:0") == "cuda:1"  # as rl_games' YAMLs have it
    assert ranked("auto", 2, 0) == "cpu"
    assert ranked("auto", 2, 2, "cpu") == "cpu"
    assert ranked("cpu", 2, 2) == "cpu"
    assert ranked("cuda:3", 1, 4) == "cuda:3"  # one rank per machine may choose


@pytest.mark.parametrize(
    ("asked", "local", "gpus", "told"),
    [
        ("cuda", 4, 2, "4 ranks run on this machine, which has cuda:0, cuda:1: start at most 2 here (--nproc_per_node=2)"),
        ("auto", 4, 1, "4 ranks run on this machine, which has cuda:0: start at most 1 here"),
        ("cuda", 2, 0, "which has no CUDA device: use device=cpu"),
        ("cuda:1", 2, 2, "device is 'cuda:1', but 2 ranks run on this machine"),
        ("cuda:1", 1, 1, "device is 'cuda:1', but this machine has cpu, cuda:0"),
    ],
)
def test_devices_that_are_not_there(ranked: Any, asked: str, local: int, gpus: int, told: str) -> None:
    with pytest.raises(UserError) as error:
        ranked(asked, local, gpus)
    assert told in str(error.value)


def test_torchruns_variables_must_be_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    from core.ranks import joined

    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(UserError, match="environment variable WORLD_SIZE is 'two', not a number from 1 up"), joined():
        pass


@pytest.mark.long
def test_the_learning_curve_is_that_of_one_process_with_all_environments(tmp_path: Path) -> None:
    """CartPole, three seeds: 2 ranks x 16 environments against 32. The exact comparison is tests/test_ranks.py; here noise and
    minibatches differ, so curves agree as far as seeds do."""
    base = ["train.py", "task=TorchCartPole", "train=PPO", "max_frames=120000", "train.params.torch_threads=1", "progress=off"]
    minibatch = "train.params.config.minibatch_size"

    def curve(name: str, seed: int, ranks: int) -> np.ndarray:
        """(4,) mean return in each quarter of the run."""
        run = [*base, f"num_envs={32 // ranks}", f"{minibatch}={512 // ranks}", f"seed={seed}", f"run_dir={tmp_path}/{name}{seed}"]
        for status, _, err in finish(start(*[run] * ranks)):
            assert status == 0, err
        lines = read_metrics(tmp_path / f"{name}{seed}" / "metrics.jsonl")
        assert lines[-1]["frames"] >= 120000
        return np.array([np.mean([line["return_mean"] for line in part]) for part in np.array_split(np.array(lines), 4)])

    two, one = (np.stack([curve(name, seed, ranks) for seed in (0, 1, 2)]) for name, ranks in (("two", 2), ("one", 1)))
    print(two.round(1), one.round(1), sep="\n")
    assert (two[:, -1] > 150).all()
    spread = np.sqrt(two.var(0, ddof=1) / 3 + one.var(0, ddof=1) / 3)
    t = 2.776  # 95 %, 4 degrees of freedom
    assert (np.abs(two.mean(0) - one.mean(0)) <= t * spread + 0.05 * one.mean(0)).all()
