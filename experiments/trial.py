"""A trial of a sweep: train.py in subprocesses, one per seed, whose metrics go to Ray Tune."""

from __future__ import annotations

import json
import math
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

from ray import tune

from core.errors import nearest
from experiments import child
from experiments.child import FINISHED, Child

POLL = 0.2  # seconds
REPORTS = 50  # to Tune, over a trial's whole budget


class TrainTrial(tune.Trainable):
    """Reports {"frames", <metric>, "seconds", "curve": [[frames, metric], ...]} about every fiftieth of the budget; at its end also
    "ended", or "failed" with the reason.

    Its config is the space's values, and `job`: {"folder": where its directory is made, "words": train.py's, "cwd", "frames": the budget,
    "metric", "seeds": [...], "retries": how often a run that was killed is gone on with}. Started anew after a kill, it goes on with the
    runs in its directory, and reports finished ones without running them. Several seeds run side by side and count by their mean.
    """

    def setup(self, config: dict[str, Any]) -> None:
        self.job = config.pop("job")
        self.values = config
        self.folder = Path(self.job["folder"]) / self.trial_name
        self.curve: list[list[float]] = []
        self.due = 1
        self.retries = self.job["retries"]
        self._own_folder()
        many = len(self.job["seeds"]) > 1
        self.dirs = {seed: self.folder / f"seed{seed}" if many else self.folder for seed in self.job["seeds"]}
        self.children: dict[int, Child] = {}
        self.failed = ""
        for seed, run_dir in self.dirs.items():
            if child.result(run_dir).get("exit_reason") not in FINISHED:
                self._start(seed, run_dir)

    def step(self) -> dict[str, Any]:
        every = max(1, self.job["frames"] // REPORTS)
        while True:
            running = self._look_after()
            frames, value, seconds = self._standing()
            if self.failed:
                self.cleanup()
                return {"frames": frames, "seconds": seconds, "failed": self.failed, "done": True}
            if not running:
                return self._end(frames, value, seconds)
            if self.due <= frames < self.job["frames"]:  # the last report is that of the end
                self.due = (frames // every + 1) * every
                return {**self._report(frames, value, seconds), "training_iteration": frames // every}
            time.sleep(POLL)

    def cleanup(self) -> None:
        for one in self.children.values():
            one.stop()

    # ---- parts ----------------------------------------------------------------------------------------------------------

    def _own_folder(self) -> None:
        """A directory of this name with other values belongs to a trial that Tune forgot when it was killed."""
        about = self.folder.with_name(f"{self.folder.name}.json")
        told = json.dumps({"values": self.values, "seeds": self.job["seeds"]}, indent=2) + "\n"
        if not about.exists() or about.read_text() != told:
            shutil.rmtree(self.folder, ignore_errors=True)
            about.parent.mkdir(parents=True, exist_ok=True)
            about.write_text(told)

    def _start(self, seed: int, run_dir: Path) -> None:
        if (run_dir / "nn" / "last.pth").exists():
            words = [f"resume={run_dir}"]
        else:
            shutil.rmtree(run_dir, ignore_errors=True)
            given = [f"run_dir={run_dir}", f"seed={seed}", f"max_frames={self.job['frames']}"]
            words = [*self.job["words"], *child.words(self.values), *given]
        self.children[seed] = Child(run_dir, [*words, "progress=off"], self.job["cwd"])

    def _look_after(self) -> bool:
        """Whether a run still runs. One that was killed goes on from its checkpoint; one that failed fails the trial."""
        for seed, one in list(self.children.items()):
            status = one.status
            if status and status < 0 and self.retries > 0:
                self.retries -= 1
                self._start(seed, one.run_dir)
            elif status:
                self.failed = one.reason()
            elif status == 0 and child.result(one.run_dir).get("exit_reason") not in FINISHED:
                self.failed = f"ended early: {child.result(one.run_dir).get('exit_reason')}"
        return any(one.running for one in self.children.values())

    def _standing(self) -> tuple[int, float, float]:
        """Frames that every seed has reached, the mean of the metric (NaN before all have one), seconds of training."""
        lines = [self.children[seed].latest() if seed in self.children else child.last_metrics(path) for seed, path in self.dirs.items()]
        values = [
            child.last_value(path, self.job["metric"]) if line else None for line, path in zip(lines, self.dirs.values(), strict=True)
        ]
        known = [value for value in values if value is not None]
        mean = statistics.mean(known) if len(known) == len(values) else math.nan
        return min(int(line.get("frames", 0)) for line in lines), mean, max(line.get("seconds", 0.0) for line in lines)

    def _report(self, frames: int, value: float, seconds: float) -> dict[str, Any]:
        if not math.isnan(value):
            self.curve.append([frames, value])
        return {"frames": frames, self.job["metric"]: value, "seconds": seconds, "curve": self.curve}

    def _end(self, frames: int, value: float, seconds: float) -> dict[str, Any]:
        if math.isnan(value):
            metric = self.job["metric"]
            names = sorted({name for path in self.dirs.values() for name in child.last_metrics(path)})
            close = nearest(metric, names)
            told = f"metrics.jsonl has no '{metric}'." + (f" Did you mean '{close}'?" if close and close != metric else "")
            return {"frames": frames, "seconds": seconds, "failed": f"{told} It has: {', '.join(names)}", "done": True}
        return {**self._report(frames, value, seconds), "ended": True, "done": True}
