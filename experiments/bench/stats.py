"""From rounds to what is reported: medians, and ratios within a round."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

Round = dict[str, dict[str, Any]]  # side -> figures of one run, as measure.read returns them; "raw" -> {"fps"}

FIGURES = ("fps", "start", "first_epoch", "peak_mib", "gpu_peak_mib")
PARTS = ("environment", "policy", "update", "bookkeeping")


def summary(rounds: list[Round], bases: Mapping[str, str], with_raw: bool = False) -> dict[str, dict[str, Any]]:
    """Per side, over the rounds:

    fps, start, first_epoch, peak_mib, gpu_peak_mib: medians. share: part of an epoch's time by kind of work, medians.
    ratio: of fps to the side that `bases` names; of_raw: to the raw environment; each within its round, as {"median", "min", "max"}.
    """
    names = list(dict.fromkeys(name for r in rounds for name in r if with_raw or name != "raw"))
    return {name: _side([r for r in rounds if name in r], name, bases.get(name, "")) for name in names}


def ratios(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def _side(rounds: list[Round], name: str, base: str) -> dict[str, Any]:
    runs = [r[name] for r in rounds]
    result: dict[str, Any] = {figure: _median([run.get(figure) for run in runs]) for figure in FIGURES}
    paired = [r[name]["fps"] / r[base]["fps"] for r in rounds if base in r]
    if paired:
        result["ratio"] = ratios(paired)
    of_raw = [r[name]["fps"] / r["raw"]["fps"] for r in rounds if "raw" in r]
    if of_raw:
        result["of_raw"] = ratios(of_raw)
    split = [run["seconds"] for run in runs if run.get("seconds")]
    if split:
        totals = [sum(seconds.values()) for seconds in split]
        result["share"] = {part: statistics.median(s[part] / total for s, total in zip(split, totals, strict=True)) for part in PARTS}
    return result


def _median(values: list[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return statistics.median(known) if known else None
