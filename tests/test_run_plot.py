"""The learning curve: a picture for every run, also one that has hardly begun; and the numbers that are drawn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from core.plot import learning_curve, series, smooth

BLUE = np.array([8, 81, 156])


def lines(count: int) -> list[dict[str, Any]]:
    return [{"epoch": i, "frames": 64 * i, "return_mean": None if i == 0 else float(i), "info/kl": 0.01} for i in range(count)]


@pytest.mark.parametrize(("count", "drawn"), [(0, False), (1, True), (2, True), (100, True)])
def test_a_picture_for_every_run(tmp_path: Path, count: int, drawn: bool) -> None:
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines(count)))
    path = learning_curve(metrics, tmp_path / "learning_curve.png", "A_B")
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    assert pixels.shape[1] == 1080
    assert (np.abs(pixels - BLUE).max(axis=-1) < 8).any() == drawn


def test_no_metrics_file_gives_an_empty_picture(tmp_path: Path) -> None:
    assert learning_curve(tmp_path / "metrics.jsonl", tmp_path / "c.png", "A_B").stat().st_size > 1000
    assert [p.name for p in tmp_path.iterdir()] == ["c.png"]


def test_series_skips_epochs_without_the_metric() -> None:
    frames, values = series(lines(3), "return_mean")
    assert frames.tolist() == [64, 128]
    assert values.tolist() == [1, 2]
    assert [len(a) for a in series(lines(3), "losses/a_loss")] == [0, 0]


def test_smoothing_by_hand() -> None:
    # window 3: means of (0, 3), (0, 3, 9), (3, 9, 0), (9, 0)
    assert smooth(np.array([0.0, 3.0, 9.0, 0.0]), 3).tolist() == [1.5, 4.0, 4.0, 4.5]
    assert smooth(np.array([1.0, 2.0]), 1).tolist() == [1.0, 2.0]
    assert smooth(np.array([]), 5).size == 0
