"""Who listens to a run: rl_games' observer methods plus once-per-epoch metrics, and the observers that every run can ask for.

A custom observer subclasses `Observer`, is registered by name and named in the config:

    @register_observer("height")
    class Height(Observer):
        def process_infos(self, infos, done_indices):
            self.height = infos["torso_height"].max()

        def metrics(self):
            return {"height/max": float(self.height)}
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import math
import secrets
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from rl_games.common.algo_observer import AlgoObserver
from tensorboardX import SummaryWriter, summary

from core import registry
from core.errors import UserError, unknown
from core.registry import register_observer
from core.run_dir import RunDir


@dataclasses.dataclass(frozen=True)
class Run:
    """What an observer may know of its run when it is made."""

    dir: RunDir
    config: dict[str, Any]  # the resolved config
    max_frames: int | None = None  # None: no such limit
    max_epochs: int | None = None


class Observer(AlgoObserver):
    """Base class. Every method does nothing by default. Keyword-only arguments of a subclass's `__init__` after `run` are its
    options in the config.

    Order in a run: `before_init`, `after_init`, `on_train_start`; each step `process_infos`; each epoch `after_steps`, `metrics`,
    `on_epoch`, `after_print_stats`; `on_train_end`; `close`.
    """

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run = run

    def reads(self, infos: Any) -> bool:
        """Whether `process_infos` would find anything in a step's infos; it is not called where no observer would."""
        return _listens(self)

    def after_clear_stats(self) -> None:
        """When the agent clears its episode statistics. rl_games calls it, though its base class lacks it."""

    def on_train_start(self, agent: Any) -> None:
        """Once, when everything is built or restored, before the first epoch."""

    def metrics(self) -> dict[str, float]:
        """Once per epoch, before `on_epoch`: values of this observer's own, which the agent merges into the epoch's metrics."""
        return {}

    def on_epoch(self, metrics: dict[str, float]) -> None:
        """Once per epoch with all metrics. A key may be absent (`return_mean` before the first episode has ended)."""

    def on_train_end(self, result: dict[str, Any]) -> None:
        """Once, when training ended as it should or was stopped, with the content of result.json. Not after an error."""

    def close(self) -> None:
        """Last, always, also after an error. Must be safe to call twice."""


class Observers(Observer):
    """Forwards everything to a list of observers, among which plain rl_games `AlgoObserver`s may stand."""

    def __init__(self, observers: Iterable[AlgoObserver]) -> None:
        AlgoObserver.__init__(self)
        self.observers = list(observers)
        self.listening = [o for o in self.observers if _listens(o)]

    def before_init(self, base_name: str, config: dict[str, Any], experiment_name: str) -> None:
        self._tell("before_init", base_name, config, experiment_name)

    def after_init(self, algo: Any) -> None:
        self._tell("after_init", algo)

    def reads(self, infos: Any) -> bool:
        return any(o.reads(infos) if isinstance(o, Observer) else True for o in self.listening)

    def process_infos(self, infos: Any, done_indices: Any) -> None:
        self._tell("process_infos", infos, done_indices)

    def after_steps(self) -> None:
        self._tell("after_steps")

    def after_print_stats(self, frame: int, epoch_num: int, total_time: float) -> None:
        self._tell("after_print_stats", frame, epoch_num, total_time)

    def after_clear_stats(self) -> None:
        self._tell("after_clear_stats")

    def on_train_start(self, agent: Any) -> None:
        self._tell("on_train_start", agent)

    def metrics(self) -> dict[str, float]:
        merged: dict[str, float] = {}
        for observer in self.observers:
            if isinstance(observer, Observer):
                merged.update(observer.metrics())
        return merged

    def on_epoch(self, metrics: dict[str, float]) -> None:
        self._tell("on_epoch", metrics)

    def on_train_end(self, result: dict[str, Any]) -> None:
        self._tell("on_train_end", result)

    def close(self) -> None:
        """Closes all, even where one raises; then that error goes on."""
        with contextlib.ExitStack() as stack:
            for observer in reversed(self.observers):  # the stack unwinds from its end
                stack.callback(getattr(observer, "close", _nothing))

    def _tell(self, method: str, *arguments: Any) -> None:
        for observer in self.observers:
            getattr(observer, method, _nothing)(*arguments)


