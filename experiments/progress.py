"""What a cell's directory tells of its run: its state, and how far it is. Reads files only, so that anyone may look at any time."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from experiments import claims

STATES = ("done", "running", "interrupted", "failed", "left")
ENDS = ("max_frames", "max_epochs", "score_to_win", "should_stop")  # of a training that came to its end
MODES = ("deterministic", "sampled")
CHECKPOINTS = {"final": "last.pth", "best": "best.pth"}
TAIL_BYTES = 65_536  # holds several epochs


@dataclasses.dataclass(frozen=True)
class Progress:
    """state: one of STATES. frames, return_mean, fps: of the last epoch that was written; seconds: of training so far, with the
    evaluation where there was one. errors: last lines of the attempts that failed."""

    state: str
    frames: int = 0
    return_mean: float | None = None
    fps: float | None = None
    seconds: float = 0.0
    attempts: int = 0
    errors: tuple[str, ...] = ()
    holder: dict[str, Any] | None = None


def look(folder: Path, protocol: dict[str, Any], retries: int) -> Progress:
    """Where the cell stands. `protocol`: {"games_num", "seed"} that its evaluation must have had; `retries`: further attempts after the
    first that failed, of which a refusal (exit status 2: a mistake of the user's) has none."""
    cell = read(folder / "cell.json") or {}
    errors = tuple(cell.get("errors", ()))
    epoch = last_epoch(folder / "metrics.jsonl") or {}
    played = evaluation(folder, protocol)
    holder = claims.holder(folder)
    if holder is not None:
        state = "running"
    elif trained(folder) and played is not None:
        state = "done"
    elif len(errors) > retries or (errors and cell.get("refused")):
        state = "failed"
    elif trained(folder) or (folder / "nn" / "last.pth").is_file():
        state = "interrupted"
    else:
        state = "left"
    seconds = epoch.get("seconds", 0.0) + ((played or {}).get("seconds") or 0.0)
    return Progress(
        state,
        epoch.get("frames", 0),
        epoch.get("return_mean"),
        epoch.get("fps"),
        seconds,
        cell.get("attempts", 0),
        errors,
        holder,
    )


def trained(folder: Path) -> bool:
    """Whether training came to its end, by its budget or its own decision."""
    return (read(folder / "result.json") or {}).get("exit_reason") in ENDS


def evaluation(folder: Path, protocol: dict[str, Any]) -> dict[str, Any] | None:
    """eval.json, if it holds every checkpoint that is there in both modes, played by this protocol."""
    played = read(folder / "eval.json")
    if played is None or played.get("protocol") != protocol:
        return None
    there = [name for name, file in CHECKPOINTS.items() if (folder / "nn" / file).is_file()]
    whole = all(mode in played.get("checkpoints", {}).get(name, {}) for name in there for mode in MODES)
    return played if whole and there else None


def last_epoch(metrics: Path) -> dict[str, Any] | None:
    """The last whole line of a metrics.jsonl; None where there is none. A last line without its end is left out."""
    try:
        with metrics.open("rb") as file:
            file.seek(max(0, metrics.stat().st_size - TAIL_BYTES))
            lines = file.read().split(b"\n")[:-1]
    except OSError:
        return None
    for line in reversed(lines):
        try:
            return json.loads(line)
        except ValueError:
            continue
    return None


def read(file: Path) -> dict[str, Any] | None:
    """A JSON object; None where the file is not there or holds none."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
