"""Two real processes: they hold the same weights bit by bit, and what they learn is what one process with all rows learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from core.ranks import Ranks
from tests import rank_job
from tests.rank_job import CASES, EPOCHS
from tests.ranks import finish, start


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What both ranks found."""
    out: Path = tmp_path_factory.mktemp("ranks")
    for status, _, err in finish(start(*[["-m", "tests.rank_job", str(out)]] * 2)):
        assert status == 0, err
    return [torch.load(out / f"rank{rank}.pt", weights_only=False) for rank in (0, 1)]


@pytest.mark.parametrize("case", CASES)
def test_all_ranks_have_the_same_weights_bit_by_bit_after_every_epoch(case: str, job: list[dict[str, Any]]) -> None:
    ours, theirs = (rank[case]["history"] for rank in job)
    assert len(ours) == len(theirs) == EPOCHS
    for epoch, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        for name in a:
            assert torch.equal(a[name], b[name]), (epoch, name)
    assert not torch.equal(ours[0]["extra.weight"], ours[1]["extra.weight"])


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_learn_what_one_process_with_all_rows_learns(case: str, job: list[dict[str, Any]], tmp_path: Path) -> None:
    """Weights, normalizers, learning rate, losses, episodes and frames, after each of three epochs, to float tolerance."""
    alone = rank_job.make(case, Ranks(), tmp_path)
    summary = alone.train()
    both = job[0][case]
    for epoch in range(EPOCHS):
        for name, expected in alone.history[epoch].items():
            assert torch.allclose(both["history"][epoch][name].double(), expected.double(), rtol=1e-4, atol=2e-5), (epoch, name)
        for name, value in alone.told[epoch].items():
            if not name.startswith(("time/", "fps", "seconds")):
                assert both["told"][epoch][name] == pytest.approx(value, rel=1e-3, abs=1e-4), (epoch, name)
        assert both["told"][epoch]["frames"] == 16 * 8 * (epoch + 1)
    assert both["summary"]["return_mean"] == pytest.approx(summary["return_mean"], rel=1e-4)
    assert job[1][case]["summary"]["return_mean"] == both["summary"]["return_mean"]


def test_both_ways_of_taking_a_step_were_compared(job: list[dict[str, Any]]) -> None:
    assert job[0]["default"]["by_hand"]
    assert not job[0]["plain"]["by_hand"]


def test_the_learning_rate_moved_so_that_its_equality_says_something(job: list[dict[str, Any]]) -> None:
    rates = {told["info/last_lr"] for told in job[0]["default"]["told"]}
    assert len(rates) > 1


def test_every_rank_draws_its_own_noise(job: list[dict[str, Any]]) -> None:
    for case in CASES:
        assert job[0][case]["next"] != job[1][case]["next"]


def test_a_resumed_run_goes_on_bit_by_bit_on_every_rank(job: list[dict[str, Any]]) -> None:
    streams = []
    for rank in job:
        whole, parts, drawn = rank["resumed"]
        for name in whole:
            assert torch.equal(whole[name], parts[name]), name
        streams.append(drawn)
    assert streams[0] != streams[1]


def test_an_optimizer_stepped_beside_optimizer_step_is_told(job: list[dict[str, Any]]) -> None:
    for rank in job:
        assert "'extra.weight' differs between rank 0 and rank 1" in rank["own_step"]
        assert "self.optimizer_step" in rank["own_step"]


def test_sums_means_and_decisions(job: list[dict[str, Any]]) -> None:
    """By hand: rank 0 holds the row (1, 2), rank 1 the rows (3, 6) and (8, 4)."""
    for rank in job:
        found = rank["primitives"]
        assert found["sums"] == (3, 1.0)
        assert found["mean"].tolist() == [0.5, 4.0]
        mean, var, count = found["moments"]
        assert mean.tolist() == pytest.approx([4.0, 4.0])
        assert var.tolist() == pytest.approx([26 / 3, 8 / 3])
        assert count == 3
        mean, var, count = found["moments_of_none"]  # all three rows on rank 1
        assert mean.tolist() == pytest.approx([4.0, 4.0])
        assert var.tolist() == pytest.approx([26 / 3, 8 / 3])
        assert count == 3
        first, second, third = found["gradients"]
        assert first.tolist() == [1.5, 1.5]
        assert second.tolist() == [0.5, 0.5]  # rank 0 had none: zero
        assert third is None  # nobody had one: the optimizer goes on skipping it
        assert found["copied"].tolist() == torch.zeros(3, 2).tolist()
        assert found["decisions"] == (True, False, "b", "from 0")
        assert found["gathered"] == [{"rank": 0}, {"rank": 1}]


def test_one_rank_alone_is_the_identity() -> None:
    ranks = Ranks()
    x = torch.tensor([[1.0], [3.0]])
    assert ranks.mean(x) is x
    assert (ranks.sum(3), ranks.any(True), ranks.first(None), ranks.gather("a")) == (3, True, None, ["a"])
    mean, var, count = ranks.moments(x)
    assert (mean.item(), var.item(), count) == (2.0, 1.0, 2)
