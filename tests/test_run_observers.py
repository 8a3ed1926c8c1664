"""Observers: who hears what, what rl_games' own observers miss, and files that the real loggers write."""

from __future__ import annotations

import json
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rl_games.common.algo_observer import AlgoObserver
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboardX import SummaryWriter

from core import registry
from core.errors import UserError
from core.observers import Episode, MetricsFile, Observer, Observers, Run, Scores, TensorBoard, Wandb, make_observers
from core.run_dir import RunDir, read_metrics

ALGO = types.SimpleNamespace(num_agents=1, games_to_track=3)
METRICS = {
    "epoch": 2.0,
    "frames": 256.0,
    "seconds": 1.5,
    "fps": 170.0,
    "return_mean": -3.0,
    "losses/a_loss": 0.25,
    "info/kl": float("nan"),
    "rewards/energy": -0.5,
}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(RunDir.create(str(tmp_path), "A_B"), {"seed": 1}, max_frames=1000)


def rows(*indices: int) -> torch.Tensor:
    return torch.tensor(indices).reshape(-1, 1)  # as rl_games' `nonzero(as_tuple=False)` makes them


def scores(run: Run, num_agents: int = 1) -> Scores:
    observer = Scores(run)
    observer.after_init(types.SimpleNamespace(num_agents=num_agents, games_to_track=3))
    return observer


def test_scores_of_finished_episodes_only(run: Run) -> None:
    observer = scores(run)
    assert observer.metrics() == {}
    infos = {"scores": np.array([1.0, 2.0, 30.0])}
    observer.process_infos(infos, rows())
    assert observer.metrics() == {}
    observer.process_infos(infos, rows(0, 2))
    assert observer.metrics() == {"scores/mean": 15.5}
    observer.process_infos({"battle_won": torch.tensor([0, 1, 0])}, rows(1))
    observer.process_infos({"battle_won": torch.tensor([0, 1, 0])}, rows(1))
    assert observer.metrics() == {"scores/mean": pytest.approx(32 / 3)}  # the last three: 30, 1, 1
    observer.after_clear_stats()
    assert observer.metrics() == {}


def test_scores_with_lives(run: Run) -> None:
    observer = scores(run)
    infos = {"scores": np.arange(4.0), "lives": np.array([0, 2, 1, 0]), "time_outs": np.array([0, 0, 1, 0])}
    # row 0: game over; 1: a life lost; 2: time is up with a life left; 3: no lives, as always in Pong, and goes on
    observer.process_infos(infos, rows(0, 1, 2))
    assert list(observer.scores) == [0.0, 2.0]


def test_scores_of_several_agents_and_of_infos_in_a_list(run: Run) -> None:
    observer = scores(run, num_agents=2)
    infos = {"scores": np.array([5.0, 7.0]), "lives": np.array([1, 1]), "time_outs": np.array([0, 0, 1, 1])}
    observer.process_infos(infos, rows(0, 2))
    assert list(observer.scores) == [7.0]
    observer.process_infos([{"scores": 1.0}, {"lives": 2, "scores": 9.0}], rows(0, 2))
    assert list(observer.scores) == [7.0, 1.0]


def test_episode_keys_of_all_steps_count(run: Run) -> None:
    observer = Episode(run)
    observer.after_init(ALGO)
    observer.process_infos({"episode": {"height": torch.tensor(1.0)}, "level": 3}, rows())
    observer.process_infos({"episode": {"height": 2.0, "fell": np.array([0.0, 1.0])}, "level": 4, "mask": np.zeros(2)}, rows())
    observer.process_infos({}, rows())
    # rl_games' IsaacAlgoObserver takes the keys of the first dict: 'fell' would be lost
    assert observer.metrics() == {"episode/height": 1.5, "episode/fell": 0.5, "episode/level": 4.0}
    assert observer.metrics() == {}


