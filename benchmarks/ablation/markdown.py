"""An ablation as Markdown. Pure; names come from files, so nothing of them is markup."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.ablation.figures import convergence_figures, table_figures
from benchmarks.ablation.findings import summary
from benchmarks.ablation.report import AblateReport, Convergence, RowScore, Table
from benchmarks.ablation.words import (
    HOST_HALF,
    NOTES,
    cautions,
    change_words,
    machine_line,
    mean_words,
    share_words,
    subtitle,
    title,
)
from ztdeploy.core.text import markdown_text
from ztdeploy.report.kit.figure import Figure


def markdown(report: AblateReport, folder: str = "") -> str:
    """
    Args:
        folder: where the plots lie, seen from the text, such as "img/"; empty: beside it.
    """
    lines = [f"# {markdown_text(title(report))}", "", f"{markdown_text(subtitle(report))}.", ""]
    lines += [*(line for sentence in summary(report) for line in (markdown_text(sentence), "")), HOST_HALF, ""]
    lines += [f"- {markdown_text(line)}" for line in cautions(report)] + ([""] if cautions(report) else [])
    for table in report.tables:
        lines += _section(table, folder)
    if report.convergence is not None:
        lines += _convergence(report.convergence, folder)
    lines += ["## How to read this", "", *(f"- **{name}**: {text}" for name, text in NOTES.items()), ""]
    lines += [
        f"{markdown_text(machine_line(report))}; weights sha256 {report.model.sha256[:12]}, "
        f"images sha256 {report.data.digest[:12]}."
    ]
    return "\n".join(lines) + "\n"


def _section(table: Table, folder: str) -> list[str]:
    lines = [f"## {table.title}", "", table.question, ""]
    lines += [line for sentence in table.findings for line in (markdown_text(sentence), "")]
    labelled = any(row.top1 is not None for row in table.rows)
    staircase = any(row.step is not None for row in table.rows)
    heads = [
        "",
        "KL from dense, nats",
        f"less {markdown_text(table.reference)}",
        *(["against the row above"] if staircase else []),
    ]
    heads += ["agreement, %", *(["top-1, %", "less dense, points"] if labelled else []), "keep", "GMACs"]
    rows = [_cells(row, table, labelled=labelled, staircase=staircase) for row in table.rows]
    return [*lines, *_table(heads, rows), "", *_images(list(table_figures(table)), folder)]


def _cells(row: RowScore, table: Table, *, labelled: bool, staircase: bool) -> list[str]:
    reference = row.label == table.reference
    cells = [f"**{markdown_text(row.label)}**" if reference else markdown_text(row.label), _both(mean_words(row.kl))]
    cells.append("reference" if reference else _both(mean_words(row.difference, "+")))
    if staircase:
        cells.append(_both(mean_words(row.step, "+")))
    cells.append(_both(share_words(row.agreement)))
    if labelled:
        cells += [share_words(row.top1)[0], _both(change_words(row.change))]
    ratio = row.schedule.keep_ratio
    return [*cells, "" if ratio is None else f"{ratio:g}", f"{row.gmacs:.4g}"]


def _convergence(found: Convergence, folder: str) -> list[str]:
    lines = ["## How fast the ranking converges", ""]
    lines += ["On the dense model's attention, behind every block, all tokens taking part.", ""]
    lines += [line for sentence in found.findings for line in (markdown_text(sentence), "")]
    lines += ["Overlap in % (and Spearman's correlation) with the ranking after so many iterations:", ""]
    counts = [point.iterations for point in found.blocks[0].points[:-1]]
    rows = [
        [
            str(block.block),
            str(block.settled),
            *(f"{100 * point.overlap.value:.1f} ({point.correlation.value:.3f})" for point in block.points[:-1]),
        ]
        for block in found.blocks
    ]
    heads = ["block", f"{100 * found.settled_overlap:g} % after", *map(str, counts)]
    return [*lines, *_table(heads, rows), "", *_images(list(convergence_figures(found)), folder)]


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    rule = ["---", *["---:"] * (len(heads) - 1)]
    return [f"| {' | '.join(cells)} |" for cells in (heads, rule, *rows)]


def _images(found: Sequence[Figure], folder: str) -> list[str]:
    return [" ".join(f"![{markdown_text(one.title)}]({folder}{one.file})" for one in found), ""] if found else []


def _both(words: tuple[str, str]) -> str:
    value, interval = words
    return f"{value} ({interval})" if interval else value
