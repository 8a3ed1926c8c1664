"""What the processes of tests/test_ranks_runs.py run: `python -m tests.rank_fates OUT PORT ...`, several short runs one after another,
each of which ends in its own way on two ranks."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

from algos.agent import Agent
from algos.options import AgentOptions
from core import registry
from core.registry import register_algo
from tests.command import command

RATE = "train.params.config.learning_rate"
SMALL = ["task=TorchPendulum", "train=PPO", "num_envs=4", "train.params.config.horizon_length=16", "train.params.config.mini_epochs=1"]
DOOMED = [*SMALL, "train.params.algo.name=doomed", "max_epochs=1000000"]
FATES: dict[str, list[list[str]]] = {  # the arguments of both ranks
    "sac": [["task=TorchPendulum", f"file={Path(__file__).parent}/data/sac.yaml"]] * 2,
    "disagree": [[*SMALL, f"{RATE}=1e-3"], [*SMALL, f"{RATE}=2e-3", "train.params.config.adv_rms_momentum=0.9"]],
    "stop": [DOOMED] * 2,
    "term": [DOOMED] * 2,
    "raise": [DOOMED] * 2,
    "raise_on_first": [DOOMED] * 2,
    "nan": [DOOMED] * 2,
    "kill": [DOOMED] * 2,
}


@register_algo("doomed", config=AgentOptions)
class Doomed(Agent):
    """PPO that meets the fate named in the environment variable FATE, on rank 1 and in epoch 3."""

    def before_epoch(self) -> None:
        fate, here = os.environ["FATE"], self.epoch_num == 3
        if here and self.ranks.rank == (fate == "raise") and fate.startswith("raise"):
            raise ValueError("the simulator fell over")
        if here and self.ranks.rank == 1:
            if fate == "nan":
                self.obs["obs"].fill_(float("nan"))
            if fate == "term":
                os.kill(os.getpid(), signal.SIGTERM)
            if fate == "kill":
                os.kill(os.getpid(), signal.SIGKILL)

    def should_stop(self) -> bool:
        return os.environ["FATE"] == "stop" and self.epoch_num == 2 and self.ranks.rank == 1


def main(out: Path, ports: list[str]) -> None:
    registry.discover()
    rank = int(os.environ["RANK"])
    told: dict[str, Any] = {}
    for (fate, arguments), port in zip(FATES.items(), ports, strict=True):
        os.environ.update(FATE=fate, MASTER_PORT=port)
        since = time.monotonic()
        try:
            told[fate] = command(*arguments[rank], f"run_dir={out}/{fate}")
        except Exception as error:
            told[fate] = f"{type(error).__name__}: {error}"
        told[f"{fate} seconds"] = time.monotonic() - since
        torch.save(told, out / f"rank{rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
