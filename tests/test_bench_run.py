"""The benchmark for real, in small: a round of workload B, a torch task, and an algorithm with an extra network."""

from __future__ import annotations

import dataclasses
import json

import pytest

from experiments.bench import measure
from experiments.bench.__main__ import main
from experiments.bench.sides import ROOT, Side, members
from experiments.bench.workloads import WORKLOADS, torch_cartpole


def plausible(figures, epochs, rows):
    """Nothing here depends on how fast the machine is: it may be busy."""
    assert figures["epochs"] == epochs
    seconds_per_epoch = sum(figures["seconds"].values())
    assert figures["fps"] * seconds_per_epoch == pytest.approx(rows, rel=0.05), "the parts of an epoch do not add up to its wall-clock"
    assert 0 < figures["start"] < figures["first_epoch"]
    assert 100 < figures["peak_mib"] < 4000
    seconds = figures["seconds"]
    assert all(seconds[part] > 0 for part in ("environment", "policy", "update"))
    return True


def test_a_round_of_b_with_a_peer(tmp_path, capsys):
    out = tmp_path / "bench"
    main(["--workloads", "B", "--rounds", "1", "--epochs", "3", "--peers", "cleanrl", "--out", str(out)])
    result = json.loads((out / "bench.json").read_text())
    (figures,) = result["workloads"]["B"]["rounds"]
    assert list(figures) == ["stock", "ours", "cleanrl", "raw"]
    assert all(plausible(figures[side], 3, 64 * 32) for side in ("stock", "ours", "cleanrl"))
    assert figures["raw"]["fps"] > figures["ours"]["fps"]
    assert result["workloads"]["B"]["summary"]["stock"]["ratio"]["median"] == 1.0
    assert (out / "bench.png").stat().st_size > 10_000
    assert "| B: CartPole, 64 envs | ours |" in capsys.readouterr().out
    # both trained what they were asked to: 10 warm-up epochs and 3 measured ones of 64 x 32 rows
    (run,) = [json.loads(line) for line in (out / "logs/B_0/ours/run/metrics.jsonl").read_text().splitlines()][-1:]
    assert run["epoch"] == 13
    assert "epoch: 13/13" in (out / "logs/B_0/stock/log.txt").read_text()


@pytest.mark.parametrize("side", [Side("stock"), Side("ours", ROOT)], ids=lambda s: s.name)
def test_the_rows_for_a_gpu_run_their_logic_on_the_cpu(side, tmp_path):
    plausible(measure.run(side, torch_cartpole(32, 2, 1, "cpu"), 1, tmp_path / "run"), 2, 32 * 32)


def test_the_algorithm_with_an_extra_network_trains(tmp_path):
    config = {**WORKLOADS["hooks"].config, "num_actors": 4, "horizon_length": 16, "minibatch_size": 32}
    small = dataclasses.replace(WORKLOADS["hooks"], params={**WORKLOADS["hooks"].params, "config": config}, warmup=1)
    step = members(small, [Side("ours", ROOT)])[-1]
    assert step.name == "ours/rnd_step"
    folder = tmp_path / "run"
    plausible(measure.run(step, small, 1, folder, epochs=2), 2, 4 * 16)
    last = json.loads((folder / "run/metrics.jsonl").read_text().splitlines()[-1])
    assert last["losses/predictor"] > 0
