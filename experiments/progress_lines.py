"""What a search says while it runs: a line per trial that ended, a line per interval of a member."""

from __future__ import annotations

from typing import Any

from ray.tune import Callback

from experiments.search import told


class TrialLines(Callback):
    """One line for every trial of a sweep that ended."""

    def __init__(self, total: int, metric: str) -> None:
        self._total = total
        self._metric = metric

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        result = trial.last_result or {}
        ended = sum(one.is_finished() for one in trials if one is not trial) + 1
        how = result.get("failed") or ("done" if result.get("ended") else "stopped early")
        value = result.get(self._metric)
        number = "-" if value is None else f"{value:.1f}"
        print(f"{ended}/{self._total} {trial}: {number} at {result.get('frames', 0):,} frames, {how}  ({told(trial.config)})", flush=True)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        print(f"{trial}: lost its process more often than retries=", flush=True)


class MemberLines(Callback):
    """One line for every interval of every member of a population."""

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any) -> None:
        origin = result.get("origin")
        copied = "" if origin is None else f", copied from member_{origin:04}"
        how = f"failed: {result['failed']}" if "failed" in result else f"{result['score']:.1f}"
        if not result["episodes"] and "failed" not in result:
            how += " (of before: no episode ended, give a longer interval=)"
        where = f"interval {result['training_iteration']} {trial}"
        print(f"{where}: {how} at {result['frames']:,} frames{copied}  ({told(trial.config)})", flush=True)
