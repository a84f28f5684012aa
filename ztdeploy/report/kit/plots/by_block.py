"""Lines over the blocks of a model, each for one setting of something that grows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ztdeploy.report.kit.markup import Markup
from ztdeploy.report.kit.plots.frame import (
    Frame,
    block_numbers,
    dot,
    label,
    line,
    names_of_ends,
    path,
    x_range,
    y_range,
)
from ztdeploy.report.kit.plots.scale import Scale, linear

_FAINTEST = 0.25


@dataclass(frozen=True)
class Curve:
    """One value per block."""

    name: str
    values: tuple[float, ...]
    read_outs: tuple[str, ...]


def by_block_plot(
    title: str, y_name: str, curves: Sequence[Curve], *, reference: tuple[float, str] | None = None
) -> Markup | None:
    """Curves from faint to full, their names on the right. None without any, or without blocks.

    Args:
        title: what it shows, for those who cannot see it.
        reference: a value to see them against, and what it is.
    """
    if not curves or not curves[0].values:
        return None
    blocks = len(curves[0].values)
    x = Scale(0, blocks, *x_range(room=34), ())
    known = [value for curve in curves for value in curve.values]
    y = linear([*known, *([] if reference is None else [reference[0]])], *y_range())
    marks = block_numbers([str(block + 1) for block in range(blocks)], x, y.start)
    if reference is not None:
        height = y(reference[0])
        marks.append(line(x.start, height, x.end, height, "reference"))
        marks.append(label(x.start + 4, height - 5, reference[1], "note", anchor="start"))
    ends = []
    for position, curve in enumerate(curves, 1):
        shade = round(_FAINTEST + (1 - _FAINTEST) * position / len(curves), 2)
        points = [(x(block + 0.5), y(value)) for block, value in enumerate(curve.values)]
        marks.append(path(points, "line c0", stroke_opacity=shade))
        marks += [
            dot(*point, 2.4, "dot c0", text, fill_opacity=shade)
            for point, text in zip(points, curve.read_outs, strict=True)
        ]
        ends.append((*points[-1], curve.name))
    # From the last one, so that of curves that meet the later one's name stands higher.
    return Frame(x, y, "block", y_name).draw(title, marks, names_of_ends(ends[::-1], x))
