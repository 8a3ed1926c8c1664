"""`python -m experiments.bench.tasks`: what it counts, and what it says where a row cannot be measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from core import registry
from core.build import make_env
from core.errors import UserError
from experiments.bench import tasks
from tests.command import resolve
from tests.toys import ToyVecEnv


@pytest.mark.parametrize("name", tasks.ROWS)
def test_every_row_is_a_command_that_train_understands(name: str) -> None:
    cfg = resolve(*tasks.ROWS[name], *tasks.SETTING)
    assert cfg["task"]["kind"] in registry.tasks


def test_raw_steps_are_counted_over_all_environments() -> None:
    figures = tasks.raw(["task=TorchCartPole", "num_envs=100", "device=cpu"], seconds=0.2)
    assert figures["num_envs"] == 100
    assert figures["raw"] > 1000  # of 100 environments, each makes more than 10 steps a second anywhere


def test_forbidden_actions_are_not_drawn() -> None:
    env = ToyVecEnv(action="discrete", masks=True)
    env.reset()
    draw = tasks.random_actions(env)
    drawn = np.concatenate([draw() for _ in range(50)])
    assert set(drawn) == {1, 2}  # the first choice is forbidden


def test_a_row_that_fails_says_why_and_the_others_go_on(tmp_path: Path) -> None:
    row = tasks.measure(["task=gymnasium", "task.id=CartPol-v1"], tasks.Options(seconds=0.1, epochs=1))
    assert "raw" not in row
    assert "Did you mean 'CartPole-v1'" in row["not_measured"]
    text = tasks.table({"rows": {"broken": row, "whole": {"command": "c", "num_envs": 4, "raw": 12345.6, "training": 99.5}}})
    assert "| broken | - | - | - | `python train.py task=gymnasium task.id=CartPol-v1` (not measured: error: unknown" in text
    assert "| whole | 4 | 12,346 | 100 | `c` |" in text


def test_ids_of_envpool() -> None:
    rows = tasks.chosen(tasks.Options(ids=["Highway-v0"]))
    assert rows == {"Highway-v0": ("task=envpool", "task.id=Highway-v0", "num_envs=16")}
    row = tasks.measure([*rows["Highway-v0"]], tasks.Options(seconds=0.1, training=False))
    assert set(row) == {"command", "num_envs", "raw"}
    with pytest.raises(UserError, match="two commands"):
        tasks.chosen(tasks.Options(ids=["Highway-v0"], rows=["warp"]))


def test_several_choices_are_masked_one_by_one() -> None:
    env = make_env({"task": {"kind": "envpool", "id": "RobotWarehouse-v0"}}, 2, 0, "cpu")
    env.reset()
    draw = tasks.random_actions(env)
    for _ in range(20):
        actions, masks = draw(), env.get_action_masks()  # type: ignore[attr-defined]
        offsets = np.cumsum([0, *env.action_space.nvec[:-1]])  # type: ignore[attr-defined]
        assert np.take_along_axis(masks, actions + offsets, axis=1).all()
        env.step(actions)
    env.close()


def test_an_unknown_row() -> None:
    with pytest.raises(UserError, match="Did you mean 'envpool'"):
        tasks.main(["rows=[envpol]"])
