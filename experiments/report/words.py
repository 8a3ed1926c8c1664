"""Figures and findings in words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from experiments.stats import Estimate

ENOUGH = 5
"""Seeds below which every figure says how few there were."""


def number(value: float) -> str:
    """About four digits: 4,836; 490.1; -0.52."""
    size = abs(value)
    return f"{value:,.0f}" if size >= 1000 else f"{value:.1f}" if size >= 10 else f"{value:.2f}"


def count(value: float) -> str:
    """20k, 1M, 1.5M."""
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:.4g}{letter}"
    return f"{value:.4g}"


def estimate(found: Estimate) -> str:
    """'0.93 [0.85, 0.98]'."""
    if found.low is None or found.high is None:
        return number(found.value)
    return f"{number(found.value)} [{number(found.low)}, {number(found.high)}]"


def plural(how_many: int, what: str) -> str:
    return f"{how_many} {what}" + ("" if how_many == 1 else "s")


def span(counts: Iterable[int], what: str) -> str:
    """'10 seeds', '3 to 5 seeds'."""
    low, high = min(counts := list(counts)), max(counts)
    return plural(low, what) if low == high else f"{low} to {high} {what}s"


def join(parts: Sequence[str]) -> str:
    """'A', 'A and B', 'A, B and C'."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def few(seeds: int) -> list[str]:
    """The warning that so few seeds deserve, if any."""
    if seeds == 1:
        return ["1 seed only: no interval"]
    return [f"{seeds} seeds only: the interval is too narrow to trust"] if seeds < ENOUGH else []


def headline(pairs: dict[tuple[str, str], Estimate], algos: Sequence[str], seeds: Iterable[int], tasks: int) -> str:
    """What the probabilities of improvement say about the algorithm that is most often ahead.

    pairs: {(X, Y): that a run of X scores above one of Y}, one for each two of `algos`; seeds: of each algorithm.
    """
    seeds = list(seeds)

    def over(one: str, other: str) -> Estimate:
        return pairs[one, other] if (one, other) in pairs else pairs[other, one].turned()

    others = {one: [other for other in algos if other != one] for one in algos}
    ahead = max(algos, key=lambda one: sum(over(one, other).value for other in others[one]))
    found = {other: over(ahead, other) for other in others[ahead]}
    beaten = [f"{other} with probability {estimate(e)}" for other, e in found.items() if e.low is not None and e.low > 0.5]
    open_ = [f"{other} ({estimate(e)})" for other, e in found.items() if e.low is not None and e.low <= 0.5]
    unknown = [f"{other} ({estimate(e)})" for other, e in found.items() if e.low is None]
    said = []
    if beaten:
        said.append(f"{ahead} beats {join(beaten)}")
    if open_:
        said.append(f"{'it' if said else ahead} cannot be told apart from {join(open_)}")
    if unknown:
        said.append(f"{'it' if said else ahead} scores above {join(unknown)}, but a single seed gives no interval and no finding")
    return f"{'; '.join(said)}; {span(seeds, 'seed')}, {plural(tasks, 'task')}." + (
        f" Fewer than {ENOUGH} seeds: do not rest a claim on this." if min(seeds) < ENOUGH else ""
    )
