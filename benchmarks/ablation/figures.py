"""The plots of an ablation, each with a name under which it can be a file. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from benchmarks.ablation.findings import outcome
from benchmarks.ablation.report import AblateReport, Convergence, RankingPoint, RowScore, Table
from benchmarks.ablation.words import mean_words
from ztdeploy.report.kit.figure import Figure
from ztdeploy.report.kit.markup import Markup
from ztdeploy.report.kit.plots.by_block import Curve, by_block_plot
from ztdeploy.report.kit.plots.estimates import Estimate, estimates_plot
from ztdeploy.target.evaluate.eval_report import Mean

CONVERGENCE = ("overlap", "correlation")  #: the names of its plots
_COLOURS = {"higher": "c1", "lower": "c2", "not shown": "cd", "the same": "cd", "": "cd"}


def figures(report: AblateReport) -> list[Figure]:
    found = [figure for table in report.tables for figure in table_figures(table)]
    return found + (list(convergence_figures(report.convergence)) if report.convergence else [])


def table_figures(table: Table) -> Iterator[Figure]:
    """KL of every row, and its difference to the reference row, or to the row above where rows build on each other."""
    reference = table.reference_row.kl.value
    plot = estimates_plot(
        f"KL from dense: {table.title}", "KL from dense, nats", [_kl(row) for row in table.rows], reference=reference
    )
    if plot is not None:
        text = f"Whiskers: 95 % interval over images. Dashed: {table.reference}."
        yield Figure("KL from dense", text, plot, table.topic)
    staircase = any(row.step is not None for row in table.rows)
    compared = [row for row in table.rows if not staircase or row.step is not None]
    than = "the row above" if staircase else table.reference
    differences = [row.step if staircase else row.difference for row in compared]
    if all(outcome(difference) in ("the same", "") for difference in differences):
        return
    rows = [_difference(row, difference) for row, difference in zip(compared, differences, strict=True)]
    drawn = estimates_plot(
        f"Paired differences of KL: {table.title}", f"KL less that of {than}, nats", rows, reference=0.0
    )
    if drawn is not None:
        text = "Paired by image. Orange: further from dense; green: nearer; grey: not shown."
        yield Figure(f"Against {than}", text, drawn, f"{table.topic}-difference")


def _kl(row: RowScore) -> Estimate:
    value, interval = mean_words(row.kl)
    colour = _COLOURS[outcome(row.difference)] if row.difference is not None else "c0"
    return Estimate(row.label, row.kl.value, row.kl.interval, f"{row.label}: {value} ({interval})", colour)


def _difference(row: RowScore, difference: Mean | None) -> Estimate:
    if difference is None:
        return Estimate(row.label, 0.0, None, f"{row.label}: what the others are compared with", "c0")
    value, interval = mean_words(difference, "+")
    return Estimate(
        row.label,
        difference.value,
        difference.interval,
        f"{row.label}: {value} ({interval})",
        _COLOURS[outcome(difference)],
    )


def convergence_figures(found: Convergence) -> Iterator[Figure]:
    chance = (found.kept / found.patches, "chance")
    overlap = _by_block(found, "kept alike", lambda point: point.overlap, chance)
    if overlap is not None:
        text = (
            f"Of the {found.kept} best of {found.patches} patch tokens, the share that {found.most} iterations keep "
            "as well. A line per number of iterations."
        )
        yield Figure("Kept set by block", text, overlap, "overlap")
    correlation = _by_block(found, "Spearman's correlation", lambda point: point.correlation, None)
    if correlation is not None:
        text = f"Of all patch tokens' ranks with those after {found.most} iterations."
        yield Figure("Rank correlation by block", text, correlation, "correlation")


def _by_block(
    found: Convergence, name: str, of: Callable[[RankingPoint], Mean], reference: tuple[float, str] | None
) -> Markup | None:
    turns = [point.iterations for point in found.blocks[0].points[:-1]]
    curves = [_curve(found, turn, count, of) for turn, count in enumerate(turns)]
    return by_block_plot(f"{name} by block, against {found.most} iterations", name, curves, reference=reference)


def _curve(found: Convergence, turn: int, count: int, of: Callable[[RankingPoint], Mean]) -> Curve:
    means = [of(block.points[turn]) for block in found.blocks]
    return Curve(str(count), tuple(mean.value for mean in means), tuple(_read_outs(found, count, means)))


def _read_outs(found: Convergence, count: int, means: Sequence[Mean]) -> Iterator[str]:
    for block, mean in zip(found.blocks, means, strict=True):
        value, interval = mean_words(mean)
        yield f"block {block.block}, {count} iterations: {value} ({interval})"
