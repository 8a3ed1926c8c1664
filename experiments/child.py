"""train.py in a process of its own, as a trial sees it: where it stands, how it ended, why it failed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments import leash

ROOT = Path(__file__).resolve().parents[1]
GRACE = 300.0  # seconds for an epoch to end and to be saved
TAIL = 65536  # bytes of metrics.jsonl in which its last line lies
FINISHED = ("max_frames", "max_epochs", "score_to_win", "should_stop")


class Child:
    """One invocation of train.py with `run_dir`. It ends with the process that started it, however that ends."""

    def __init__(self, run_dir: Path, words: list[str], cwd: str) -> None:
        self.run_dir = run_dir
        self.log = run_dir.with_name(f"{run_dir.name}.log")
        self._old = self._file()  # a resumed run writes the file anew, without what came after its checkpoint
        run_dir.parent.mkdir(parents=True, exist_ok=True)
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        argv = [sys.executable, "-m", "experiments.leashed", str(ROOT / "train.py"), *words]
        with self.log.open("ab") as log:
            self._begin = log.tell()
            self._process = leash.start(argv, log, {**os.environ, "PYTHONPATH": path, "COLUMNS": "160"}, cwd)

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    @property
    def status(self) -> int | None:
        """The exit status; negative: the signal that ended it; None while it runs."""
        return self._process.poll()

    def wait(self) -> int:
        """The exit status, once it has ended."""
        return self._process.wait()

    def latest(self) -> dict[str, Any]:
        """The metrics of the last epoch; {} before the first one of this invocation."""
        return {} if self._file() == self._old else last_metrics(self.run_dir)

    def reason(self) -> str:
        """Why it failed, in one line."""
        if (self.status or 0) < 0:
            return f"killed by {signal.Signals(-(self.status or 0)).name}"
        with self.log.open("rb") as log:
            log.seek(self._begin)
            lines = [line.strip() for line in log.read().decode(errors="replace").splitlines() if line.strip()]
        told = next((i for i in reversed(range(len(lines))) if lines[i].startswith("error: ")), None)
        return " ".join(lines[told:]).removeprefix("error: ") if told is not None else (lines or [f"exit status {self.status}"])[-1]

    def stop(self) -> None:
        """Lets the epoch end and be saved, as Ctrl-C does."""
        if self.running:
            self._process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(GRACE)
        leash.end(self._process)

    def _file(self) -> tuple[int, int] | None:
        try:
            found = (self.run_dir / "metrics.jsonl").stat()
        except FileNotFoundError:
            return None
        return found.st_dev, found.st_ino


def last_metrics(run_dir: Path) -> dict[str, Any]:
    """The last whole line of metrics.jsonl; {} where there is none."""
    try:
        with (run_dir / "metrics.jsonl").open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
            lines = file.read().split(b"\n")[:-1]
    except FileNotFoundError:
        return {}
    return json.loads(lines[-1]) if lines else {}


def last_value(run_dir: Path, metric: str) -> float | None:
    """The newest number under this name: not every epoch has every metric. None where there is none yet."""
    try:
        lines = (run_dir / "metrics.jsonl").read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return None
    name = json.dumps(metric).encode()
    found = (json.loads(line).get(metric) for line in reversed(lines) if name in line)
    return next((float(value) for value in found if value is not None), None)


def result(run_dir: Path) -> dict[str, Any]:
    """result.json; {} where there is none."""
    file = run_dir / "result.json"
    return json.loads(file.read_text()) if file.exists() else {}


def words(values: Mapping[str, Any]) -> list[str]:
    """Values as train.py takes them: `key=value`."""
    return [f"{key}={_text(value)}" for key, value in values.items()]


def _text(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)
