"""The picture of a run: its return over frames, and beside it what usually explains it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from core.files import write_through
from core.run_dir import read_metrics

SMALL_PANELS = {  # title -> metric
    "episode length": "length_mean",
    "policy loss": "losses/a_loss",
    "value loss": "losses/c_loss",
    "entropy": "losses/entropy",
    "KL": "info/kl",
    "learning rate": "info/last_lr",
}
RAW, SMOOTH = "#9ecae1", "#08519c"


def learning_curve(metrics_path: str | Path, png_path: str | Path, title: str) -> Path:
    """Draws `metrics_path` (metrics.jsonl) into `png_path` and returns it.

    The thick line is the return smoothed over a twentieth of the epochs. A run without a finished episode gets empty axes
    that say so.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure  # not pyplot: no global state, no display; imported late, it takes half a second

    lines = read_metrics(metrics_path)
    panels = {name: key for name, key in SMALL_PANELS.items() if any(line.get(key) is not None for line in lines)}
    columns = 3
    small_rows = -(-len(panels) // columns)
    figure = Figure(figsize=(9, 4.2 + 1.7 * small_rows), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(1 + small_rows, columns, height_ratios=[3.0] + [1.0] * small_rows)

    big = figure.add_subplot(grid[0, :])
    frames, returns = series(lines, "return_mean")
    _draw(big, frames, returns)
    big.set_title(title, loc="left")
    big.set_ylabel("return")
    big.set_xlabel("frames")
    if len(big.lines) > 1:
        big.legend(["each epoch", "smoothed"], loc="best", frameon=False)
    if len(returns) == 0:
        big.set(xticks=[], yticks=[])
        big.text(0.5, 0.5, "no episode has ended yet", ha="center", va="center", transform=big.transAxes)

    for index, (name, key) in enumerate(panels.items()):
        axes = figure.add_subplot(grid[1 + index // columns, index % columns])
        _draw(axes, *series(lines, key))
        axes.set_title(name, fontsize=9, loc="left")
        axes.tick_params(labelsize=7)

    png_path = Path(png_path)
    write_through(png_path, lambda temporary: figure.savefig(temporary, dpi=120, format="png"))
    return png_path


def series(lines: list[dict[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
    """frames (K,), values (K,): the K epochs that have the metric."""
    pairs = [(line["frames"], line[key]) for line in lines if line.get(key) is not None]
    array = np.asarray(pairs, dtype=float).reshape(-1, 2)
    return array[:, 0], array[:, 1]


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """Centred mean over `window` neighbours, of those that exist at the ends. Same length as `values`."""
    if len(values) == 0:
        return values
    half = window // 2
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    low, high = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)


def _draw(axes: Any, frames: np.ndarray, values: np.ndarray) -> None:
    from matplotlib.ticker import EngFormatter

    window = max(1, len(values) // 20)
    marker = "o" if len(values) == 1 else None  # one point makes no line
    if window > 1:
        axes.plot(frames, values, color=RAW, linewidth=0.8)
    axes.plot(frames, smooth(values, window), color=SMOOTH, linewidth=1.6, marker=marker)
    axes.margins(x=0.01)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))  # 1.2M, not 1.2 with a lost 1e6 in the corner
    axes.grid(alpha=0.3)
