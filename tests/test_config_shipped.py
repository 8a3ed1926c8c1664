"""The shipped YAMLs against the registered algorithms, task kinds and networks."""

from __future__ import annotations

from pathlib import Path

import pytest

from core import config, registry
from experiments import suites
from tests.config_setup import effective

AGENTS = {"SimpleSpread": 3}  # what only the environment knows: rows for each of its copies
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
    """Those named <Task>-<Algo> are found by themselves; <Task>-quick, and one for several tasks, are asked for by name."""
    registry.discover()
    task, _, train = path.stem.partition("-")
    if train in [algo.stem for algo in TRAIN]:
        words = (f"task={task}", f"train={train}")
    else:
        words = (f"task={task if train else 'Hopper'}", "train=PPO", f"tuned={path.stem}")
    params = config.to_params(config.check(effective(*words)))
    config.check_batch(params, AGENTS.get(task, 1))
    assert path.read_text().startswith("# @package _global_")


@pytest.mark.parametrize("task", ["Hopper", "Walker2d", "Ant", "Humanoid"])
def test_mujoco_has_one_setting(task: str) -> None:
    """What `train.py task=<Task>` runs with PPO is what the suite runs, where no pair of its own was worth it."""
    registry.discover()
    own, shared = (config.to_params(config.check(effective(f"task={task}", *words))) for words in ((), ("tuned=mujoco",)))
    assert own == shared
    assert not suites.load("mujoco").tasks[task].overrides


def test_every_task_of_a_suite_names_its_setting() -> None:
    """An algorithm without a pair of its own gets PPO's: otherwise a comparison with PPO would be one of settings."""
    for name in ("classic", "mujoco", "mujoco_tuned"):
        suite = suites.load(name)
        for task in suite.tasks.values():
            assert any(word.startswith("tuned=") for word in (*suite.overrides, *task.overrides)), (name, task)
