"""What a report says: sections of text, panels and tables, the same for the page and for report.md."""

from __future__ import annotations

import dataclasses

from experiments.report import origin, overview, per_task
from experiments.report.options import Options
from experiments.report.sections import Section
from experiments.report.selection import Selection
from experiments.results import Results


@dataclasses.dataclass
class Content:
    title: str
    headline: str
    about: str
    """What was compared, in a line."""
    warnings: list[str]
    """Of the whole."""
    sections: list[Section]


def build(results: Results, options: Options) -> Content:
    """Raises UserError where no run has come to its end."""
    selection = Selection(results, options)
    selection.check()
    return Content(
        title=f"{results.suite}: {', '.join(results.algos)}",
        headline=overview.headline(selection),
        about=overview.about(selection),
        warnings=overview.warnings(selection),
        sections=[*overview.sections(selection), *per_task.sections(selection), *origin.sections(selection)],
    )
