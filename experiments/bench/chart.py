"""The pictures: bars per workload and side, and frames per second against the number of environments."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.ticker import FuncFormatter, NullLocator

from experiments.bench.stats import PARTS

SIDES = ("#1f6fb4", "#e08a1e", "#3a9a5c", "#9467bd", "#c44e52", "#17a2b8", "#8c6d4f", "#d175b7")
STOCK = "#8a8f98"
LABEL = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
WORK = {"environment": "#4c9f70", "policy": "#3f7fbf", "update": "#e0a23c", "bookkeeping": "#b7bcc4"}


def bars(result: dict[str, Any], path: Path) -> None:
    """One row per workload: the ratio of each side with its range over the rounds, and where 1,000 frames' time goes."""
    workloads = result["workloads"]
    heights = [len(w["summary"]) + 1.2 for w in workloads.values()]
    colors = _colors(result)
    figure, axes = plt.subplots(
        len(workloads),
        2,
        figsize=(12, 0.42 * sum(heights) + 1.6),
        squeeze=False,
        gridspec_kw={"height_ratios": heights},
        layout="constrained",
    )
    for (name, workload), (left, right) in zip(workloads.items(), axes, strict=True):
        _ratios(left, name, workload, colors)
        _work(right, workload)
    heads = ("frames per second, relative to the dotted line; whiskers: lowest and highest round", "milliseconds per 1,000 frames")
    for axis, head in zip(axes[0], heads, strict=True):
        axis.annotate(head, (0, 1), (0, 24), "axes fraction", textcoords="offset points", fontsize=9, color="#555555")
    handles = [plt.Rectangle((0, 0), 1, 1, color=color) for color in WORK.values()]
    figure.legend(handles, WORK, loc="outside upper right", ncols=4, frameon=False, fontsize=9)
    figure.suptitle("Training speed", x=0.01, ha="left", fontsize=13, fontweight="bold")
    figure.supxlabel(footer(result), fontsize=8, color="#555555", x=0.01, ha="left")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def curves(scaling: dict[str, Any], path: Path, foot: str) -> None:
    """Frames per second against the number of environments; one panel per kind of environment."""
    titles = {"envpool": "EnvPool CartPole", "torch": f"CartPole in torch, on {scaling['device']}"}
    kinds = [kind for kind in titles if scaling.get(kind)]
    figure, axes = plt.subplots(1, len(kinds), figsize=(6.2 * len(kinds), 4.6), squeeze=False, layout="constrained")
    for axis, kind in zip(axes[0], kinds, strict=True):
        sides = [side for side in scaling[kind] if side not in ("stock", "raw")]
        colors = {"stock": STOCK, "raw": "#222222", **dict(zip(sides, SIDES * 9, strict=False))}
        for side, points in scaling[kind].items():
            counts = sorted(int(n) for n in points)
            fps = [points[str(n)] for n in counts]
            label = "environment alone" if side == "raw" else side
            style = {"linestyle": ":", "marker": ""} if side == "raw" else {"marker": "o", "markersize": 4}
            axis.plot(counts, fps, color=colors[side], label=label, **style)
        axis.set(xscale="log", yscale="log", xlabel="environments", title=titles[kind])
        axis.set_xticks(counts, [f"{n:,}" for n in counts], fontsize=8, rotation=30)
        axis.xaxis.set_minor_locator(NullLocator())
        axis.yaxis.set_major_formatter(FuncFormatter(_thousands))
        axis.grid(alpha=0.25)
        axis.legend(frameon=False)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel("frames per second")
    figure.supxlabel(textwrap.fill(foot, 95 * len(kinds)), fontsize=8, color="#555555", x=0.01, ha="left")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def footer(result: dict[str, Any]) -> str:
    """Machine, versions, commit and date in one line."""
    hardware, packages, git = result["hardware"], result["packages"], result["git"] or {}
    gpus = f", {', '.join(hardware['gpus'])}" if hardware["gpus"] else ""
    versions = ", ".join(f"{name} {packages[name]}" for name in ("rl_games", "torch", "envpool") if packages.get(name))
    commit = (git.get("commit") or "no commit")[:9] + (" + changes" if git.get("differs") else "")
    return f"{hardware['cpu']}, {hardware['cores']} cores{gpus}; {versions}; commit {commit}; {result['date']}"


def _ratios(axis: Any, name: str, workload: dict[str, Any], colors: dict[str, str]) -> None:
    summary = workload["summary"]
    ratios = [figures["ratio"] for figures in summary.values()]
    medians = [r["median"] for r in ratios]
    spread = [[r["median"] - r["min"] for r in ratios], [r["max"] - r["median"] for r in ratios]]
    axis.barh(
        range(len(summary)), medians, xerr=spread, height=0.7, color=[colors[s] for s in summary], error_kw={"lw": 1, "ecolor": "#333333"}
    )
    end = max(r["max"] for r in ratios)
    for row, (ratio, figures) in enumerate(zip(ratios, summary.values(), strict=True)):
        axis.text(
            ratio["max"] + 0.015 * end, row, f" {ratio['median']:.2f}x   {figures['fps']:,.0f}/s", va="center", fontsize=9, bbox=LABEL
        )
    axis.axvline(1, color="#333333", lw=0.8, ls=":", zorder=0)
    axis.set_xlim(0, end * 1.42)
    axis.set_title(f"{name}: {workload['title']}, relative to {workload['base']}", loc="left", fontsize=10, fontweight="bold")
    _tidy(axis, list(summary))


def _work(axis: Any, workload: dict[str, Any]) -> None:
    summary = workload["summary"]
    end = max(1e6 / figures["fps"] for figures in summary.values())
    for row, figures in enumerate(summary.values()):
        total, share, left = 1e6 / figures["fps"], figures.get("share"), 0.0
        if not share:
            axis.barh(row, total, height=0.7, color="white", edgecolor="#999999", hatch="///")
            axis.text(total + 0.01 * end, row, "not split", va="center", fontsize=8, color="#777777")
            continue
        for part in PARTS:
            axis.barh(row, total * share[part], left=left, height=0.7, color=WORK[part])
            if share[part] * total > 0.07 * end:
                axis.text(left + total * share[part] / 2, row, f"{share[part]:.0%}", ha="center", va="center", fontsize=8, color="white")
            left += total * share[part]
    axis.set_xlim(0, end * 1.08)
    _tidy(axis, [""] * len(summary))


def _tidy(axis: Any, labels: list[str]) -> None:
    axis.set_yticks(range(len(labels)), labels)
    axis.invert_yaxis()
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(axis="y", length=0)
    axis.tick_params(axis="x", labelsize=8)


def _colors(result: dict[str, Any]) -> dict[str, str]:
    """A side has one colour in every row."""
    names = dict.fromkeys(side for w in result["workloads"].values() for side in w["summary"] if side != "stock")
    return {"stock": STOCK, **dict(zip(names, SIDES * 9, strict=False))}


def _thousands(value: float, _: Any) -> str:
    return f"{value / 1e6:g}M" if value >= 1e6 else f"{value / 1e3:g}k" if value >= 1e3 else f"{value:g}"