def test_success_is_that_of_finished_episodes_not_of_steps(run: Run) -> None:
    observer = Episode(run)
    observer.after_init(ALGO)
    assert observer.reads({"success": np.zeros(3, dtype=bool)})
    running = {"success": np.array([True, True, True]), "success_at_end": np.array([True, True, True])}
    observer.process_infos(running, rows())  # in every environment, but no episode has ended
    assert observer.metrics() == {}
    observer.process_infos({"success": np.array([True, False, True]), "success_at_end": np.array([False, False, True])}, rows(0, 1))
    assert observer.metrics() == {"episode/success_rate": 0.5, "episode/success_at_end_rate": 0.0}
    observer.process_infos({"success": torch.tensor([1.0, 0.0, 1.0]), "success_at_end": torch.tensor([0.0, 0.0, 1.0])}, rows(0, 2))
    assert observer.metrics() == {
        "episode/success_rate": pytest.approx(2 / 3),
        "episode/success_at_end_rate": pytest.approx(1 / 3),
    }  # last 3
    observer.after_clear_stats()
    assert observer.metrics() == {}


def test_success_goes_by_gymnasium_roboticss_name_and_counts_an_environment_once(run: Run) -> None:
    observer = Episode(run)
    observer.after_init(types.SimpleNamespace(num_agents=2, games_to_track=9))
    observer.process_infos({"is_success": np.array([0.0, 1.0])}, rows(0, 1, 2, 3))  # two environments of two agents
    assert observer.metrics() == {"episode/success_rate": 0.5}


def test_episode_entries_that_gymnasium_marks_as_missing(run: Run) -> None:
    observer = Episode(run)
    observer.after_init(ALGO)
    observer.process_infos({"episode": {"r": np.array([0.0, 8.0])}, "_episode": np.array([False, True])}, rows(1))
    observer.process_infos({"episode": {"r": np.array([0.0, 0.0])}, "_episode": np.array([False, False])}, rows())
    assert observer.metrics() == {"episode/r": 8.0}


class Listener(Observer):
    def __init__(self, run: Run, *, name: str = "l", fail: bool = False):
        super().__init__(run)
        self.name, self.fail = name, fail
        self.heard: list[str] = []

    def process_infos(self, infos: Any, done_indices: Any) -> None:
        self.heard.append("infos")

    def on_epoch(self, metrics: dict[str, float]) -> None:
        self.heard.append("epoch")

    def after_clear_stats(self) -> None:
        self.heard.append("clear")

    def metrics(self) -> dict[str, float]:
        return {self.name: 1.0}

    def close(self) -> None:
        self.heard.append("close")
        if self.fail:
            raise OSError("disk full")


class Stock(AlgoObserver):
    """As rl_games' users write them."""

    def __init__(self) -> None:
        self.frames: list[int] = []

    def after_print_stats(self, frame: int, epoch_num: int, total_time: float) -> None:
        self.frames.append(frame)


def test_the_composite_forwards_to_all_also_to_stock_observers(run: Run) -> None:
    first, stock, second = Listener(run, name="a"), Stock(), Listener(run, name="b")
    both = Observers([first, stock, second])
    both.before_init("a2c", {}, "x")
    both.after_init(ALGO)
    both.on_train_start(ALGO)
    both.process_infos({}, rows())
    both.after_steps()
    assert both.metrics() == {"a": 1.0, "b": 1.0}
    both.on_epoch(METRICS)
    both.after_print_stats(256, 2, 1.5)
    both.after_clear_stats()
    both.on_train_end({})
    both.close()
    assert first.heard == second.heard == ["infos", "epoch", "clear", "close"]
    assert stock.frames == [256]


def test_all_are_closed_even_where_one_fails(run: Run) -> None:
    bad, good = Listener(run, fail=True), Listener(run)
    with pytest.raises(OSError, match=r"disk full"):
        Observers([bad, Stock(), good]).close()
    assert bad.heard == good.heard == ["close"]


