"""What is inside: tokens per block, where time goes, which attention is fused, the staircase of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from ztdeploy.core.setting import Setting
from ztdeploy.report.kit.figure import beside, folded, legend, plots, section, swatch
from ztdeploy.report.kit.markup import Markup, element
from ztdeploy.report.kit.numbers import decimals_for, fixed, percent, short
from ztdeploy.report.kit.sheet import Column, table
from ztdeploy.report.sweep.panels import View, is_dense
from ztdeploy.report.sweep.plots.staircase import staircase_plot
from ztdeploy.report.sweep.plots.time_spent import KINDS, blocks_plot, by_kind, highest_block, kind_class, kinds_plot
from ztdeploy.report.sweep.plots.tokens import token_plot
from ztdeploy.report.sweep.snapping import Snap, snaps
from ztdeploy.target.measure.sweep_report import (
    BlockAttention,
    OperatorProfile,
    OperatorTime,
    SweepReport,
    VariantFacts,
)

_TOP_OPERATORS = 8
_TOKENS: list[Column[VariantFacts]] = [
    Column("variant", lambda one: one.name, kind="heading"),
    Column("method", lambda one: "baseline" if is_dense(one) else one.method),
    Column("image", lambda one: f"{one.image_size} px", lambda one: one.image_size.pixels),
    Column("GMACs", value=lambda one: one.gmacs, show=short),
    Column("of pruning", lambda one: short(one.pruning_gmacs, 2), lambda one: one.pruning_gmacs),
    Column("tokens into each block", lambda one: _runs(one.tokens_per_block), kind="prose"),
]
_ATTENTION: list[Column[tuple[str, BlockAttention]]] = [
    Column("variant", lambda pair: pair[0], kind="heading"),
    Column("block", lambda pair: str(pair[1].block), lambda pair: pair[1].block),
    Column(
        "attention",
        lambda pair: "fused" if pair[1].fused else "not fused",
        kind=lambda pair: "good" if pair[1].fused else "doubt",
    ),
    Column("computed by", lambda pair: ", ".join(pair[1].operators), kind="prose"),
    Column("why", lambda pair: pair[1].reason, kind="prose"),
]
_SNAPS: list[Column[Snap]] = [
    Column("tokens", lambda snap: str(snap.tokens), lambda snap: snap.tokens),
    Column("tread below", lambda snap: str(snap.tread), lambda snap: snap.tread),
    Column("ms less per block", value=lambda snap: snap.saved_ms),
    Column("in variants", lambda snap: ", ".join(snap.variants), kind="prose"),
]


def tokens(view: View) -> Markup | None:
    """None without variants."""
    variants = view.report.variants
    if not variants:
        return None
    drawn = [token_plot(list(found)) for _, found in groupby(variants, key=lambda one: one.image_size)]
    return section(
        "Tokens",
        beside(plots(*drawn), table("Tokens of every variant", _TOKENS, variants)),
        quiet="Fewer tokens into a block is what saves work.",
    )


def _runs(counts: Sequence[int]) -> str:
    """Such as "3x 197, 2x 138"."""
    return ", ".join(f"{len(list(same))}x {count}" for count, same in groupby(counts))


def time(view: View) -> Markup:
    profiles = view.report.profiles
    if not profiles:
        return section("Where the time goes", quiet=_why_no_details(view.report, "Operators were not timed"))
    used = {part.kind for profile in profiles for part in profile.parts}
    by_setting: dict[Setting, list[OperatorProfile]] = {}  # whatever their order in the report
    for one in profiles:
        by_setting.setdefault(one.setting, []).append(one)
    return section(
        "Where the time goes",
        legend([(swatch(kind_class(kind)), kind) for kind in KINDS if kind in used]),
        *(part for setting, found in by_setting.items() for part in _setting(str(setting), found)),
        quiet="By the runtime's own account. Timing every operator slows it down: read shares, not sums.",
    )


def _setting(label: str, profiles: Sequence[OperatorProfile]) -> list[Markup | None]:
    highest = highest_block(profiles)
    attention = [(profile.variant, one) for profile in profiles for one in profile.attention]
    fused = sum(one.fused for _, one in attention)
    return [
        element("h3", f"At {label}"),
        plots(kinds_plot(profiles), *(blocks_plot(one, highest) for one in profiles)),
        folded("Operators that take longest", _operators(profiles, label)),
        folded(
            f"Fused attention: {fused} of {len(attention)} blocks",
            table(f"Attention at {label}", _ATTENTION, attention),
        ),
    ]


def _operators(profiles: Sequence[OperatorProfile], label: str) -> Markup | None:
    """The longest ones of every variant, with their share of its call."""
    totals = {one.variant: sum(by_kind(one.parts).values()) or one.call_ms for one in profiles}
    longest = {one.variant: sorted(one.operators, key=lambda op: -op.ms)[:_TOP_OPERATORS] for one in profiles}
    decimals = {name: decimals_for([one.ms for one in found]) for name, found in longest.items()}

    def share(pair: tuple[str, OperatorTime]) -> float | None:
        return pair[1].ms / totals[pair[0]] if totals[pair[0]] > 0 else None

    columns: list[Column[tuple[str, OperatorTime]]] = [
        Column("variant", lambda pair: pair[0], kind="heading"),
        Column("operator", lambda pair: pair[1].operator),
        Column("nodes", lambda pair: str(pair[1].count), lambda pair: pair[1].count),
        Column("ms per call", lambda pair: fixed(pair[1].ms, decimals[pair[0]]), lambda pair: pair[1].ms),
        Column("share", value=share, show=percent),
    ]
    return table(f"Operators at {label}", columns, [(name, one) for name, found in longest.items() for one in found])


def staircase(view: View) -> Markup:
    report, title = view.report, "The staircase of tokens"
    if not report.staircases:
        reason = _why_no_details(report, "The time of a block was not measured against its tokens")
        return section(title, quiet=reason)
    nothing = element("p", "No schedule stands just above a tread.", class_="quiet")
    return section(
        title,
        *(
            beside(
                plots(staircase_plot(report, one)),
                table(f"Tokens to snap at {one.setting}", _SNAPS, snaps(report, one)) or nothing,
            )
            for one in report.staircases
        ),
        quiet="How long one block takes with so many tokens. Where it jumps, a few less are worth more than elsewhere. "
        "Strokes at the bottom: how many tokens variants give to their blocks; rings: those up to 6 % above a tread.",
    )


def _why_no_details(report: SweepReport, what: str) -> str:
    if not report.request.details:
        return f"{what}: the sweep was asked not to (--no-details)."
    if report.progress != "complete":
        return f"{what}: the sweep did not get that far."
    return f"{what} in this sweep."
