"""Where the time of a call goes: by kind of operator for every variant, and block by block."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import get_args

from ztdeploy.report.kit.figures import percent, short
from ztdeploy.report.kit.markup import Markup, element
from ztdeploy.report.kit.plots.frame import (
    BOTTOM,
    RIGHT,
    TOP,
    WIDTH,
    Frame,
    block_numbers,
    box,
    label,
    line,
    svg,
    x_range,
    y_range,
)
from ztdeploy.report.kit.plots.scale import Scale, linear
from ztdeploy.target.measure.sweep_report import Kind, OperatorProfile, Part

#: From the bottom of a stack to its top; pruning, which is what is asked about, stands apart at the end.
KINDS: tuple[Kind, ...] = (*(kind for kind in get_args(Kind) if kind != "pruning"), "pruning")
_ROW, _NAMES, _BAR = 26.0, 118.0, 15.0


def kind_class(kind: Kind) -> str:
    return f"k-{kind.replace(' ', '-')}"


def kinds_plot(profiles: Sequence[OperatorProfile]) -> Markup | None:
    """A bar per variant of one setting, by kind. None without any."""
    totals = {one.variant: by_kind(one.parts) for one in profiles}
    if not any(sum(total.values()) > 0 for total in totals.values()):
        return None
    x = linear([0, *(sum(total.values()) for total in totals.values())], _NAMES, WIDTH - RIGHT - 4)
    base = TOP + _ROW * len(totals)
    marks = [label(0, 13, "ms per call", "axis", anchor="start")]
    for tick, text in zip(x.ticks, x.labels, strict=True):
        marks += [line(x(tick), TOP, x(tick), base, "grid"), label(x(tick), base + 16, text, "tick")]
    for position, (name, total) in enumerate(totals.items()):
        middle = TOP + _ROW * (position + 0.5)
        marks.append(
            label(_NAMES - 10, middle + 3.5, name if len(name) < 19 else f"{name[:17]}…", "tick", anchor="end")
        )
        marks += _bar(name, total, middle, x)
    return svg("Time of a call by kind of operator", base + BOTTOM - 16, marks)


def _bar(name: str, total: Mapping[Kind, float], middle: float, x: Scale) -> list[Markup]:
    drawn, reached, everything = [], 0.0, sum(total.values())
    for kind in KINDS:
        spent = total.get(kind, 0.0)
        if spent > 0:
            text = f"{name}, {kind}: {short(spent)} ms, {percent(spent / everything)}"
            width = x(reached + spent) - x(reached)
            drawn.append(box(x(reached), middle - _BAR / 2, width, _BAR, f"part {kind_class(kind)}", text))
            reached += spent
    return drawn


def blocks_plot(profile: OperatorProfile, highest_ms: float) -> Markup | None:
    """A column per block, by kind; the first and last are what comes in front and behind. None without parts.

    Args:
        highest_ms: the highest column of all plots that stand side by side.
    """
    columns: dict[int | None, list[Part]] = defaultdict(list)
    for part in profile.parts:
        columns[part.block].append(part)
    blocks = sorted(block for block in columns if block is not None)
    if not blocks:
        return None
    names = [*map(str, blocks), *(["rest"] if None in columns else [])]
    start, end = x_range()
    step = (end - start) / len(names)
    y = linear([0, highest_ms], *y_range())
    marks: list[Markup] = []
    for position, block in enumerate([*blocks, *([None] if None in columns else [])]):
        marks += _column(names[position], columns[block], start + step * position, step, y)
    places = Scale(0, len(names), start, end, ())
    marks += block_numbers(names, places, y.start)
    where = str(profile.setting)
    return Frame(places, y, "block", "ms").draw(f"Time by block of {profile.variant} at {where}", marks)


def _column(name: str, parts: Sequence[Part], left: float, step: float, y: Scale) -> list[Markup]:
    drawn, reached, total = [], 0.0, by_kind(parts)
    where = "outside of blocks" if name == "rest" else f"block {name}"
    for kind in KINDS:
        spent = total.get(kind, 0.0)
        if spent > 0:
            top, height = y(reached + spent), y(reached) - y(reached + spent)
            text = f"{where}, {kind}: {short(spent)} ms"
            drawn.append(box(left + step * 0.14, top, step * 0.72, height, f"part {kind_class(kind)}", text))
            reached += spent
    return drawn


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


def kind_key(kind: Kind) -> Markup:
    """For a legend."""
    swatch = element("rect", x=1.0, y=1.0, width=12.0, height=12.0, rx=2.0, class_=f"part {kind_class(kind)}")
    return element("svg", swatch, viewBox="0 0 14 14", class_="key", aria_hidden="true")
