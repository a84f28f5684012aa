"""What is inside: tokens per block, where time goes, which attention is fused, the staircase of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from ztdeploy.core.setting import Setting
from ztdeploy.report.kit.figure import beside, figure, legend, plots
from ztdeploy.report.kit.figures import percent, short
from ztdeploy.report.kit.markup import Markup, element
from ztdeploy.report.kit.sheet import Cell, column, number, sheet
from ztdeploy.report.sweep.panels import is_dense
from ztdeploy.report.sweep.plots.staircase import staircase_plot
from ztdeploy.report.sweep.plots.time_spent import KINDS, blocks_plot, by_kind, highest_block, kind_key, kinds_plot
from ztdeploy.report.sweep.plots.tokens import token_plot
from ztdeploy.report.sweep.snapping import snaps, token_counts
from ztdeploy.target.measure.sweep_report import OperatorProfile, SweepReport, VariantFacts

_TOP_OPERATORS = 8


def tokens_section(report: SweepReport) -> Markup | None:
    """None without variants."""
    if not report.variants:
        return None
    sizes = [(size, list(found)) for size, found in groupby(report.variants, key=lambda one: one.image_size)]
    drawn = [
        figure(f"{size} px", "Beside each line: keep ratio, tokens into the last block.", token_plot(found))
        for size, found in sizes
    ]
    heads = ["variant", "method", "image", "GMACs", "of pruning", "tokens into each block"]
    return element(
        "section",
        element("h2", "Tokens"),
        element("p", "Fewer tokens into a block is what saves work.", class_="quiet"),
        beside(plots(*drawn), sheet("Tokens of every variant", heads, [_token_cells(one) for one in report.variants])),
    )


def _token_cells(one: VariantFacts) -> list[Cell]:
    return [
        Cell(one.name, heading=True),
        Cell("dense" if is_dense(one) else one.method),
        number(f"{one.image_size} px", one.image_size.pixels),
        number(short(one.gmacs), one.gmacs),
        number(short(one.pruning_gmacs, 2), one.pruning_gmacs),
        Cell(_runs(one.tokens_per_block)),
    ]


def _runs(tokens: Sequence[int]) -> str:
    """Such as "3x 197, 2x 138"."""
    return ", ".join(f"{len(list(same))}x {count}" for count, same in groupby(tokens))


def time_section(report: SweepReport) -> Markup:
    title = element("h2", "Where the time goes")
    if not report.profiles:
        return element(
            "section", title, element("p", _why_no_details(report, "Operators were not timed"), class_="quiet")
        )
    used = {part.kind for profile in report.profiles for part in profile.parts}
    note = "By the runtime's own account. Timing every operator slows it down: read shares, not sums."
    return element(
        "section",
        title,
        element("p", note, class_="quiet"),
        legend([(kind_key(kind), kind) for kind in KINDS if kind in used]),
        [_setting(found, str(setting)) for setting, found in _by_setting(report.profiles).items()],
    )


def _setting(profiles: Sequence[OperatorProfile], label: str) -> list[Markup | None]:
    highest = highest_block(profiles)
    return [
        element("h3", f"At {label}"),
        plots(
            figure("All of a call", "Pruning is everything that a pruning layer does.", kinds_plot(profiles)),
            *(figure(one.variant, "Block by block, one scale for all.", blocks_plot(one, highest)) for one in profiles),
        ),
        _operators(profiles, label),
        _fusion(profiles, label),
    ]


def _operators(profiles: Sequence[OperatorProfile], label: str) -> Markup | None:
    """The longest ones of every variant, with pruning's share of its call."""
    rows: list[list[Cell]] = []
    for profile in profiles:
        top = sorted(profile.operators, key=lambda one: -one.ms)[:_TOP_OPERATORS]
        total = sum(by_kind(profile.parts).values()) or profile.call_ms
        times = column([one.ms for one in top])
        for one, cell in zip(top, times, strict=True):
            share = one.ms / total if total > 0 else None
            names = (Cell(profile.variant, heading=True), Cell(one.operator), number(str(one.count), one.count))
            rows.append([*names, cell, number(percent(share), share)])
    found = sheet(f"Operators at {label}", ["variant", "operator", "nodes", "ms per call", "share"], rows)
    return _folded("Operators that take longest", found)


def _fusion(profiles: Sequence[OperatorProfile], label: str) -> Markup | None:
    rows = [
        [
            Cell(profile.variant, heading=True),
            number(str(one.block), one.block),
            Cell("fused" if one.fused else "not fused", kind="good" if one.fused else "doubt"),
            Cell(", ".join(one.operators), kind="prose"),
            Cell(one.reason, kind="prose"),
        ]
        for profile in profiles
        for one in profile.attention
    ]
    found = sheet(f"Attention at {label}", ["variant", "block", "attention", "computed by", "why"], rows)
    fused = sum(one.fused for profile in profiles for one in profile.attention)
    return _folded(f"Fused attention: {fused} of {len(rows)} blocks", found)


def _folded(title: str, table: Markup | None) -> Markup | None:
    return None if table is None else element("details", element("summary", title), table)


def staircase_section(report: SweepReport) -> Markup:
    title = element("h2", "The staircase of tokens")
    if not report.staircases:
        reason = _why_no_details(report, "The time of a block was not measured against its tokens")
        return element("section", title, element("p", reason, class_="quiet"))
    note = (
        "How long one block takes with so many tokens. Where it jumps, a few less are worth more than elsewhere. "
        "Strokes at the bottom: how many tokens variants give to their blocks; rings: those up to 6 % above a tread."
    )
    drawn = []
    for one in report.staircases:
        plot = staircase_plot(one, token_counts(report, one.image_size), snaps(report, one))
        drawn.append(figure(str(one.setting), f"{len(one.points)} numbers of tokens, {len(one.treads)} treads.", plot))
    return element("section", title, element("p", note, class_="quiet"), beside(plots(*drawn), _snaps(report)))


def _snaps(report: SweepReport) -> Markup:
    rows = [
        [
            Cell(str(staircase.setting), heading=True),
            number(str(snap.tokens), snap.tokens),
            number(str(snap.tread), snap.tread),
            number(short(snap.saved_ms), snap.saved_ms),
            Cell(", ".join(snap.variants), kind="prose"),
        ]
        for staircase in report.staircases
        for snap in snaps(report, staircase)
    ]
    found = sheet("Tokens to snap", ["at", "tokens", "tread below", "ms less per block", "in variants"], rows)
    return found or element("p", "No schedule stands just above a tread.", class_="quiet")


def _why_no_details(report: SweepReport, what: str) -> str:
    if not report.request.details:
        return f"{what}: the sweep was asked not to (--no-details)."
    if report.progress != "complete":
        return f"{what}: the sweep did not get that far."
    return f"{what} in this sweep."


def _by_setting(found: Sequence[OperatorProfile]) -> dict[Setting, list[OperatorProfile]]:
    """Profiles of one setting side by side, whatever their order in the report."""
    grouped: dict[Setting, list[OperatorProfile]] = {}
    for one in found:
        grouped.setdefault(one.setting, []).append(one)
    return grouped
