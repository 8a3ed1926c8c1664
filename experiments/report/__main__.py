"""`python -m experiments.report suite=mujoco algos=[PPO,MyAlgo]`: writes index.html, report.md, tables/ and figures/."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from core.cli import main_guard
from core.errors import UserError
from experiments.report.options import HELP, parse


def main(argv: Sequence[str] | None = None) -> Path:
    """Returns the page's path. Raises UserError for options and runs that do not make a report."""
    from experiments import results  # after the options: a misspelt one is told at once
    from experiments.report import content, document, figures, page, per_task, tables
    from experiments.report.selection import Selection

    options = parse(sys.argv[1:] if argv is None else argv)
    found = results.load(options.suite, options.runs_dir, options.algos, options.tasks, options.frames)
    said = content.build(found, options)
    out = options.out or options.runs_dir / found.suite / "report"
    try:
        for folder in (out, out / "tables", out / "figures"):
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write the report to '{out}': {error.strerror or error}") from error
    for section in said.sections:
        if section.panels:
            figures.draw(section.panels, section.warnings, out / "figures" / section.name)
    all_tasks = per_task.table(Selection(found, options), found.tasks, "tasks", "Returns by task, mean ± standard deviation over seeds")
    for table in (all_tasks, *(table for section in said.sections for table in section.tables)):
        (out / "tables" / f"{table.name}.csv").write_text(tables.to_csv(table), encoding="utf-8")
        (out / "tables" / f"{table.name}.tex").write_text(tables.to_latex(table), encoding="utf-8")
    (out / "report.md").write_text(document.markdown(said), encoding="utf-8")
    (out / "index.html").write_text(page.html(said), encoding="utf-8")
    return out / "index.html"


if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(HELP)
    else:
        with main_guard():
            print(f"report: {main()}")
