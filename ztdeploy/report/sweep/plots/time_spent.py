"""Where the time of a call goes: by kind of operator for every variant, and block by block."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import get_args

from ztdeploy.report.kit.figure import Figure
from ztdeploy.report.kit.markup import Markup
from ztdeploy.report.kit.numbers import percent, short
from ztdeploy.report.kit.plots.frame import Frame, block_numbers, box, rows_plot, x_range, y_range
from ztdeploy.report.kit.plots.scale import Scale, linear
from ztdeploy.target.measure.sweep_report import Kind, OperatorProfile, Part

#: From the bottom of a stack to its top; pruning, which is what is asked about, stands apart at the end.
KINDS: tuple[Kind, ...] = (*(kind for kind in get_args(Kind) if kind != "pruning"), "pruning")
_BAR = 15.0


def kind_class(kind: Kind) -> str:
    return f"part k-{kind.replace(' ', '-')}"


def kinds_plot(profiles: Sequence[OperatorProfile]) -> Figure:
    """A bar per variant of one setting, by kind."""
    totals = {one.variant: by_kind(one.parts) for one in profiles}
    sums = [sum(total.values()) for total in totals.values()]
    rows = [(name, partial(_bar, name, total)) for name, total in totals.items()] if any(sums) else []
    plot = rows_plot("Time of a call by kind of operator", "ms per call", [0, *sums], rows)
    return Figure("All of a call", "Pruning is everything that a pruning layer does.", plot)


def _bar(name: str, total: Mapping[Kind, float], x: Scale, middle: float) -> list[Markup]:
    everything = sum(total.values())
    return [
        box(x(start), middle - _BAR / 2, x(end) - x(start), _BAR, kind_class(kind), f"{text}, {percent(share)}")
        for kind, start, end in _stacked(total)
        for text, share in [(f"{name}, {kind}: {short(end - start)} ms", (end - start) / everything)]
    ]


def blocks_plot(profile: OperatorProfile, highest_ms: float) -> Figure | None:
    """A column per block, by kind; the last is what comes in front of blocks and behind them. None without parts.

    Args:
        highest_ms: the highest column of all plots that stand side by side.
    """
    parts: dict[int | None, list[Part]] = defaultdict(list)
    for part in profile.parts:
        parts[part.block].append(part)
    blocks: list[int | None] = [*sorted(block for block in parts if block is not None)]
    if not blocks:
        return None
    blocks += [None] if None in parts else []
    x, y = Scale(0, len(blocks), *x_range(), ()), linear([0, highest_ms], *y_range())
    marks = block_numbers(["rest" if block is None else str(block) for block in blocks], x, y.start)
    for position, block in enumerate(blocks):
        left, width = x(position + 0.14), x(position + 0.86) - x(position + 0.14)
        where = "outside of blocks" if block is None else f"block {block}"
        for kind, start, end in _stacked(by_kind(parts[block])):
            text = f"{where}, {kind}: {short(end - start)} ms"
            marks.append(box(left, y(end), width, y(start) - y(end), kind_class(kind), text))
    plot = Frame(x, y, "block", "ms").draw(f"Time by block of {profile.variant} at {profile.setting}", marks)
    return Figure(profile.variant, "Block by block, one scale for all.", plot)


def _stacked(total: Mapping[Kind, float]) -> Iterator[tuple[Kind, float, float]]:
    """Each kind that takes time, with where its part of the stack begins and ends."""
    reached = 0.0
    for kind in KINDS:
        spent = total.get(kind, 0.0)
        if spent > 0:
            yield kind, reached, reached + spent
            reached += spent


def by_kind(parts: Sequence[Part]) -> dict[Kind, float]:
    """Milliseconds of each kind."""
    total: dict[Kind, float] = defaultdict(float)
    for part in parts:
        total[part.kind] += max(0.0, part.ms)
    return dict(total)


def highest_block(profiles: Sequence[OperatorProfile]) -> float:
    """The most that any block of any of these takes, in ms."""
    totals: dict[tuple[str, int | None], float] = defaultdict(float)
    for profile in profiles:
        for part in profile.parts:
            totals[profile.variant, part.block] += max(0.0, part.ms)
    return max(totals.values(), default=0.0)
