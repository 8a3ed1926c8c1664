"""The shipped YAMLs against the registered algorithms, task kinds and networks."""

from __future__ import annotations

from pathlib import Path

import pytest

from core import config, registry
from tests.config_setup import effective

TRAIN = sorted((config.CONFIG_DIR / "train").glob("*.yaml"))


@pytest.mark.parametrize("path", TRAIN, ids=lambda p: p.stem)
def test_every_algorithm_config(path: Path) -> None:
    registry.discover()
    cfg = config.check(effective("task=Pendulum", f"train={path.stem}"))
    assert config.unread(cfg) == []
    params = config.to_params(cfg)
    config.check_batch(params)
    fast = config.to_params(config.check(effective("task=Pendulum", f"train={path.stem}", "precision=bf16")))
    assert fast["config"]["precision"] == "bf16"
    assert params["config"]["name"] == f"Pendulum_{path.stem}"  # so `name:` in the file is the file's own


@pytest.mark.parametrize("path", sorted((config.CONFIG_DIR / "tuned").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_tuned_pair(path: Path) -> None:
    registry.discover()
    task, train = path.stem.split("-")
    params = config.to_params(config.check(effective(f"task={task}", f"train={train}")))
    config.check_batch(params)
    assert path.read_text().startswith("# @package _global_")
