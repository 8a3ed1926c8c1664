"""What a run hands to its agent beside config and environment."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.ranks import Ranks
from core.registry import AlgoEntry

if TYPE_CHECKING:
    from core.observers import Observers


@dataclasses.dataclass
class RunContext:
    """Built by `core.runner`, read by `algos.agent`."""

    entry: AlgoEntry  # the algorithm's registration
    run_path: Path  # the run directory; holds nn/ and summaries/
    observers: Observers
    cfg: dict[str, Any]  # the whole resolved config; goes into checkpoints, so that they can be played alone
    save_interval: float = 60.0  # seconds between writes of nn/last.pth
    evaluate: Callable[[dict[str, Any]], dict[str, float]] | None = None  # checkpoint -> metrics of an evaluation in training
    stop_requested: str | None = None  # exit reason, set by a signal handler; honoured at the end of the epoch
    ranks: Ranks = dataclasses.field(default_factory=Ranks)  # the processes that train together; here: this one alone
