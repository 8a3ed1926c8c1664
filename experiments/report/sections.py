"""A part of the report under one heading."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from experiments.report.panels import Panel
from experiments.report.tables import Table


@dataclasses.dataclass
class Section:
    """`name`: of its figure's files and of its place in the page. `group`: the heading above it, where it begins one."""

    name: str
    title: str
    text: str = ""
    panels: Sequence[Panel] = ()
    tables: list[Table] = dataclasses.field(default_factory=list)
    group: str = ""
    warnings: Sequence[str] = ()
    """Of all its panels; what concerns one of them stands there."""
    commands: Sequence[str] = ()
    """That make all this again."""
    folded: bool = False
    """Its tables are long, and folded on the page."""
