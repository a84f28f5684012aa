"""The page of an ablation. Pure; names come from files, so all of them pass through `element`."""

from __future__ import annotations

from benchmarks.ablation.figures import convergence_figures, table_figures
from benchmarks.ablation.findings import outcome, summary
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
from ztdeploy.report.kit.document import document
from ztdeploy.report.kit.figure import plots
from ztdeploy.report.kit.figures import short
from ztdeploy.report.kit.markup import Markup, element
from ztdeploy.report.kit.sheet import Cell, number, sheet
from ztdeploy.target.evaluate.eval_report import Mean
from ztdeploy.version import __version__

_TONES = {"higher": "bad", "lower": "good"}


def page(report: AblateReport) -> str:
    """The whole document, which is well-formed XML as well."""
    listed = [(element("dt", name), element("dd", text)) for name, text in NOTES.items()]
    main = element(
        "main",
        element("header", element("h1", title(report)), element("p", subtitle(report), class_="lead")),
        _summary(report),
        [_section(table) for table in report.tables],
        _convergence(report.convergence) if report.convergence else None,
        element("section", element("h2", "How to read this"), element("dl", listed, class_="notes")),
        element("footer", f"Written by ztdeploy {__version__} from ablation.json. {machine_line(report)}."),
    )
    return document(title(report), main)


def _summary(report: AblateReport) -> Markup:
    headline, *more = summary(report)
    lines = [HOST_HALF, *cautions(report)]
    return element(
        "section",
        element("p", headline, class_="headline"),
        [element("p", sentence) for sentence in more],
        element("ul", [element("li", line) for line in lines], class_="trust"),
        class_="verdict open",
    )


def _section(table: Table) -> Markup:
    return element(
        "section",
        element("h2", table.title),
        element("p", table.question, class_="quiet"),
        [element("p", sentence) for sentence in table.findings],
        plots(*table_figures(table)),
        _sheet(table),
    )


def _sheet(table: Table) -> Markup | None:
    labelled = any(row.top1 is not None for row in table.rows)
    staircase = any(row.step is not None for row in table.rows)
    interval = "95 % interval"
    heads = ["", "KL, nats", interval, f"less {table.reference}", interval]
    heads += ["against the row above", interval] if staircase else []
    heads += ["agreement, %", interval, *(["top-1, %", "less dense", interval] if labelled else []), "keep", "GMACs"]
    rows = [_cells(row, labelled=labelled, staircase=staircase) for row in table.rows]
    chosen = next(position for position, row in enumerate(table.rows) if row.label == table.reference)
    return sheet(table.title, heads, rows, chosen=chosen)


def _cells(row: RowScore, *, labelled: bool, staircase: bool) -> list[Cell]:
    cells = [Cell(row.label, heading=True), *_mean(row.kl, ""), *_mean(row.difference, "+")]
    if staircase:
        cells += _mean(row.step, "+")
    agreement, interval = share_words(row.agreement)
    cells += [number(agreement, row.agreement.value), number(interval, None)]
    if labelled:
        top1, _ = share_words(row.top1)
        change, interval = change_words(row.change)
        cells += [
            number(top1, row.top1.value if row.top1 else None),
            number(change, row.change.value if row.change else None),
            number(interval, None),
        ]
    ratio = row.schedule.keep_ratio
    return [*cells, number("" if ratio is None else f"{ratio:g}", ratio), number(short(row.gmacs, 4), row.gmacs)]


def _mean(mean: Mean | None, sign: str) -> list[Cell]:
    value, interval = mean_words(mean, sign)
    tone = _TONES.get(outcome(mean), "") if sign else ""
    return [number(value, mean.value if mean else None, tone), number(interval, None)]


def _convergence(found: Convergence) -> Markup:
    counts = [point.iterations for point in found.blocks[0].points[:-1]]
    rows = [
        [
            number(str(block.block), block.block),
            number(str(block.settled), block.settled),
            *(number(f"{100 * point.overlap.value:.1f}", point.overlap.value) for point in block.points[:-1]),
            *(number(f"{point.correlation.value:.3f}", point.correlation.value) for point in block.points[:-1]),
        ]
        for block in found.blocks
    ]
    heads = ["block", "settled after", *(f"overlap after {n}, %" if n == 1 else str(n) for n in counts)]
    heads += [f"correlation after {n}" if n == 1 else str(n) for n in counts]
    return element(
        "section",
        element("h2", "How fast the ranking converges"),
        element("p", "On the dense model's attention, behind every block, all tokens taking part.", class_="quiet"),
        [element("p", sentence) for sentence in found.findings],
        plots(*convergence_figures(found)),
        sheet("Convergence by block", heads, rows),
    )
