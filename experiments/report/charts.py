"""Panels as Plotly charts: plain data for plotly.js. Colours of text, grid and background are the page's CSS, so that light, dark and
print need no second drawing."""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments.report import words
from experiments.report.panels import Intervals, Lines, Panel

FONT = {"family": '-apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans", "Liberation Sans", Arial, sans-serif', "size": 13}
MUTED = "#8a8f98"


def chart(panel: Panel) -> dict[str, Any]:
    """{"data", "layout"} for Plotly.newPlot. A trace's `meta` is the algorithm that it belongs to, null where it is always shown."""
    if isinstance(panel, Intervals):
        return _intervals(panel)
    assert isinstance(panel, Lines), "panels.py has these two"
    return _lines(panel)


def _intervals(panel: Intervals) -> dict[str, Any]:
    data = []
    for row in panel.rows:
        e = row.estimate
        trace = {
            "type": "scatter",
            "mode": "markers",
            "name": row.label,
            "meta": row.algo,
            "x": [e.value],
            "y": [row.label],
            "marker": {"color": row.look.color, "symbol": row.look.marker[0], "size": 11},
            "hovertemplate": f"{words.estimate(e)}<br>{words.plural(e.runs, 'seed')}<extra>{row.label}</extra>",
        }
        if e.low is not None and e.high is not None:
            bars = {"array": [e.high - e.value], "arrayminus": [e.value - e.low]}
            trace["error_x"] = {"type": "data", "symmetric": False, **bars, "color": row.look.color, "thickness": 3, "width": 7}
        data.append(trace)
    layout = _layout(panel)
    layout["height"] = 74 + 38 * len(panel.rows)
    layout["hovermode"] = "closest"
    layout["showlegend"] = False
    labels = [row.label for row in panel.rows]
    layout["yaxis"].update(type="category", categoryarray=labels, range=[len(labels) - 0.5, -0.5], fixedrange=True, showgrid=False)
    layout["xaxis"].update(nticks=6)
    if panel.span:
        low, high = panel.span
        layout["xaxis"]["range"] = [low - 0.03 * (high - low), high + 0.03 * (high - low)]
    if panel.mark is not None:
        layout["shapes"] = [
            {"type": "line", "xref": "x", "yref": "paper", "x0": panel.mark, "x1": panel.mark, "y0": 0, "y1": 1, **_dotted()}
        ]
    return {"data": data, "layout": layout}


def _lines(panel: Lines) -> dict[str, Any]:
    data: list[dict[str, Any]] = []
    for algo, band, look in panel.series:
        x, value = _short(band.x), _short(band.value)
        line: dict[str, Any] = {"type": "scatter", "name": algo, "meta": algo, "legendgroup": algo, "x": x}
        hover = "%{y}"
        if band.low is not None and band.high is not None:
            low, high = _short(band.low), _short(band.high)
            fill = {"fill": "toself", "fillcolor": _faint(look.color), "line": {"width": 0}, "hoverinfo": "skip", "showlegend": False}
            data.append({**line, "mode": "lines", "x": [*x, *reversed(x)], "y": [*high, *reversed(low)], **fill})
            line["customdata"] = [[words.number(lo), words.number(hi)] for lo, hi in zip(low, high, strict=True)]
            hover = "%{y} [%{customdata[0]}, %{customdata[1]}]"
        style = {"color": look.color, "width": 2.4, "dash": look.dash[0]}
        mode = "lines" if len(x) > 1 else "markers"
        data.append({**line, "mode": mode, "y": value, "line": style, "marker": {"color": look.color}, "hovertemplate": hover})
    layout = _layout(panel)
    layout["height"] = 340
    layout["hovermode"] = "x unified"
    layout["showlegend"] = True
    layout["legend"] = {
        "orientation": "h",
        "x": 0,
        "y": 1.02,
        "xanchor": "left",
        "yanchor": "bottom",
        "font": FONT,
        "bgcolor": "rgba(0,0,0,0)",
    }
    layout["yaxis"].update(title={"text": panel.ylabel, "font": FONT, "standoff": 8}, hoverformat=",.4~g")
    layout["xaxis"].update(hoverformat="~s" if panel.frames else ".4~g", rangemode="tozero")
    if panel.frames:
        layout["xaxis"]["tickformat"] = "~s"  # 200k, 1M
    return {"data": data, "layout": layout}


def _layout(panel: Panel) -> dict[str, Any]:
    axis = {"automargin": True, "zeroline": False, "tickfont": FONT, "gridcolor": "#dddddd"}
    return {
        "font": FONT,
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "margin": {"l": 8, "r": 14, "t": 8, "b": 8},
        "xaxis": {**axis, "title": {"text": panel.xlabel, "font": FONT, "standoff": 6}},
        "yaxis": dict(axis),
    }


def _dotted() -> dict[str, Any]:
    return {"line": {"color": MUTED, "width": 1.5, "dash": "dot"}, "layer": "below"}


def _faint(color: str) -> str:
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.2)"


def _short(values: np.ndarray) -> list[float]:
    """Six digits: what a screen can show, in a page of a reasonable size."""
    return [float(f"{value:.6g}") for value in values]
