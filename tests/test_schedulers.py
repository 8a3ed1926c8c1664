"""What Ray Tune's schedulers know of trials that were restored; Tune itself starts them without memory."""

from __future__ import annotations

from typing import Any

import pytest
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from experiments.schedulers import Hopeless, RestoredASHA, RestoredPBT


class Restored:
    """As much of a Trial as the schedulers look at."""

    def __init__(self, trial_id: str, last_result: dict[str, Any], finished: bool = False) -> None:
        self.trial_id, self.last_result, self.finished = trial_id, last_result, finished
        self.config: dict[str, Any] = {"gamma": 0.99}
        self.checkpoint = "one" if last_result else None
        self.status = Trial.PENDING
        self.run_metadata = type("Metadata", (), {"checkpoint_manager": self})
        self.checkpoint_config = type("Config", (), {"num_to_keep": None})
        self.experiment_tag = trial_id

    def is_finished(self) -> bool:
        return self.finished

    def set_status(self, status: str) -> None:
        self.status = status


def test_asha_compares_with_trials_of_before_the_restart() -> None:
    def asha() -> RestoredASHA:
        return RestoredASHA(time_attr="frames", metric="score", mode="max", max_t=900, grace_period=100, reduction_factor=3)

    fresh, restored = asha(), asha()
    for number, score in enumerate((10.0, 20.0, 30.0)):
        trial: Any = Restored(f"{number}", {"curve": [[100, score], [300, 2 * score]]}, finished=True)
        restored.on_trial_add(None, trial)
    late: Any = Restored("late", {})
    for scheduler, decision in ((fresh, TrialScheduler.CONTINUE), (restored, TrialScheduler.STOP)):
        scheduler.on_trial_add(None, late)
        assert scheduler.on_trial_result(None, late, {"frames": 110, "score": 15.0}) == decision
    good: Any = Restored("good", {})
    restored.on_trial_add(None, good)
    assert restored.on_trial_result(None, good, {"frames": 110, "score": 40.0}) == TrialScheduler.CONTINUE
    assert restored.on_trial_result(None, good, {"frames": 310, "score": 40.0}) == TrialScheduler.STOP  # under 60, a third's cutoff


@pytest.mark.parametrize(
    ("reached", "wait_for"),
    [
        ([], 1),  # a new population
        ([5, 4, 5], 5),  # stopped within an interval: who is there waits
        ([5, 5, 5], 6),  # stopped between two
        ([1, 0, 0], 1),  # some have not begun
    ],
)
def test_members_wait_where_they_stood(reached: list[int], wait_for: int) -> None:
    scheduler = RestoredPBT(
        time_attr="training_iteration",
        perturbation_interval=1,
        metric="score",
        mode="max",
        hyperparam_mutations={"gamma": [0.9]},
        synch=True,
    )
    trials: list[Any] = [Restored(f"{i}", {"training_iteration": n, "score": 1.0} if n else {}) for i, n in enumerate(reached or [0, 0])]
    controller: Any = type("Controller", (), {"search_alg": None, "get_trials": lambda self: trials})()
    for trial in trials:
        scheduler.on_trial_add(controller, trial)
    assert scheduler._next_perturbation_sync == wait_for
    assert [trial.status for trial in trials] == [Trial.PAUSED if n else Trial.PENDING for n in (reached or [0, 0])]
    chosen = scheduler.choose_trial_to_run(controller)
    assert chosen is not None  # nobody waits for ever
    assert chosen is trials[(reached or [0]).index(min(reached or [0]))]


def test_a_search_in_which_everybody_fails_ends() -> None:
    stopper = Hopeless(2)
    assert not stopper("a", {"failed": "x"})
    assert not stopper.stop_all()
    stopper("b", {"failed": "x"})
    assert stopper.stop_all()
    stopper("b", {"score": 1})
    assert not stopper.stop_all()
