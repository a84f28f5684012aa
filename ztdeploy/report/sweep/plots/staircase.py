"""The time of one block against its tokens, on this machine: where it jumps, and where schedules stand."""

from __future__ import annotations

from ztdeploy.report.kit.figure import Figure
from ztdeploy.report.kit.markup import Markup
from ztdeploy.report.kit.numbers import counted, short
from ztdeploy.report.kit.plots.frame import TOP, Frame, dot, label, line, path, x_range, y_range
from ztdeploy.report.kit.plots.scale import linear
from ztdeploy.report.sweep.snapping import block_ms, snaps, token_counts
from ztdeploy.target.measure.sweep_report import Staircase, SweepReport


def staircase_plot(report: SweepReport, staircase: Staircase) -> Figure | None:
    """Measured points, treads as thin lines, a tick at the bottom for every number of tokens in use, and a ring around
    each that lies just above a tread."""
    points = staircase.points
    if len(points) < 2:
        return None
    x = linear([points[0].tokens, points[-1].tokens], *x_range(), most=6)
    y = linear([0, *(one.block_ms for one in points)], *y_range())
    marks: list[Markup] = [line(x(tread), TOP, x(tread), y.start, "tread") for tread in staircase.treads]
    marks.append(path([(x(one.tokens), y(one.block_ms)) for one in points], "line c0"))
    for one in points:
        text = f"{counted(one.tokens, 'token')}: {short(one.block_ms)} ms"
        marks.append(dot(x(one.tokens), y(one.block_ms), 1.8, "dot c0", text))
    above = {snap.tokens: snap for snap in snaps(report, staircase)}
    for count, names in token_counts(report, staircase.image_size).items():
        if x.low <= count <= x.high:
            text, kind = f"{counted(count, 'token')}: {', '.join(names)}", "rug near" if count in above else "rug"
            marks.append(line(x(count), y.start - 9, x(count), y.start, kind, text))
    for count, snap in above.items():
        if x.low <= count <= x.high:
            text = f"{count} to {snap.tread}: {short(snap.saved_ms)} ms less in each block"
            marks.append(dot(x(count), y(block_ms(points, count)), 4.5, "ring", text))
    if staircase.treads:
        marks.append(label(x.end, 13, "thin lines: last count before a jump", "note", anchor="end"))
    where = str(staircase.setting)
    plot = Frame(x, y, "tokens", "ms per block").draw(f"Time of a block against its tokens at {where}", marks)
    return Figure(where, f"{len(points)} numbers of tokens, {len(staircase.treads)} treads.", plot)
