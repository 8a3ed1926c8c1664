"""Files that a reader finds whole: written under a temporary name, synced and renamed. Imports nothing large."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str) -> None:
    """Writes atomically."""
    write_through(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_through(path: Path, write: Callable[[Path], Any]) -> None:
    """`write(temporary)` makes a file under a temporary name, which is then synced and renamed to `path`: a reader sees the old
    file or the new one, whatever happens in between."""
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
