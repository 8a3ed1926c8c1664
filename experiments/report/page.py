"""index.html: one file with everything in it, so that it opens from a disk, an e-mail or a paper's supplement, without a network."""

from __future__ import annotations

import json
from pathlib import Path

import jinja2
from plotly.offline import get_plotlyjs

from experiments.report.charts import chart
from experiments.report.content import Content

HERE = Path(__file__).resolve().parent


def html(content: Content) -> str:
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    charts = {panel.name: chart(panel) for section in content.sections for panel in section.panels}
    return environment.get_template("page.html").render(
        content=content,
        css=(HERE / "page.css").read_text(encoding="utf-8"),
        script=(HERE / "page.js").read_text(encoding="utf-8"),
        plotly=get_plotlyjs(),
        charts=_in_script(charts),
    )


def _in_script(data: object) -> str:
    """JSON that cannot end the script element it stands in, whatever names an algorithm has."""
    return json.dumps(data, allow_nan=False).replace("<", "\\u003c")
