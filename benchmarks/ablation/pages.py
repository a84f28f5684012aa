"""The folder that an ablation writes: JSON, and the same tables as a page and as Markdown, with their plots.

Names come from files: on the page all of them pass through `element`, in Markdown through `markdown_text`.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path

from benchmarks.ablation.figures import CONVERGENCE, convergence_figures, figures, table_figures
from benchmarks.ablation.findings import outcome, summary
from benchmarks.ablation.report import KIND, AblateReport, BlockRanking, Convergence, RowScore, Table
from benchmarks.ablation.topic_names import TOPICS
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
from ztdeploy.core.files import remove, write
from ztdeploy.core.records import to_json
from ztdeploy.core.text import markdown_text
from ztdeploy.report.kit.document import document
from ztdeploy.report.kit.figure import Figure, notes, plots, section, trust, verdict
from ztdeploy.report.kit.markup import Markup, element
from ztdeploy.report.kit.numbers import short
from ztdeploy.report.kit.sheet import Column, markdown_table
from ztdeploy.report.kit.sheet import table as drawn_table
from ztdeploy.target.evaluate.eval_report import Mean
from ztdeploy.target.measure.report_file import check_report_folder, holds_kind
from ztdeploy.version import __version__

REPORT, PAGE, MARKDOWN = "ablation.json", "ablation.html", "ablation.md"
_CONVERGENCE = "How fast the ranking converges"
_ALL_TAKE_PART = "On the dense model's attention, behind every block, all tokens taking part."
_TONES = {"higher": "bad", "lower": "good"}


def check_folder(out: Path) -> None:
    """
    Raises:
        OutputError: a file, or a folder with something else than an ablation in it.
    """
    check_report_folder(out, "an ablation", lambda: holds_kind(out / REPORT, KIND))


def write_ablation(report: AblateReport, out: Path) -> list[Path]:
    """Write everything, each file whole or not at all, in place of earlier ones; the report itself comes first.

    Returns:
        The files' paths, the page first.

    Raises:
        OutputError: see `check_folder`; or a file cannot be written.
    """
    check_folder(out)
    texts = {
        REPORT: to_json(report, indent=1) + "\n",
        PAGE: page(report),
        MARKDOWN: markdown(report),
        **{one.file: one.document() for one in figures(report)},
    }
    for topic in (*TOPICS, *CONVERGENCE):  # of an earlier ablation that had more of them
        for name in (f"{topic}.svg", f"{topic}-difference.svg"):
            if name not in texts:
                remove(out / name)
    for name, text in texts.items():
        write(out / name, text)
    return [out / PAGE, *(out / name for name in texts if name != PAGE)]


def columns(found: Table) -> list[Column[RowScore]]:
    """What a table says of each row; intervals stand in brackets."""
    reference = found.reference_row
    listed: list[Column[RowScore]] = [
        Column("", lambda row: row.label, kind="heading"),
        Column("KL from dense, nats", lambda row: _both(mean_words(row.kl)), lambda row: row.kl.value),
        Column(
            f"less {found.reference}",
            lambda row: "reference" if row is reference else _both(mean_words(row.difference, "+")),
            lambda row: _value(row.difference),
            kind=lambda row: _TONES.get(outcome(row.difference), ""),
        ),
    ]
    if any(row.step is not None for row in found.rows):
        listed.append(
            Column(
                "against the row above",
                lambda row: _both(mean_words(row.step, "+")),
                lambda row: _value(row.step),
                kind=lambda row: _TONES.get(outcome(row.step), ""),
            )
        )
    listed.append(
        Column("agreement, %", lambda row: _both(share_words(row.agreement)), lambda row: row.agreement.value)
    )
    if any(row.top1 is not None for row in found.rows):
        listed += [
            Column("top-1, %", lambda row: share_words(row.top1)[0], lambda row: row.top1.value if row.top1 else None),
            Column(
                "less dense, points",
                lambda row: _both(change_words(row.change)),
                lambda row: row.change.value if row.change else None,
            ),
        ]
    return [
        *listed,
        Column("keep", lambda row: _ratio(row), lambda row: row.schedule.keep_ratio),
        Column("GMACs", value=lambda row: row.gmacs, show=partial(short, digits=4)),
    ]


def _value(mean: Mean | None) -> float | None:
    return None if mean is None else mean.value


def _ratio(row: RowScore) -> str:
    return "" if row.schedule.keep_ratio is None else f"{row.schedule.keep_ratio:g}"


def _both(words: tuple[str, str]) -> str:
    value, interval = words
    return f"{value} ({interval})" if interval else value


def convergence_columns(found: Convergence) -> list[Column[BlockRanking]]:
    """Overlap in % and Spearman's correlation with the last ranking, after so many iterations."""

    def after(turn: int, iterations: int) -> Column[BlockRanking]:
        def text(block: BlockRanking) -> str:
            point = block.points[turn]
            return f"{100 * point.overlap.value:.1f} ({point.correlation.value:.3f})"

        return Column(str(iterations), text, lambda block: block.points[turn].overlap.value)

    return [
        Column("block", lambda block: str(block.block), lambda block: block.block),
        Column(f"{100 * found.settled_overlap:g} % after", lambda block: str(block.settled), lambda one: one.settled),
        *(after(turn, point.iterations) for turn, point in enumerate(found.blocks[0].points[:-1])),
    ]


