"""What is printed and drawn."""

from __future__ import annotations

import time
from typing import Any

from experiments.bench.stats import PARTS


def about() -> dict[str, Any]:
    """Machine, package versions, commit, command and date."""
    from core.provenance import provenance

    known = provenance()
    return {"date": time.strftime("%Y-%m-%d %H:%M"), **{key: known[key] for key in ("command", "git", "packages", "hardware")}}


def table(result: dict[str, Any]) -> str:
    """A Markdown table: one line per workload and side."""
    lines = [
        "| workload | side | frames/s | ratio (min to max) | of the raw environment | start s | peak MiB | environment / policy / update / rest |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, workload in result["workloads"].items():
        for side, figures in workload["summary"].items():
            ratio, of_raw, share = figures.get("ratio"), figures.get("of_raw"), figures.get("share")
            cells = [
                f"{name}: {workload['title']}",
                side,
                f"{figures['fps']:,.0f}",
                f"{ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})" if ratio else "",
                f"{of_raw['median']:.0%}" if of_raw else "",
                _number(figures.get("start"), ".1f"),
                _number(figures.get("peak_mib"), ".0f"),
                " / ".join(f"{share[part]:.0%}" for part in PARTS) if share else "",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
