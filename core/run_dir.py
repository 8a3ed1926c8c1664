"""The run directory: one per run, made once, shared by all ranks. Its files are described in docs/runs.md."""

from __future__ import annotations

import datetime
import json
import math
import re
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
import yaml

from core.errors import UserError, nearest
from core.files import write_text
from core.provenance import provenance

BESIDE_A_RUN = ("cell.json", "claim.json", "train.log")  # what a suite keeps in a run's directory, from before the run (experiments/)


class RunDir:
    """Paths and files of one run. Make it with `create` or `open`."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._metrics: IO[str] | None = None

    @classmethod
    def create(cls, root: str, name: str, exact: str | None = None) -> RunDir:
        """Makes `<root>/<name>_<YYYY-MM-DD_HH-MM-SS>` (with -2, -3, ... where that is taken), or exactly `exact` where given.

        Raises UserError where the directory cannot be written, or `exact` exists and is not empty.
        """
        try:
            path = _make_exact(Path(exact)) if exact else _make_stamped(Path(root), name)
            for folder in ("nn", "summaries"):
                (path / folder).mkdir()
        except OSError as error:
            where = f"run_dir '{exact}'" if exact else f"run directory under '{root}'"
            raise UserError(f"cannot write the {where}: {error.strerror or error}") from error
        return cls(path)

    @classmethod
    def open(cls, path: str) -> RunDir:
        """An existing run, to resume or to evaluate. Raises UserError, naming the nearest run beside it, where there is none."""
        folder = Path(path)
        if not folder.is_dir():
            beside = [p.name for p in folder.parent.iterdir() if p.is_dir()] if folder.parent.is_dir() else []
            guess = nearest(folder.name, beside)
            hint = f" Did you mean '{folder.parent / guess}'?" if guess else ""
            raise UserError(f"no run directory '{path}'.{hint}")
        run = cls(folder)
        if not run.config_path.is_file():
            raise UserError(f"'{path}' is no run directory: it has no config.yaml")
        return run

    # ---- paths ------------------------------------------------------------------------------------------------------

    @property
    def nn(self) -> Path:
        """Checkpoints."""
        return self.path / "nn"

    @property
    def summaries(self) -> Path:
        """TensorBoard event files."""
        return self.path / "summaries"

    @property
    def videos(self) -> Path:
        """Recorded episodes; made when the first is written."""
        return self.path / "videos"

    @property
    def config_path(self) -> Path:
        return self.path / "config.yaml"

    @property
    def metrics_path(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def best(self) -> Path:
        return self.nn / "best.pth"

    @property
    def last(self) -> Path:
        return self.nn / "last.pth"

    # ---- files ------------------------------------------------------------------------------------------------------

    def write_config(self, cfg: dict[str, Any]) -> None:
        """Writes config.yaml. A resumed run with another one keeps the old file as config.1.yaml, config.2.yaml, ..."""
        cfg = plain(cfg, finite=False)
        if self.config_path.exists():
            old = self.config_path.read_text(encoding="utf-8")
            if yaml.safe_load(old) == cfg:
                return
            number = 1
            while (self.path / f"config.{number}.yaml").exists():
                number += 1
            write_text(self.path / f"config.{number}.yaml", old)
        write_text(self.config_path, yaml.safe_dump(cfg, sort_keys=False, allow_unicode=True))

    def read_config(self) -> dict[str, Any]:
        """The resolved config of the run. Raises UserError where the file is damaged."""
        try:
            return yaml.safe_load(self.config_path.read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise UserError(f"'{self.config_path}' is not valid YAML: {error}") from error

    def start(self, info: dict[str, Any]) -> None:
        """Opens a session in run.json and states where it comes from. `info`: task, algo, seed and what else names the run."""
        now = _now()
        origin = provenance()
        session = {"start": now, "end": None, "exit_reason": "running", **origin}
        past = self._read_run()
        sessions = past.get("sessions", [])
        for one in sessions:
            if one["end"] is None:
                one["exit_reason"] = "killed"  # a run that ends in any other way says so itself
        head = {"start": past.get("start", now), "end": None, "exit_reason": "running"}
        write_json(self.path / "run.json", {**info, **head, **origin, "sessions": [*sessions, session]})

    def finish(self, exit_reason: str) -> None:
        """Closes the session that `start` opened: end time and why the run ended. Also closes metrics.jsonl."""
        self.close()
        run = self._read_run()
        end = {"end": _now(), "exit_reason": exit_reason}
        run.update(end)
        if run.get("sessions"):
            run["sessions"][-1].update(end)
        write_json(self.path / "run.json", run)

    def append_metrics(self, metrics: dict[str, Any]) -> None:
        """One epoch, one line in metrics.jsonl, flushed. NaN and infinity become null."""
        if self._metrics is None:
            self._metrics = self.metrics_path.open("a", encoding="utf-8")
        self._metrics.write(json.dumps(plain(metrics), allow_nan=False) + "\n")
        self._metrics.flush()

    def truncate_metrics(self, epoch: int) -> None:
        """Drops the lines after `epoch`, and a line that a kill cut short: a resumed run writes those epochs again."""
        self.close()
        kept = [line for line in read_metrics(self.metrics_path) if line.get("epoch", 0) <= epoch]
        write_text(self.metrics_path, "".join(json.dumps(line) + "\n" for line in kept))

    def write_result(self, result: dict[str, Any]) -> None:
        """result.json: how training ended."""
        write_json(self.path / "result.json", result)

    def write_eval(self, result: dict[str, Any]) -> None:
        """eval.json: the last evaluation."""
        write_json(self.path / "eval.json", result)

    def close(self) -> None:
        """Closes metrics.jsonl; the next `append_metrics` opens it again."""
        if self._metrics is not None:
            self._metrics.close()
            self._metrics = None

    def _read_run(self) -> dict[str, Any]:
        file = self.path / "run.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


class Unwritten(RunDir):
    """The run directory as ranks beyond the first see it: they know its paths, and write none of its files."""

    def write_config(self, cfg: dict[str, Any]) -> None: ...

    def start(self, info: dict[str, Any]) -> None: ...

    def finish(self, exit_reason: str) -> None: ...

    def append_metrics(self, metrics: dict[str, Any]) -> None: ...

    def truncate_metrics(self, epoch: int) -> None: ...

    def write_result(self, result: dict[str, Any]) -> None: ...


def run_name(cfg: dict[str, Any]) -> str:
    """<task>_<algorithm>, the latter by its train config's file name where that is known."""
    train = cfg["train"]
    return f"{cfg['task']['name']}_{train.get('name') or train['params']['algo']['name']}"


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The epochs of a metrics.jsonl; [] where there is no such file. A last line that a kill cut short is left out."""
    path = Path(path)
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    if lines[-1]:  # every whole line ends in a newline
        lines = lines[:-1]
    return [json.loads(line) for line in lines if line]


def plain(value: Any, finite: bool = True) -> Any:
    """A copy of `value` in the types that JSON and YAML know: arrays and tensors become lists, everything unknown its string.
    `finite`: NaN and infinity become None, for which JSON has no word."""
    if isinstance(value, dict):
        return {str(key): plain(item, finite) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item, finite) for item in value]
    if isinstance(value, torch.Tensor):
        return plain(value.detach().cpu().tolist(), finite)
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist(), finite)
    if isinstance(value, float):
        return value if math.isfinite(value) or not finite else None
    if value is None or isinstance(value, str | int):
        return value
    return str(value)


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Writes atomically, indented."""
    write_text(path, json.dumps(plain(data), indent=2, allow_nan=False) + "\n")


def _make_exact(path: Path) -> Path:
    if path.is_dir() and any(file.name not in BESIDE_A_RUN for file in path.iterdir()):
        raise UserError(f"run_dir '{path}' is not empty: name another directory, or go on with that run by resume={path}")
    path.mkdir(parents=True, exist_ok=True)
    return path


def _make_stamped(root: Path, name: str) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    stem = re.sub(r"[^\w.+-]+", "-", name)  # ids such as ALE/Pong-v5 are no file names
    stem += datetime.datetime.now().strftime("_%Y-%m-%d_%H-%M-%S")
    number = 1
    while True:
        path = root / (stem if number == 1 else f"{stem}-{number}")
        try:
            path.mkdir()  # not exist_ok: of two runs that start in one second each gets its own
            return path
        except FileExistsError:
            number += 1


def _now() -> str:
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")
