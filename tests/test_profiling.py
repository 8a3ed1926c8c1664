"""`profile=True` and what a GPU without memory is told."""

from __future__ import annotations

import json

import pytest
import torch

from core.errors import UserError
from core.profiling import EpochProfiler
from core.runner import out_of_memory
from tests.command import command

SMALL = ["task=TorchCartPole", "num_envs=4", "train.params.config.horizon_length=8", "train.params.config.minibatch_size_per_env=8"]


def test_a_profile_shows_every_phase_and_a_trace(tmp_path, capsys):
    command(*SMALL, "max_epochs=6", "profile=True", f"run_dir={tmp_path}/run")
    table = (tmp_path / "run" / "profile.md").read_text()
    for phase in ("environment", "update", "batch:", "policy and bookkeeping"):
        assert f"| {phase}" in table
    assert "Mean of 3 epochs" in table
    assert table.count("| `") == 20  # the operations that took longest
    events = json.loads((tmp_path / "run" / "profile_trace.json").read_text())["traceEvents"]
    names = [event.get("name") for event in events if event.get("cat") in ("user_annotation", "cpu_op")]
    assert names.count("environment") == 3 * 8  # once a step
    assert "aten::_fused_adam_" in names
    assert "profile.md" in capsys.readouterr().out


def test_a_run_too_short_for_a_profile_says_so(tmp_path, capsys):
    command(*SMALL, "max_epochs=2", "profile=True", f"run_dir={tmp_path}/run")
    assert "nothing written" in capsys.readouterr().out
    assert not (tmp_path / "run" / "profile.md").exists()


def test_an_algorithm_without_epochs_cannot_be_profiled(tmp_path):
    with pytest.raises(UserError, match="profile=True needs"):
        EpochProfiler(object(), tmp_path)


def test_out_of_gpu_memory_names_the_settings():
    params = {"config": {"num_actors": 65536, "horizon_length": 64, "minibatch_size": 524288}}
    error = out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nmore"), params)
    assert isinstance(error, UserError)
    assert error.exit_status == 1  # a suite may try again: another run may have given its memory back by then
    assert "Tried to allocate 20.00 GiB." in str(error)
    assert "num_actors (65536), horizon_length (64), minibatch_size (524288)" in str(error)
    assert out_of_memory(RuntimeError("other"), params) is None