def test_observers_by_name_with_options(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry.observers, "_entries", dict(registry.observers._entries))
    registry.register_observer("listener")(Listener)
    registry.register_observer("stock")(Stock)
    made = make_observers({"scores": None, "listener": {"name": "x"}, "stock": {}, "console": None}, run)
    assert [type(o).__name__ for o in made.observers] == ["Scores", "Listener", "Stock", "Progress"]
    assert made.metrics.__self__.observers[1].name == "x"  # type: ignore[attr-defined]  # a bound method
    with pytest.raises(UserError, match=r"unknown observer 'score' at observers. Did you mean 'scores'"):
        make_observers({"score": None}, run)
    with pytest.raises(UserError, match=r"unknown option of observer 'listener': 'nam' at observers.listener. Did you mean 'name'"):
        make_observers({"listener": {"nam": 1}}, run)


def test_metrics_file(run: Run) -> None:
    observer = MetricsFile(run)
    observer.on_epoch(METRICS)
    observer.close()
    observer.close()
    assert read_metrics(run.dir.metrics_path) == [{**METRICS, "info/kl": None}]


def test_tensorboard_can_be_read_back_under_rl_games_tags(run: Run) -> None:
    observer = TensorBoard(run)
    observer.on_train_start(types.SimpleNamespace(writer=SummaryWriter(str(run.dir.summaries))))
    observer.on_epoch({**METRICS, "info/epochs": 2.0, "return_mean_1": 4.0, "scores/mean": 9.0})
    observer.close()
    events = EventAccumulator(str(run.dir.summaries)).Reload()
    read = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert read == {
        "rewards/step": [(256, -3.0)],
        "rewards/iter": [(2, -3.0)],
        "rewards/time": [(1, -3.0)],  # steps are whole numbers: seconds, as in rl_games
        "rewards1/step": [(256, 4.0)],
        "rewards1/iter": [(2, 4.0)],
        "rewards1/time": [(1, 4.0)],
        "scores/mean": [(256, 9.0)],
        "scores/iter": [(2, 9.0)],
        "scores/time": [(1, 9.0)],
        "performance/step_inference_rl_update_fps": [(256, 170.0)],
        "info/epochs": [(256, 2.0)],
        "losses/a_loss": [(256, 0.25)],
        "rewards/energy": [(256, -0.5)],
    }


def test_tensorboard_is_silent_where_the_agent_has_no_writer(run: Run) -> None:
    observer = TensorBoard(run)
    observer.on_train_start(types.SimpleNamespace(writer=None))
    observer.on_epoch(METRICS)
    observer.close()
    assert not list(run.dir.summaries.iterdir())


@pytest.mark.timeout(60)
def test_wandb_offline_writes_its_files_into_the_run_directory(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_SILENT", "true")
    observer = Wandb(run, mode="offline", project="p", group="g", tags=["t"])
    observer.on_train_start(ALGO)
    observer.on_epoch(METRICS)
    observer.on_train_end({"return_best": -3.0})
    observer.close()
    observer.close()
    observer.wandb.teardown()  # waits for W&B's own process to write, as it also does when Python exits
    folder = run.dir.path / "wandb"
    [offline] = folder.glob("offline-run-*")
    run_id = (folder / "run_id").read_text()
    [log] = offline.glob("*.wandb")
    assert log.name == f"run-{run_id}.wandb"
    content = log.read_bytes()
    for word in (b"losses/a_loss", b"return_best", b"seed", run.dir.path.name.encode()):
        assert word in content
    assert b"info/kl" not in content  # NaN is left out
    assert Wandb(run)._run_id() == run_id  # a resumed run goes on in it


def test_wandb_modes(run: Run) -> None:
    with pytest.raises(UserError, match=r"unknown mode 'ofline' at wandb. Did you mean 'offline'"):
        Wandb(run, mode="ofline")


def test_wandb_missing_is_told(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(UserError, match=r"pip install wandb, or wandb=off"):
        Wandb(run)


def test_metrics_are_json_even_after_all_observers(run: Run) -> None:
    both = Observers([MetricsFile(run), Listener(run)])
    both.on_epoch({**METRICS, **both.metrics()})
    both.close()
    assert json.loads(run.dir.metrics_path.read_text())["l"] == 1.0
