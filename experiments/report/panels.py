"""What can be drawn, before anyone draws it: charts.py does for the page, figures.py for papers."""

from __future__ import annotations

import dataclasses

from experiments.stats import Band, Estimate

# Okabe and Ito's palette for the colour-blind, in an order that reads on white and on black. Where there are more algorithms
# than colours, dashes tell them apart.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8A8F98")
MARKERS = (("circle", "o"), ("square", "s"), ("diamond", "D"), ("triangle-up", "^"), ("x", "X"), ("star", "*"), ("pentagon", "p"))
DASHES = (("solid", "-"), ("dash", "--"), ("dot", ":"), ("dashdot", "-."))


@dataclasses.dataclass(frozen=True)
class Look:
    """How an algorithm is drawn, everywhere alike."""

    number: int

    @property
    def color(self) -> str:
        return COLORS[self.number % len(COLORS)]

    @property
    def marker(self) -> tuple[str, str]:
        """Plotly's name, Matplotlib's."""
        return MARKERS[self.number % len(MARKERS)]

    @property
    def dash(self) -> tuple[str, str]:
        """Plotly's name, Matplotlib's."""
        return DASHES[self.number // len(COLORS) % len(DASHES)]


@dataclasses.dataclass(frozen=True)
class Row:
    """`algo`: whose legend entry shows and hides it; None: always shown."""

    label: str
    estimate: Estimate
    look: Look
    algo: str | None


@dataclasses.dataclass
class Panel:
    """`name` is unique in a report. `note`: what is shown, in a sentence. `warnings` stand below the title."""

    name: str
    title: str
    note: str
    xlabel: str
    warnings: list[str] = dataclasses.field(default_factory=list)
    mark: float | None = None
    """Where a dotted line stands: of Intervals at this x, of Lines at this y."""


@dataclasses.dataclass
class Intervals(Panel):
    """A figure and its interval in each row."""

    rows: list[Row] = dataclasses.field(default_factory=list)
    span: tuple[float, float] | None = None
    """Of the x axis."""


@dataclasses.dataclass
class Lines(Panel):
    """A curve and its band for each algorithm."""

    ylabel: str = ""
    series: list[tuple[str, Band, Look]] = dataclasses.field(default_factory=list)
    frames: bool = False
    """x counts frames: 200k, 1M."""