def _listens(observer: AlgoObserver) -> bool:
    return type(observer).process_infos is not AlgoObserver.process_infos


def make_observers(wanted: Mapping[str, Mapping[str, Any] | None], run: Run) -> Observers:
    """The observers named in `wanted` ({name: its options}), in that order.

    Raises UserError for an unknown name or option. A registered class that is a plain `AlgoObserver` is made without `run`.
    """
    import core.console  # noqa: F401  registers "console"; it builds on this module

    return Observers([_make(name, dict(options or {}), run) for name, options in wanted.items()])


def _make(name: str, options: dict[str, Any], run: Run) -> AlgoObserver:
    cls = registry.observers.get(name, "observers")
    valid = [p.name for p in inspect.signature(cls).parameters.values() if p.kind is p.KEYWORD_ONLY]
    for key in options:
        if key not in valid:
            raise unknown(f"option of observer '{name}':", key, valid, f"observers.{name}")
    return cls(run, **options) if issubclass(cls, Observer) else cls(**options)


@register_observer("scores")
class Scores(Observer):
    """`scores/mean`: mean of infos['scores'] (or 'battle_won') over the last `games_to_track` finished games.

    Where `infos['lives']` is given (Atari), a game is finished when an episode ended and no life is left or the time was up.
    """

    def after_init(self, algo: Any) -> None:
        self.num_agents: int = algo.num_agents
        self.scores: deque[float] = deque(maxlen=algo.games_to_track)

    def reads(self, infos: Any) -> bool:
        return bool(infos) and (not isinstance(infos, dict) or "scores" in infos or "battle_won" in infos)

    def process_infos(self, infos: Any, done_indices: torch.Tensor) -> None:
        """infos: dict of arrays (E,), or a list of one dict per environment; done_indices: rows (environment-major)."""
        rows = done_indices.reshape(-1).tolist()
        if not infos or not rows:
            return
        for env in sorted({row // self.num_agents for row in rows}):
            score = _score(infos, env, self.num_agents)
            if score is not None:
                self.scores.append(score)

    def after_clear_stats(self) -> None:
        self.scores.clear()

    def metrics(self) -> dict[str, float]:
        return {"scores/mean": float(np.mean(self.scores))} if self.scores else {}


def _is_scalar(value: Any) -> bool:
    return isinstance(value, int | float | np.number) or (isinstance(value, torch.Tensor) and value.ndim == 0)


SUCCESS_RATES = {"success_rate": ("success", "is_success"), "success_at_end_rate": ("success_at_end",)}  # metric -> infos' names for it


@register_observer("episode")
class Episode(Observer):
    """`episode/<key>`: mean over the epoch of what the environment puts into infos['episode'], and the last value of every
    scalar that stands in infos directly. A key counts in whichever steps it appears.

    `episode/success_rate`: share of the last `games_to_track` finished episodes in whose last step infos['success'] (or 'is_success')
    was true; `episode/success_at_end_rate` likewise of infos['success_at_end']."""

    def after_init(self, algo: Any) -> None:
        self.num_agents: int = algo.num_agents
        self.rates = {name: deque[float](maxlen=algo.games_to_track) for name in SUCCESS_RATES}
        self.values: dict[str, list[torch.Tensor]] = defaultdict(list)
        self.direct: dict[str, Any] = {}

    def reads(self, infos: Any) -> bool:
        return isinstance(infos, dict) and (
            "episode" in infos
            or any(key in infos for keys in SUCCESS_RATES.values() for key in keys)
            or any(_is_scalar(value) for value in infos.values())
        )

    def process_infos(self, infos: Any, done_indices: torch.Tensor) -> None:
        if not isinstance(infos, dict):
            return
        episode = infos.get("episode")
        for key, value in (episode if isinstance(episode, dict) else {}).items():
            value = torch.as_tensor(value).detach()
            mask = infos.get("_episode")  # gymnasium: the environments that have the entry
            if mask is not None and value.ndim > 0:
                value = value[torch.as_tensor(mask, dtype=torch.bool, device=value.device)]
            if value.numel() > 0:
                self.values[key].append(value.float().mean())  # stays on its device: no synchronisation in the rollout
        for key, value in infos.items():
            if _is_scalar(value):
                self.direct[key] = value
        self._note_success(infos, done_indices)

    def _note_success(self, infos: dict[str, Any], done_indices: torch.Tensor) -> None:
        known = [(self.rates[name], next((k for k in keys if k in infos), None)) for name, keys in SUCCESS_RATES.items()]
        if all(key is None for _, key in known):
            return
        for env in sorted({row // self.num_agents for row in done_indices.reshape(-1).tolist()}):
            for rate, key in known:
                value = None if key is None or _is_scalar(infos[key]) else _entry(infos, key, env)
                if value is not None:
                    rate.append(float(value > 0.5))

    def after_clear_stats(self) -> None:
        for rate in self.rates.values():
            rate.clear()

    def metrics(self) -> dict[str, float]:
        rates = {f"episode/{name}": float(np.mean(rate)) for name, rate in self.rates.items() if rate}
        found = {f"episode/{key}": float(value) for key, value in self.direct.items()}
        found.update({f"episode/{key}": float(torch.stack(values).mean()) for key, values in self.values.items()})
        self.values.clear()
        self.direct.clear()
        return {**found, **rates}


@register_observer("metrics_file")
class MetricsFile(Observer):
    """Every epoch's metrics, one line in metrics.jsonl."""

    def on_epoch(self, metrics: dict[str, float]) -> None:
        self.run.dir.append_metrics(metrics)

    def close(self) -> None:
        self.run.dir.close()


TENSORBOARD_CURVES = {  # metric -> rl_games' tag without its axis: drawn over frames, epochs and seconds
    "return_mean": "rewards",
    "shaped_return_mean": "shaped_rewards",
    "length_mean": "episode_lengths",
    "scores/mean": "scores",
}
TENSORBOARD_NAMES = {
    "fps": "performance/step_inference_rl_update_fps",
    "fps_play": "performance/step_inference_fps",
    "fps_step": "performance/step_fps",
    "time/step": "performance/step_time",
    "time/play": "performance/step_inference_time",
    "time/update": "performance/rl_update_time",
    "epoch": "info/epochs",
}


def tensorboard_curve(key: str) -> str | None:
    """`TENSORBOARD_CURVES`, and for the further reward components `return_mean_1`, ... rl_games' rewards1, ..."""
    if key.startswith("return_mean_"):
        return "rewards" + key.removeprefix("return_mean_")
    return TENSORBOARD_CURVES.get(key)


@register_observer("tensorboard")
class TensorBoard(Observer):
    """Metrics to the agent's writer, under the tags that rl_games' users know; a tag that rl_games lacks is the metric's key."""

    writer: Any = None

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self.tags: dict[str, str] = {}  # as tensorboardX writes them, which it works out anew for every scalar

    def on_train_start(self, agent: Any) -> None:
        self.writer = agent.writer  # None off rank 0

    def on_epoch(self, metrics: dict[str, float]) -> None:
        if self.writer is None:
            return
        over: dict[str, dict[str, float]] = {"frames": {}, "epoch": {}, "seconds": {}}  # dicts: metrics that share a tag write it once
        for key, value in finite(metrics).items():
            stem = tensorboard_curve(key)
            if stem is not None:
                over["frames"][f"{stem}/{'mean' if key == 'scores/mean' else 'step'}"] = value
                over["epoch"][f"{stem}/iter"] = value
                over["seconds"][f"{stem}/time"] = value
            elif key not in ("frames", "seconds"):
                over["frames"][TENSORBOARD_NAMES.get(key, key)] = value
        for step, scalars in over.items():
            if scalars:
                self._write(scalars, metrics[step])

    def _write(self, scalars: Mapping[str, float], step: float) -> None:
        """All scalars of one step as one event: the writer's queue and checksum cost 0.1 ms for each event, whatever is in it. The writer
        of rl_games' SAC is torch's, whose events are others."""
        if isinstance(self.writer, SummaryWriter):
            for tag, x in scalars.items():
                if tag not in self.tags:
                    self.tags[tag] = summary.scalar(tag, x).value[0].tag
            value = summary.Summary.Value
            values = [value(tag=self.tags[tag], simple_value=x) for tag, x in scalars.items()]
            self.writer._get_file_writer().add_summary(summary.Summary(value=values), step)
            return
        for tag, x in scalars.items():
            self.writer.add_scalar(tag, x, step)

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
            self.writer = None


WANDB_MODES = ("offline", "online")


@register_observer("wandb")
class Wandb(Observer):
    """Metrics, config and result to Weights & Biases, over frames. Its files lie in `<run directory>/wandb`.

    Args:
        mode: offline (send later with `wandb sync`) or online.
        project, entity, group, job_type, tags, name: W&B's own; `name` is the run directory's name unless given.
    """

    def __init__(
        self,
        run: Run,
        *,
        mode: str = "offline",
        project: str = "gamesmith",
        entity: str | None = None,
        group: str | None = None,
        job_type: str | None = None,
        tags: Iterable[str] = (),
        name: str | None = None,
    ) -> None:
        """Raises UserError for an unknown mode, or where wandb is not installed."""
        super().__init__(run)
        if mode not in WANDB_MODES:
            raise unknown("mode", mode, ("off", *WANDB_MODES), "wandb")
        try:
            import wandb  # takes a second, and most runs do without it
        except ImportError as error:
            raise UserError("wandb is not installed: pip install wandb, or wandb=off") from error
        self.wandb = wandb
        self.mode = mode
        self.identity: dict[str, Any] = {
            "project": project,
            "entity": entity,
            "group": group,
            "job_type": job_type,
            "tags": list(tags),
            "name": name or run.dir.path.resolve().name,
        }
        self.session: Any = None
        self.ended = False

    def on_train_start(self, agent: Any) -> None:
        """Raises UserError where W&B refuses the run (no login, unknown entity)."""
        try:
            self.session = self.wandb.init(
                mode="online" if self.mode == "online" else "offline",
                dir=str(self.run.dir.path),
                config=self.run.config,
                id=self._run_id(),
                resume="allow" if self.mode == "online" else None,
                settings=self.wandb.Settings(console="off"),  # its capture of stdout tears the progress bar
                **self.identity,
            )
        except self.wandb.errors.Error as error:
            raise UserError(f"wandb={self.mode}: {error}. `wandb login` once, or use wandb=offline") from error
        self.session.define_metric("*", step_metric="frames")

    def on_epoch(self, metrics: dict[str, float]) -> None:
        self.session.log(finite(metrics))

    def on_train_end(self, result: dict[str, Any]) -> None:
        self.session.summary.update(result)
        self.ended = True

    def close(self) -> None:
        """Marks the run as failed at W&B unless training ended properly."""
        session, self.session = self.session, None
        if session is not None:
            session.finish(exit_code=0 if self.ended else 1)

    def _run_id(self) -> str:
        """Made once and kept, so that a resumed run goes on in the same W&B run."""
        file = self.run.dir.path / "wandb" / "run_id"
        if not file.exists():
            file.parent.mkdir(exist_ok=True)
            file.write_text(secrets.token_hex(4), encoding="utf-8")
        return file.read_text(encoding="utf-8")


def finite(metrics: Mapping[str, float]) -> dict[str, float]:
    """Without NaN and infinity, which TensorBoard and W&B draw as gaps at best."""
    return {key: float(value) for key, value in metrics.items() if value is not None and math.isfinite(value)}


def _score(infos: Any, env: int, num_agents: int) -> float | None:
    """The score of the game that ended in environment `env`; None where it has none or goes on with the next life."""
    lives = _entry(infos, "lives", env)
    time_out = _entry(infos, "time_outs", env * num_agents if isinstance(infos, dict) else env)
    if lives is not None and lives > 0 and not time_out:
        return None
    score = _entry(infos, "scores", env)
    if score is None:
        score = _entry(infos, "battle_won", env)
    return None if score is None else float(score)


def _entry(infos: Any, key: str, index: int) -> Any:
    if isinstance(infos, dict):
        column = infos.get(key)
        return None if column is None or index >= len(column) else column[index]
    return infos[index].get(key) if index < len(infos) else None


def _nothing(*arguments: Any) -> None:
    return None
