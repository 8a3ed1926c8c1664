"""Figures and findings in words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from experiments.stats import Estimate

ENOUGH = 5
"""Seeds below which every figure says how few there were."""


def number(value: float, like: float | None = None) -> str:
    """About four digits: 4,836; 490.1; -0.52. `like`: with as many decimals as that figure."""
    size = abs(value if like is None else like)
    return f"{value:,.0f}" if size >= 1000 else f"{value:.1f}" if size >= 10 else f"{value:.2f}"


def spread(mean: float, deviation: float | None) -> str:
    """'4,836 ± 1,171'; without a deviation, the mean alone."""
    return number(mean) + ("" if deviation is None else f" ± {number(deviation, like=mean)}")


def count(value: float) -> str:
    """20k, 1M, 1.5M."""
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:.4g}{letter}"
    return f"{value:.4g}"


def duration(seconds: float) -> str:
    """'3.2 s', '18.9 min', '2.1 h'."""
    return f"{seconds:.1f} s" if seconds < 180 else f"{seconds / 60:.1f} min" if seconds < 3 * 3600 else f"{seconds / 3600:.1f} h"


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


def headline(pairs: dict[tuple[str, str], Estimate], seeds: dict[str, int], tasks: int) -> str:
    """What the probabilities of improvement say about the algorithm that is most often ahead.

    pairs: {(X, Y): that a run of X scores above one of Y}, one for each two algorithms; seeds: by algorithm.
    """

    def over(one: str, other: str) -> Estimate:
        return pairs[one, other] if (one, other) in pairs else pairs[other, one].turned()

    others = {one: [other for other in seeds if other != one] for one in seeds}
    ahead = max(seeds, key=lambda one: sum(over(one, other).value for other in others[one]))
    beaten, level, early, unsure = [], [], [], []
    for other in others[ahead]:
        found = over(ahead, other)
        if found.low is None:
            unsure.append(f"{other} (with probability {estimate(found)})")
        elif min(seeds[ahead], seeds[other]) < ENOUGH:  # an interval from so few is too narrow to say who won
            early.append(f"{other} with probability {estimate(found)}")
        elif found.low > 0.5:
            beaten.append(f"{other} with probability {estimate(found)}")
        else:
            level.append(f"{other} (ahead with probability {estimate(found)})")
    said = []
    if beaten:
        said.append(f"beats {join(beaten)}")
    if level:
        said.append(f"cannot be told apart from {join(level)}")
    if early:
        said.append(f"is ahead of {join(early)}")
    if unsure:
        said.append(f"scores above {join(unsure)}, but one seed gives no interval and no finding")
    low = [algo for algo, n in seeds.items() if n < ENOUGH]
    warned = f" {'Only ' + span((seeds[a] for a in low), 'seed')} of {join(low)}: too few to rest a claim on." if low else ""
    return f"{ahead} {'; it '.join(said)}; {span(seeds.values(), 'seed')}, {plural(tasks, 'task')}.{warned}"