def page(report: AblateReport) -> str:
    """The whole document, which is well-formed XML as well."""
    headline, *more = summary(report)
    sections = [
        section(
            one.title,
            _paragraphs(one.findings),
            plots(*table_figures(one)),
            drawn_table(one.title, columns(one), one.rows, chosen=one.rows.index(one.reference_row)),
            quiet=one.question,
        )
        for one in report.tables
    ]
    found = report.convergence
    if found is not None:
        sheet = drawn_table("Convergence by block", convergence_columns(found), found.blocks)
        drawn = plots(*convergence_figures(found))
        sections.append(section(_CONVERGENCE, _paragraphs(found.findings), drawn, sheet, quiet=_ALL_TAKE_PART))
    return document(
        title(report),
        element("header", element("h1", title(report)), element("p", subtitle(report), class_="lead")),
        verdict("open", headline, more),
        trust([HOST_HALF, *cautions(report)]),
        sections,
        notes(dict(NOTES)),
        element("footer", f"Written by ztdeploy {__version__} from ablation.json. {machine_line(report)}."),
    )


def _paragraphs(sentences: Iterable[str]) -> list[Markup]:
    return [element("p", sentence) for sentence in sentences]


def markdown(report: AblateReport, folder: str = "") -> str:
    """
    Args:
        folder: where the plots lie, seen from the text, such as "img/"; empty: beside it.
    """

    def images(found: Iterable[Figure]) -> list[str]:
        listed = " ".join(f"![{markdown_text(one.title)}]({folder}{one.file})" for one in found)
        return ["", listed, ""] if listed else [""]

    lines = [f"# {markdown_text(title(report))}", "", f"{markdown_text(subtitle(report))}.", ""]
    lines += [*_spaced(summary(report)), HOST_HALF, ""]
    lines += [f"- {markdown_text(line)}" for line in cautions(report)] + ([""] if cautions(report) else [])
    for one in report.tables:
        lines += [f"## {one.title}", "", one.question, "", *_spaced(one.findings)]
        lines += [*markdown_table(columns(one), one.rows), *images(table_figures(one))]
    found = report.convergence
    if found is not None:
        lines += [f"## {_CONVERGENCE}", "", _ALL_TAKE_PART, "", *_spaced(found.findings)]
        lines += ["Overlap in % (and Spearman's correlation) with the ranking after so many iterations:", ""]
        lines += [*markdown_table(convergence_columns(found), found.blocks), *images(convergence_figures(found))]
    lines += ["## How to read this", "", *(f"- **{name}**: {text}" for name, text in NOTES.items()), ""]
    sums = f"weights sha256 {report.model.sha256[:12]}, images sha256 {report.data.digest[:12]}."
    return "\n".join([*lines, f"{markdown_text(machine_line(report))}; {sums}"]) + "\n"


def _spaced(sentences: Iterable[str]) -> list[str]:
    return [line for sentence in sentences for line in (markdown_text(sentence), "")]
