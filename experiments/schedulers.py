"""Ray Tune's schedulers, which know after a restart what they knew before: Tune restores trials and search algorithms, and not these."""

from __future__ import annotations

from typing import Any

from ray.tune import Stopper
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, PopulationBasedTraining


class RestoredASHA(ASHAScheduler):
    """ASHA over frames. A trial of before the restart enters its rungs with the curve that its last result carries: [[frames, metric]]."""

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        super().on_trial_add(tune_controller, trial)
        for frames, value in (trial.last_result or {}).get("curve", []):
            self._trial_info[trial.trial_id].on_result(trial, frames, self._metric_op * value)


class RestoredPBT(PopulationBasedTraining):
    """PBT in step: all members reach the end of an interval before any is replaced, so that any number of them can share few CPUs.

    A restarted member stands where its last result says; those at the end of the interval wait there for the others.
    """

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        super().on_trial_add(tune_controller, trial)
        last = trial.last_result or {}
        if not trial.is_finished() and self._time_attr in last and trial.checkpoint is not None:
            self._save_trial_state(self._trial_state[trial], last[self._time_attr], last, trial)
            trial.set_status(Trial.PAUSED)  # as if it had just paused: its checkpoint may be cloned
        reached = [state.last_train_time for member, state in self._trial_state.items() if not member.is_finished()]
        if reached and max(reached) > 0:
            self._next_perturbation_sync = max(reached) + (self._perturbation_interval if min(reached) == max(reached) else 0)


class Hopeless(Stopper):
    """Ends a search in which everybody fails: `limit` trials or more have reported, and the last thing heard of each was a failure."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._failed: dict[str, bool] = {}

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        self._failed[trial_id] = "failed" in result
        return False

    def stop_all(self) -> bool:
        return len(self._failed) >= self._limit and all(self._failed.values())
