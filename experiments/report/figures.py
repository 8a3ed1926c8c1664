"""Panels as pictures for papers: PNG and SVG, the same bytes for the same data.

rliable's plot_utils draws such pictures too, but through pyplot's global state, with seaborn's palette and fixed label positions that
cut long names of algorithms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from experiments.report.panels import Intervals, Lines, Panel

GRID = {"color": "#dddddd", "linewidth": 0.8}
STYLE: Any = {
    "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#777777", "axes.axisbelow": True,
    "svg.hashsalt": "gamesmith", "svg.fonttype": "none",
}  # fmt: skip


def draw(panels: Sequence[Panel], warnings: Sequence[str], stem: Path) -> None:
    """Writes `<stem>.png` and `<stem>.svg`, the warnings below: up to three panels of lines in a row, up to four of intervals."""
    with matplotlib.rc_context(STYLE):
        figure = _figure(panels, [*warnings, *dict.fromkeys(warning for panel in panels for warning in panel.warnings)])
        # without the date and Matplotlib's version the same data make the same bytes
        figure.savefig(stem.with_name(f"{stem.name}.png"), dpi=150, metadata={"Software": None})
        figure.savefig(stem.with_name(f"{stem.name}.svg"), metadata={"Date": None, "Creator": None})


def _figure(panels: Sequence[Panel], warnings: list[str]) -> Figure:
    intervals = isinstance(panels[0], Intervals)
    columns = min(len(panels), 4 if intervals else 3)
    rows = math.ceil(len(panels) / columns)
    width, height = (3.0, 0.95 + 0.28 * len(panels[0].rows)) if isinstance(panels[0], Intervals) else (4.3, 3.1)
    figure = Figure(figsize=(max(width * columns, 4.6), height * rows + 0.17 * len(warnings) + 0.3), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, panel in zip(axes, panels, strict=False):
        axis.set_title(panel.title, loc="left", fontsize=10, fontweight="bold")
        axis.set_xlabel(panel.xlabel)
        if isinstance(panel, Intervals):
            _intervals(axis, panel, named=axis is axes[0])
        elif isinstance(panel, Lines):
            _lines(axis, panel)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    if not intervals:
        found = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
        figure.legend(found.values(), found, loc="outside upper left", ncols=min(len(found), 4) or 1, frameon=False)
    if warnings:
        figure.supxlabel("\n".join(f"! {warning}" for warning in warnings), x=0.01, ha="left", fontsize=7.5, color="#8a4b00")
    return figure


def _intervals(axis: Any, panel: Intervals, named: bool) -> None:
    for y, row in enumerate(panel.rows):
        e = row.estimate
        if e.low is not None and e.high is not None:
            axis.plot([e.low, e.high], [y, y], color=row.look.color, linewidth=3, solid_capstyle="butt")
        axis.plot([e.value], [y], color=row.look.color, marker=row.look.marker[1], markersize=7, linestyle="")
    axis.set_yticks(range(len(panel.rows)), [row.label for row in panel.rows] if named else [""] * len(panel.rows))
    axis.set_ylim(len(panel.rows) - 0.5, -0.5)
    axis.tick_params(axis="y", length=0)
    axis.grid(axis="x", **GRID)
    axis.xaxis.set_major_locator(MaxNLocator(5))
    if panel.span:
        low, high = panel.span
        axis.set_xlim(low - 0.03 * (high - low), high + 0.03 * (high - low))
    if panel.mark is not None:
        axis.axvline(panel.mark, color="#777777", linestyle=":", zorder=0)


def _lines(axis: Any, panel: Lines) -> None:
    for algo, band, look in panel.series:
        marker = "o" if len(band.x) == 1 else None
        axis.plot(band.x, band.value, color=look.color, linestyle=look.dash[1], linewidth=1.8, label=algo, marker=marker)
        if band.low is not None and band.high is not None:
            axis.fill_between(band.x, band.low, band.high, color=look.color, alpha=0.2, linewidth=0)
    axis.set_ylabel(panel.ylabel)
    axis.grid(**GRID)
    axis.margins(x=0.01)
    if panel.frames:
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
