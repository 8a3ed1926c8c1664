"""What algorithms need that learn from somebody: a checkpoint of a short run and the demonstrations that it gave, one per task."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from pathlib import Path

from tests.command import SMALL, command

ROOT = tempfile.mkdtemp(prefix="experts-")
atexit.register(shutil.rmtree, ROOT, ignore_errors=True)


@functools.cache
def teacher(*task: str) -> str:
    """A checkpoint of PPO after two epochs on the task of these arguments."""
    folder = Path(tempfile.mkdtemp(dir=ROOT)) / "run"
    command(*task, *SMALL, f"run_dir={folder}", "max_epochs=2")
    return f"{folder}/nn/last.pth"


@functools.cache
def demonstrations(*task: str) -> str:
    """A demonstration file of three of its episodes."""
    checkpoint = teacher(*task)
    path = f"{Path(checkpoint).parent}/demos.npz"
    command("test=True", f"checkpoint={checkpoint}", f"record={path}", "player.games_num=3")
    return path
