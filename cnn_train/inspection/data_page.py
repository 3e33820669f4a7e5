"""What a check of a data set found: one screen for the terminal, one HTML file without scripts or requests."""

from html import escape
from pathlib import Path

from cnn_train import atomic
from cnn_train.inspection.data_findings import Finding, Report, Table
from cnn_train.inspection.html import document, image
from cnn_train.inspection.html import table as table_of

LINES = 12  # rows of a table, or details of a finding, on the terminal
LISTED = 200  # on the page


def screen(report: Report, page: Path) -> str:
    """The report as text."""
    lines = [f"check     {report.name}"]
    for table in report.tables:
        lines += ["", table.title, *columns(table)]
    lines.append("")
    for finding in sorted(report.findings, key=lambda finding: finding.level != "wrong"):
        lines.append(f"{finding.level:<8}  {finding.topic}: {finding.text}")
        shown = finding.details[:LINES] if finding.level == "wrong" or len(finding.details) <= 3 else []
        lines += [f"            {text}" for text in shown]
        if left := len(finding.details) - len(shown):
            lines.append(
                f"            ... and {left} more, see the page" if shown else f"            {left}, see the page"
            )
    count = sum(finding.level == "wrong" for finding in report.findings)
    wrong = {0: "nothing is wrong", 1: "1 thing is wrong"}.get(count, f"{count} things are wrong")
    lines += [f"result    {wrong}", f"page      {page}"]
    return "\n".join(lines)


def columns(table: Table) -> list[str]:
    """A table in columns, its first rows."""
    rows = [[str(cell) for cell in row] for row in [table.head, *table.rows[:LINES]]]
    widths = [max(len(row[k]) for row in rows) for k in range(len(table.head))]
    text = [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    return text + ([f"  ... and {len(table.rows) - LINES} more, see the page"] if len(table.rows) > LINES else [])


def write(report: Report, page: Path) -> None:
    """Write the page, whole or not at all."""
    page.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_text(page, html(report))


def html(report: Report) -> str:
    """The report as one HTML file."""
    parts = [f"<h1>{escape(report.name)}</h1>"]
    for level, title in (("wrong", "Wrong"), ("remark", "Remarks")):
        found = [finding for finding in report.findings if finding.level == level]
        parts += [f"<h2>{title}: {len(found)}</h2>", *map(_finding, found)]
    for split, picture in report.sheets.items():
        how = "as the network gets them, augmented" if split == "train" else "as the network gets them"
        parts.append(f"<h2>{escape(split)}, {how}</h2>{image(picture, f'images of {split}')}")
    parts += [f"<h2>{escape(table.title)}</h2>{table_of(table.head, table.rows)}" for table in report.tables]
    return document(f"check {report.name}", "".join(parts))


def _finding(finding: Finding) -> str:
    shown = "".join(f"<li>{escape(text)}</li>" for text in finding.details[:LISTED])
    more = len(finding.details) - LISTED
    shown += f"<li>... and {more} more</li>" if more > 0 else ""
    text = f'<p class="{finding.level}">{escape(finding.topic)}: {escape(finding.text)}</p>'
    return text + (f"<ul>{shown}</ul>" if shown else "")
