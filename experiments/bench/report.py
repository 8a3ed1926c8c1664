"""What is printed and written: bench.json, bench.md, bench.png, scaling.png."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from experiments.bench import chart, peers, scaling
from experiments.bench.sides import Side
from experiments.bench.stats import PARTS


def about(sides: Iterable[Side]) -> dict[str, Any]:
    """Date, command, machine, package versions, this repository's commit and, by side, each measured checkout's."""
    from core.provenance import git_state, provenance

    known = provenance()
    found = {key: known[key] for key in ("command", "git", "packages", "hardware")}
    found["packages"].update(
        {peers.PEERS[s.peer].distribution: peers.version(s.peer) for s in sides if s.peer and peers.PEERS[s.peer].distribution}
    )
    commits = {s.name: {"overrides": list(s.overrides), **(git_state(s.checkout) or {})} for s in sides if s.checkout}
    return {"date": time.strftime("%Y-%m-%d %H:%M"), **found, "sides": commits}


def write(result: dict[str, Any], out: Path) -> None:
    """Writes what is known so far into the folder `out`."""
    (out / "bench.json").write_text(json.dumps(result, indent=1) + "\n")
    text = [chart.footer(result), ""]
    if result["workloads"]:
        text.append(table(result))
        chart.bars(result, out / "bench.png")
    if "scaling" in result:
        text.append(scaling.table(result["scaling"]))
        chart.curves(result["scaling"], out / "scaling.png", chart.footer(result))
    text += [f"Disturbed: {line}." for workload in result["workloads"].values() for line in workload["disturbed"]]
    text += [f"Not measured: {line}." for line in result["not_measured"]]
    (out / "bench.md").write_text("\n".join(text).rstrip() + "\n")


def table(result: dict[str, Any]) -> str:
    """A Markdown table: one line per workload and side, medians over the rounds."""
    lines = [
        f"| workload | side | frames/s | ratio (min to max) | of raw env | start s | peak MiB | {' / '.join(PARTS)} |",
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
