"""report.md."""

from __future__ import annotations

from experiments.report.content import Content
from experiments.report.tables import to_markdown


def markdown(content: Content) -> str:
    lines = [f"# {content.title}", "", f"**{content.headline}**", "", content.about, ""]
    lines += [f"- ⚠ {warning}" for warning in content.warnings] + [""] * bool(content.warnings)
    for section in content.sections:
        if section.group:
            lines += [f"## {section.group}", ""]
        lines += [f"### {section.title}", ""] + [section.text, ""] * bool(section.text)
        if section.panels:
            lines += [f"![{section.title}](figures/{section.name}.png)", ""]
            said = [*section.warnings, *dict.fromkeys(warning for panel in section.panels for warning in panel.warnings)]
            lines += [f"- ⚠ {warning}" for warning in said] + [""] * bool(said)
        if section.commands:
            lines += [*(f"    {command}" for command in section.commands), ""]
        for table in section.tables:
            lines += [to_markdown(table)]
    return "\n".join(lines).rstrip() + "\n"
