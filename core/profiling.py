"""`profile=True`: where an epoch's time goes, as a table and as a trace that Perfetto (ui.perfetto.dev) or chrome://tracing draws."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from core.errors import UserError

SKIPPED = 2  # epochs before: the first ones fill caches
PROFILED = 3
OPERATIONS = 20
PHASES = {  # row of the table: metrics that add up to it, and those to take off
    "environment": (("time/step",), ()),
    "policy and bookkeeping of the steps": (("time/play",), ("time/step",)),
    "batch: returns, advantages, normalization": (("time/prepare",), ()),
    "update": (("time/update",), ()),
}


class EpochProfiler:
    """Profiles a few epochs of an agent and writes `profile.md` and `profile_trace.json` into `folder`.

    Raises UserError for an agent that has no rollout and update to tell apart (rl_games' SAC).
    """

    def __init__(self, agent: Any, folder: Path) -> None:
        if not hasattr(agent, "rollout"):
            raise UserError(f"profile=True needs an algorithm with epochs of rollout and update; {type(agent).__name__} has none")
        self.folder = folder
        self.epochs: list[dict[str, float]] = []
        self.seen = 0
        self.on_gpu = agent.policy.device.type == "cuda"
        activities = [torch.profiler.ProfilerActivity.CPU] + ([torch.profiler.ProfilerActivity.CUDA] if self.on_gpu else [])
        self.profiler = torch.profiler.profile(activities=activities)
        self.running = False
        agent.train_epoch = self._around(agent.train_epoch)
        self.env = agent.vec_env

    def _around(self, train_epoch: Callable[[], dict[str, float]]) -> Callable[[], dict[str, float]]:
        def profiled() -> dict[str, float]:
            self.seen += 1
            if self.seen == SKIPPED + 1:
                self.env.step = _labelled("environment", self.env.step)
                self.profiler.start()
                self.running = True
            start = time.perf_counter()
            metrics = train_epoch()
            if self.running:
                if self.on_gpu:
                    torch.cuda.synchronize()
                self.epochs.append({**metrics, "wall": time.perf_counter() - start})
                if len(self.epochs) == PROFILED:
                    self.finish()
            return metrics

        return profiled

    def finish(self) -> None:
        """Stops and writes; once. A run of fewer epochs than are skipped leaves no files and says so."""
        if self.running:
            self.running = False
            self.profiler.stop()
            del self.env.step  # the class's own again
            self.profiler.export_chrome_trace(str(self.folder / "profile_trace.json"))
            table = self.table()
            (self.folder / "profile.md").write_text(table, encoding="utf-8")
            print(f"\n{table}\nprofile: {self.folder / 'profile.md'}, {self.folder / 'profile_trace.json'}")
        elif not self.epochs:
            print(f"profile: nothing written, the run had no more than {SKIPPED} epochs")

    def table(self) -> str:
        """Markdown: milliseconds and share of each phase per epoch, then the operations that took most time of their own."""
        count = len(self.epochs)
        wall = sum(epoch["wall"] for epoch in self.epochs) / count
        rows, known = [], 0.0
        for name, (plus, minus) in PHASES.items():
            seconds = sum(sum(e.get(k, 0.0) for k in plus) - sum(e.get(k, 0.0) for k in minus) for e in self.epochs) / count
            known += seconds
            rows.append((name, seconds))
        rows.append(("the rest: evaluation, observers of the environments", wall - known))
        lines = [
            f"Mean of {count} epochs, profiler running (it slows small operations down).",
            "",
            "| phase | ms | share |",
            "|---|---|---|",
        ]
        lines += [f"| {name} | {1e3 * seconds:.2f} | {seconds / wall:.0%} |" for name, seconds in rows]
        lines += [f"| epoch | {1e3 * wall:.2f} | 100% |", "", "| operation | calls per epoch | own ms per epoch |", "|---|---|---|"]
        own = "self_device_time_total" if self.on_gpu else "self_cpu_time_total"
        events = sorted(self.profiler.key_averages(), key=lambda event: getattr(event, own), reverse=True)[:OPERATIONS]
        lines += [f"| `{e.key}` | {e.count / count:.0f} | {getattr(e, own) / count / 1e3:.2f} |" for e in events]
        return "\n".join(lines) + "\n"


def _labelled(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def labelled(*args: Any, **kwargs: Any) -> Any:
        with torch.profiler.record_function(name):
            return function(*args, **kwargs)

    return labelled
