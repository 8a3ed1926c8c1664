"""One attempt at a cell, in a process of its own: `python -m experiments.attempt <cell's directory> [key=value ...]`.

Claims the cell, trains (from the checkpoint, where an earlier attempt left one) unless that is done already, and evaluates. cell.json
says what to run; the words after the directory are train.py's, and change nothing of the result.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from core import lean  # noqa: F401  before whatever imports torch

# isort: split

import train
from core import checkpoint
from core.cli import as_job, main_guard, read
from core.errors import UserError
from core.run_dir import BESIDE_A_RUN
from experiments import claims, evaluation, leash, progress
from experiments.worker import STOPPED, TAKEN


def run(folder: Path, passing: list[str]) -> int:
    """The exit status: 0 where the cell is done, STOPPED, TAKEN. Raises what training or evaluation raises."""
    if claims.take(folder) is not None:
        return TAKEN
    try:
        cell = progress.read(folder / "cell.json")
        if cell is None:
            raise UserError(f"'{folder}' has no cell.json: it is no cell of a suite")
        if not progress.trained(folder):
            _, composed = read([*_start(folder, cell["overrides"]), *passing])
            assert composed is not None, "cells.plan composed the same before"
            train.run(as_job(composed))
        if not progress.trained(folder):
            return STOPPED
        evaluation.evaluate(folder, cell["evaluation"])
        return 0
    finally:
        claims.drop(folder)


def _start(folder: Path, overrides: list[str]) -> list[str]:
    """Where to go on: the run in the directory, or a new one in its place if it left nothing that can be loaded."""
    try:
        checkpoint.load(folder / "nn" / "last.pth")
    except UserError:
        for path in folder.iterdir():
            if path.name not in BESIDE_A_RUN:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        return [*overrides, f"run_dir={folder}"]
    return [f"resume={folder}"]


if __name__ == "__main__":
    with main_guard():
        leash.hold()
        status = run(Path(sys.argv[1]), sys.argv[2:])
    sys.exit(status)
