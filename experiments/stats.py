"""How sure we are: rliable's estimates with 95% stratified bootstrap intervals (Agarwal et al. 2021, arXiv:2108.13264).

Scores stand in matrices (runs, tasks); the bootstrap draws runs within each task. Every function draws anew from `seed`, so that a
report is the same each time. A single run has no interval: drawn from itself again and again it would look certain.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from rliable import library, metrics

AGGREGATES: dict[str, Callable[[np.ndarray], Any]] = {
    "IQM": metrics.aggregate_iqm,
    "median": metrics.aggregate_median,
    "mean": metrics.aggregate_mean,
    "optimality gap": metrics.aggregate_optimality_gap,
}


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A figure and its 95% interval, None where `runs` is 1."""

    value: float
    low: float | None
    high: float | None
    runs: int

    def turned(self) -> Estimate:
        """Of a probability: that of the opposite."""
        if self.low is None or self.high is None:
            return dataclasses.replace(self, value=1 - self.value)
        return Estimate(1 - self.value, 1 - self.high, 1 - self.low, self.runs)


@dataclasses.dataclass(frozen=True)
class Band:
    """A curve and its pointwise 95% band: each (G,); the band is None where `runs` is 1."""

    x: np.ndarray
    value: np.ndarray
    low: np.ndarray | None
    high: np.ndarray | None
    runs: int


def aggregates(scores: np.ndarray, reps: int, seed: int = 0) -> dict[str, Estimate]:
    """scores: (runs, tasks), normalised. One Estimate for each of AGGREGATES."""
    value, low, high = _intervals(scores, lambda s: np.array([f(s) for f in AGGREGATES.values()]), reps, seed)
    return {
        name: Estimate(float(v), lo, hi, len(scores))
        for name, v, lo, hi in zip(AGGREGATES, value, _each(low, value), _each(high, value), strict=True)
    }


def profile(scores: np.ndarray, taus: np.ndarray, reps: int, seed: int = 0) -> Band:
    """Fraction of runs that score above each of `taus` (G,). scores: (runs, tasks), normalised."""
    value, low, high = _intervals(scores, lambda s: np.mean(s[..., None] > taus, axis=(0, 1)), reps, seed)
    return Band(taus, value, low, high, len(scores))


def improvement(x: np.ndarray, y: np.ndarray, reps: int, seed: int = 0) -> Estimate:
    """The probability that a run of X scores above a run of Y on a task drawn from the suite; ties count half.

    x, y: (runs of X, tasks), (runs of Y, tasks), in any unit that orders runs within a task.
    """
    value, low, high = _intervals([x, y], lambda a, b: np.atleast_1d(probability_above(a, b)), reps, seed)
    return Estimate(float(value[0]), _each(low, value)[0], _each(high, value)[0], min(len(x), len(y)))


def probability_above(x: np.ndarray, y: np.ndarray) -> float:
    """rliable.metrics.probability_of_improvement, in one array operation: its Mann-Whitney test computes p-values that nobody
    reads, which makes 2,000 draws take 6 s for each pair, and it cannot take a task on which all runs score the same."""
    above = (x[:, None] > y[None]) + 0.5 * (x[:, None] == y[None])  # (runs of X, runs of Y, tasks)
    return float(above.mean())


def curve(x: np.ndarray, values: np.ndarray, how: str, reps: int, seed: int = 0) -> Band | None:
    """The "IQM" or "mean" over runs and tasks at each point. x: (G,), values: (runs, tasks, G).

    Points at which a run has no value yet are left out; None where none is left.
    """
    known = ~np.isnan(values).any(axis=(0, 1))
    if not known.any():
        return None
    share = {"IQM": 0.25, "mean": 0.0}[how]
    value, low, high = _intervals(values[..., known], lambda v: _trimmed_mean(v.reshape(-1, v.shape[-1]), share), reps, seed)
    return Band(x[known], value, low, high, len(values))


def _intervals(scores: np.ndarray | list[np.ndarray], of: Callable[..., np.ndarray], reps: int, seed: int) -> tuple[Any, Any, Any]:
    """value, low, high: each as `of` returns it; low and high None where there is but one run to draw from."""
    if min(len(s) for s in (scores if isinstance(scores, list) else [scores])) == 1:
        return (of(*scores) if isinstance(scores, list) else of(scores)), None, None
    with _drawing_from(seed):
        values, ends = library.get_interval_estimates({"": scores}, of, reps=reps)
    return values[""], ends[""][0], ends[""][1]


@contextlib.contextmanager
def _drawing_from(seed: int) -> Iterator[None]:
    """rliable draws from NumPy's global state whatever `random_state` it is given; the state is left as it was."""
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(state)


def _trimmed_mean(values: np.ndarray, share: float) -> np.ndarray:
    """(K, G) -> (G,): the mean without the `share` at either end, rounded down. SciPy's checks its arguments for longer than it works."""
    cut = int(share * len(values))
    return np.sort(values, axis=0)[cut : len(values) - cut].mean(axis=0)


def _each(ends: np.ndarray | None, like: np.ndarray) -> list[float | None]:
    return [None] * len(like) if ends is None else [float(end) for end in ends]
