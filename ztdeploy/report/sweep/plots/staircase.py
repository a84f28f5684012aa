"""The time of one block against its tokens, on this machine: where it jumps, and where schedules stand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ztdeploy.report.kit.figures import counted, short
from ztdeploy.report.kit.markup import Markup, element
from ztdeploy.report.kit.plots.frame import TOP, Frame, label, line, path, x_range, y_range
from ztdeploy.report.kit.plots.scale import linear
from ztdeploy.report.sweep.snapping import Snap, block_ms
from ztdeploy.target.measure.sweep_report import Staircase


def staircase_plot(staircase: Staircase, counts: Mapping[int, Sequence[str]], snaps: Sequence[Snap]) -> Markup | None:
    """Measured points, treads as thin lines, and a tick at the bottom for every number of tokens in use.

    Args:
        counts: numbers of tokens that blocks are given, and by which variants.
        snaps: those that lie just above a tread.
    """
    points = staircase.points
    if len(points) < 2:
        return None
    x = linear([points[0].tokens, points[-1].tokens], *x_range(), most=6)
    y = linear([0, *(one.block_ms for one in points)], *y_range())
    marks: list[Markup] = [line(x(tread), TOP, x(tread), y.start, "tread") for tread in staircase.treads]
    marks.append(path([(x(one.tokens), y(one.block_ms)) for one in points], "line c0"))
    for one in points:
        read_out = element("title", f"{counted(one.tokens, 'token')}: {short(one.block_ms)} ms")
        marks.append(element("circle", read_out, cx=x(one.tokens), cy=y(one.block_ms), r=1.8, class_="dot c0"))
    above = {snap.tokens for snap in snaps}
    for count, names in counts.items():
        if x.low <= count <= x.high:
            marks.append(_rug(x(count), y.start, f"{counted(count, 'token')}: {', '.join(names)}", count in above))
    for snap in snaps:
        if x.low <= snap.tokens <= x.high:
            marks.append(_snap_mark(x(snap.tokens), y(block_ms(points, snap.tokens)), snap))
    if staircase.treads:
        marks.append(label(x.end, 13, "thin lines: last count before a jump", "note", anchor="end"))
    where = str(staircase.setting)
    return Frame(x, y, "tokens", "ms per block").draw(f"Time of a block against its tokens at {where}", marks)


def _rug(x: float, base: float, read_out: str, near: bool) -> Markup:
    title = element("title", read_out)
    return element("line", title, x1=x, y1=base - 9, x2=x, y2=base, class_="rug near" if near else "rug")


def _snap_mark(x: float, y: float, snap: Snap) -> Markup:
    text = f"{snap.tokens} to {snap.tread}: {short(snap.saved_ms)} ms less in each block"
    return element("circle", element("title", text), cx=x, cy=y, r=4.5, class_="ring")
