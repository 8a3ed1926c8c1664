"""Tables: once put together, written as CSV (every digit), LaTeX and Markdown; the page's template lays them out itself."""

from __future__ import annotations

import csv
import dataclasses
import io
from typing import Any


@dataclasses.dataclass
class Cell:
    """`text` as it is read; `values`: the figures behind it, by what follows the column's name in the CSV ("" for the column itself);
    `warnings`: what must be known about it; `bold`: the figure that the statistics are made from."""

    text: str
    values: dict[str, Any] = dataclasses.field(default_factory=dict)
    warnings: list[str] = dataclasses.field(default_factory=list)
    bold: bool = False


@dataclasses.dataclass
class Table:
    name: str
    title: str
    head: list[str]
    rows: list[list[Cell]]
    extra: list[dict[str, Any]] | None = None
    """Further columns of the CSV, by row."""

    def numeric(self, column: int) -> bool:
        return any(row[column].values for row in self.rows)


def text(value: Any) -> Cell:
    return Cell(str(value))


def to_csv(table: Table) -> str:
    """One line a row, with a column `warnings` at the end."""
    lines = []
    for number, row in enumerate(table.rows):
        line: dict[str, Any] = {}
        for head, cell in zip(table.head, row, strict=True):
            for suffix, value in (cell.values or {"": cell.text}).items():
                line[f"{head} {suffix}".strip()] = value
        if table.extra:
            line.update(table.extra[number])
        line["warnings"] = "; ".join(dict.fromkeys(warning for cell in row for warning in cell.warnings))
        lines.append(line)
    columns = [name for name in dict.fromkeys(name for line in lines for name in line) if name != "warnings"]
    out = io.StringIO()
    writer = csv.DictWriter(out, [*columns, "warnings"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return out.getvalue()


def to_markdown(table: Table) -> str:
    rule = ["---:" if table.numeric(column) else "---" for column in range(len(table.head))]
    lines = [table.head, rule]
    lines += [[_marked(cell) for cell in row] for row in table.rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def to_latex(table: Table) -> str:
    r"""A table environment for \usepackage{booktabs}; warnings are its footnotes."""
    notes: dict[str, str] = {}
    body = []
    for row in table.rows:
        cells = []
        for cell in row:
            marks = [notes.setdefault(warning, _letter(len(notes))) for warning in cell.warnings]
            cells.append(_escape(cell.text) + (f"$^{{{','.join(marks)}}}$" if marks else ""))
        body.append(" & ".join(cells) + r" \\")
    columns = "".join("r" if table.numeric(column) else "l" for column in range(len(table.head)))
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_escape(table.title)}}}",
        rf"\label{{tab:{table.name}}}",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        " & ".join(_escape(head) for head in table.head) + r" \\",
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
        *(rf"\par\footnotesize $^{{{letter}}}$ {_escape(warning)}." for warning, letter in notes.items()),
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _marked(cell: Cell) -> str:
    return "<br>".join([cell.text, *(f"⚠ {warning}" for warning in cell.warnings)]).replace("|", "\\|").replace("\n", " ")


def _letter(number: int) -> str:
    """a, b, ..., z, aa, ab, ..."""
    return (_letter(number // 26 - 1) if number >= 26 else "") + chr(ord("a") + number % 26)


LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", ">": "$>$", "<": "$<$", "—": "---",
}  # fmt: skip


def _escape(words: str) -> str:
    return "".join(LATEX.get(letter, letter) for letter in words)
