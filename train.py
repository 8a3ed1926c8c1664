"""Train, resume and evaluate.

    python train.py task=Pendulum train=RPO seed=1 max_frames=2_000_000
    python train.py test=True checkpoint=runs/<run>/nn/best.pth player.games_num=100 video=True
    python train.py resume=runs/<run>
    python train.py task=Pendulum --info                    # what the task is
    python train.py --file rl_games.yaml --train            # and --play --checkpoint <file>

The way down from here: core/cli.py (arguments), core/config.py (what counts), core/runner.py (the run), algos/agent.py (an epoch);
core/evaluation.py (what a checkpoint is worth).
"""

from __future__ import annotations

import sys
from typing import Any

from core import lean  # noqa: F401  before whatever imports torch

# isort: split

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from core import checkpoint, evaluation, registry, runner, task_info
from core.cli import as_job, main_guard, read
from core.config import check, effective


@hydra.main(version_base="1.3", config_path="cfg", config_name="config")
@main_guard()
def main(composed: DictConfig) -> None:
    """One of the runs that only Hydra can start: a sweep, or one with a `hydra.*` key."""
    run(composed)


def run(composed: DictConfig) -> None:
    """One run, from what Hydra composed. Returns nothing: results are files in the run directory."""
    cfg = resolved(composed)
    if cfg["info"]:
        task_info.show(cfg)
    elif cfg["test"]:
        evaluation.evaluate(cfg)
    else:
        runner.train(cfg)


def resolved(composed: DictConfig) -> dict[str, Any]:
    """The checked config that counts; nothing is built."""
    registry.discover()
    cfg = effective(composed, HydraConfig.get().overrides.task, checkpoint.read_config)
    registry.import_outside(cfg["modules"])
    return check(cfg)


if __name__ == "__main__":
    with main_guard():
        sys.argv[1:], own = read(sys.argv[1:])
        if own is not None:
            run(as_job(own))
    if own is None:
        main()
