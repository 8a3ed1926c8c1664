"""A member of a population: train.py in a subprocess for one interval after the other, from a checkpoint that may be another member's."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

from ray import tune

from experiments import child
from experiments.child import Child

KEPT = ("nn/last.pth", "nn/best.pth", "config.yaml")  # of the run directory, in a checkpoint of Tune
OWNER = "member.json"
HISTORY = "intervals.jsonl"


class Member(tune.Trainable):
    """One step is one interval. Reports {"frames", "score", "seconds", "episodes": ended in this interval, "origin": the member that it was
    copied from}; "failed" with the reason, and the worst score, where train.py refused or gave up: such a member is replaced by a copy of a
    good one. A child that was killed raises, so that Tune starts it again.

    Its config is the values that PBT sets, and `job`: {"folder", "words": train.py's, "cwd", "frames": the budget, "interval", "metric",
    "mode", "seed": of member 0; the others get the following ones}.
    """

    def setup(self, config: dict[str, Any]) -> None:
        self.reset_config(config)
        self._child: Child | None = None

    def reset_config(self, config: dict[str, Any]) -> bool:
        """Tune puts another member, or other values, into this process."""
        config = dict(config)
        self.job = config.pop("job")
        self.values = config
        self.number = int(self.trial_name.rpartition("_")[2])
        self.run_dir = Path(self.job["folder"]) / self.trial_name
        self.origin: int | None = None
        self.episodes = 0  # finished up to where it stands
        self.restored = False
        return True

    def step(self) -> dict[str, Any]:
        interval = self.iteration + 1
        target = min(interval * self.job["interval"], self.job["frames"])
        if not self.restored:
            shutil.rmtree(self.run_dir, ignore_errors=True)
        words = [*child.words(self.values), f"seed={self.job['seed'] + self.number}", f"pause_at={target}", "progress=off"]
        if (self.run_dir / "nn" / "last.pth").exists():
            words = [f"resume={self.run_dir}", *words]
        else:
            words = [*self.job["words"], *words, f"run_dir={self.run_dir}", f"max_frames={self.job['frames']}"]
        self._child = Child(self.run_dir, words, self.job["cwd"])
        status = self._child.wait()
        if status < 0:
            raise RuntimeError(f"member {self.number}: {self._child.reason()}")
        told = self._report(self._child, status) | {"done": target >= self.job["frames"]}
        self._note(interval, told)
        self.restored, self.origin = True, None
        return told

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        _copy(self.run_dir, Path(checkpoint_dir))
        (Path(checkpoint_dir) / OWNER).write_text(json.dumps({"member": self.number, "episodes": self.episodes}))

    def load_checkpoint(self, checkpoint_dir: Any) -> None:
        about = json.loads((Path(checkpoint_dir) / OWNER).read_text())
        self.origin = None if about["member"] == self.number else about["member"]
        self.episodes = about["episodes"]
        (self.run_dir / "nn").mkdir(parents=True, exist_ok=True)
        for name in KEPT[:2]:
            (self.run_dir / name).unlink(missing_ok=True)  # a run without a best return yet has no best.pth
        _copy(Path(checkpoint_dir), self.run_dir)
        self.restored = True

    def cleanup(self) -> None:
        if self._child is not None:
            self._child.stop()

    def _report(self, ended: Child, status: int) -> dict[str, Any]:
        line = child.last_metrics(self.run_dir)
        before, self.episodes = self.episodes, int(line.get("episodes", 0))
        about = {"frames": int(line.get("frames", 0)), "seconds": line.get("seconds", 0.0), "origin": self.origin}
        about["episodes"] = self.episodes - before
        if status > 0:
            return {**about, "score": -math.inf if self.job["mode"] == "max" else math.inf, "failed": ended.reason()}
        value = child.last_value(self.run_dir, self.job["metric"])
        return {**about, "score": math.nan if value is None else value}  # NaN: no episode has ended yet

    def _note(self, interval: int, told: dict[str, Any]) -> None:
        """What this member did in the interval; those after an older checkpoint are written again."""
        row = {"interval": interval, "member": self.number, "from": told["origin"], "frames": told["frames"], "score": told["score"]}
        row["episodes"] = told["episodes"]
        row |= {"failed": told.get("failed", ""), **self.values}
        self.run_dir.mkdir(parents=True, exist_ok=True)
        rows = [old for old in history(self.run_dir) if old["interval"] < interval]
        (self.run_dir / HISTORY).write_text("".join(json.dumps(one) + "\n" for one in [*rows, row]))


def history(run_dir: Path) -> list[dict[str, Any]]:
    """A member's intervals: "interval", "member", "from" (whose checkpoint it began with), "frames", "score", "episodes", "failed", and the
    value of each key."""
    file = run_dir / HISTORY
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def _copy(source: Path, target: Path) -> None:
    for name in KEPT:
        if (source / name).exists():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source / name, target / name)
