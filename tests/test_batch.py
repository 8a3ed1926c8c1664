"""Batches: order of rows, minibatches, sequences, writing back."""

from __future__ import annotations

import pytest
import torch

from algos.batch import Batch, flat


def test_flat_puts_environments_one_after_the_other():
    field = torch.arange(6).view(3, 2)  # (T=3, N=2): step t of environment n is 2 t + n
    assert flat(field).tolist() == [0, 2, 4, 1, 3, 5]


def rows(n):
    return {"actions": torch.arange(n), "obs": {"a": torch.arange(n) * 10}, "mask": None}


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize(("n", "count"), [(12, 3), (13, 4), (5, 5)])
def test_minibatches_hold_every_row_once(shuffle, n, count):
    torch.manual_seed(1)
    seen = [mb.actions for mb in Batch(rows(n)).minibatches(count, shuffle)]
    assert len(seen) == count
    assert max(map(len, seen)) - min(map(len, seen)) <= 1
    together = torch.cat(seen)
    assert sorted(together.tolist()) == list(range(n))
    assert (together.tolist() == list(range(n))) is not shuffle


def test_fields_stay_together():
    torch.manual_seed(0)
    for mb in Batch(rows(12)).minibatches(3, shuffle=True):
        assert torch.equal(mb.obs["a"], mb.actions * 10)


def test_memory_is_drawn_by_whole_sequences():
    torch.manual_seed(0)
    fields = {"actions": torch.arange(12), "mask": None, "rnn_states": [torch.arange(3.0).view(1, 3, 1)]}  # 3 sequences of 4
    seen = []
    for mb in Batch(fields, seq_length=4).minibatches(3, shuffle=True):
        first = int(mb.actions[0])
        assert mb.actions.tolist() == list(range(first, first + 4))
        assert mb.rnn_states[0].flatten().tolist() == [first / 4]
        seen.append(first)
    assert sorted(seen) == [0, 4, 8]


@pytest.mark.parametrize("shuffle", [False, True])
def test_rows_that_stay_together_are_drawn_together_without_memory(shuffle):
    torch.manual_seed(0)
    batch = Batch(rows(12), seq_length=4)
    seen = [mb.actions.tolist() for mb in batch.minibatches(3, shuffle)]
    assert sorted(seen) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert batch.take(torch.tensor([2, 0])).obs["a"].tolist() == [80, 90, 100, 110, 0, 10, 20, 30]


@pytest.mark.parametrize("seq_length", [1, 4])
@pytest.mark.parametrize("shuffle", [False, True])
def test_write_goes_to_the_rows_that_a_minibatch_came_from(seq_length, shuffle):
    torch.manual_seed(0)
    memory = [torch.zeros(1, 3, 1)] if seq_length == 4 else None
    batch = Batch({"actions": torch.arange(12), "old_mus": torch.zeros(12, 1), "rnn_states": memory}, seq_length)
    for mb in batch.minibatches(3, shuffle):
        batch.write(mb, old_mus=mb.actions.float().unsqueeze(1))
    assert batch.old_mus.flatten().tolist() == list(range(12))


def test_write_takes_a_mask_and_one_value_for_all_rows():
    batch = Batch({"actions": torch.arange(4), "weight": torch.zeros(4, 1), "mask": None})
    batch.write(batch.take(torch.tensor([True, False, False, True])), weight=torch.tensor([[1.0], [2.0]]))
    assert batch.weight.flatten().tolist() == [1, 0, 0, 2]
    batch.write(batch.take(torch.tensor([1, 2])), weight=torch.tensor(3.0))
    assert batch.weight.flatten().tolist() == [1, 3, 3, 2]


def test_a_missing_field_is_named_with_those_that_are_there():
    with pytest.raises(AttributeError, match="no field 'advantage'; it has actions, obs, mask"):
        _ = Batch(rows(3)).advantage


def test_large_fields_and_memory_of_several_layers_go_with_their_rows(monkeypatch):
    monkeypatch.setattr("algos.batch.LARGE", 200)  # bytes: `obs` is large, `actions` is not
    torch.manual_seed(0)
    states = torch.arange(6.0).view(1, 3, 2) + torch.tensor([0.0, 100.0]).view(2, 1, 1)  # (layers, sequences, units)
    fields = {"actions": torch.arange(12), "obs": torch.arange(36.0).view(12, 3), "mask": None, "rnn_states": [states]}
    seen = []
    for mb in Batch(fields, seq_length=4).minibatches(2, shuffle=True):
        first = mb.actions[::4] // 4
        assert torch.equal(mb.obs, torch.stack([3.0 * mb.actions + i for i in range(3)], dim=1))
        assert torch.equal(mb.rnn_states[0], states[:, first])
        assert mb.rnn_states[0].is_contiguous()  # what cuDNN asks for
        assert torch.equal(mb.index, mb.actions)
        seen += first.tolist()
    assert sorted(seen) == [0, 1, 2]
