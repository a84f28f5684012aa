"""A picture of a figure for each patch of the grid: it shows where pruning costs most."""

from __future__ import annotations

from collections.abc import Sequence

from ztdeploy.report.kit.colours import css, scale_colour
from ztdeploy.report.kit.markup import Markup, element
from ztdeploy.report.kit.plots.frame import TOP, WIDTH, label, svg
from ztdeploy.report.show.tiles import Grid

_SIDE, _SCALE = 224.0, 14.0
HEIGHT = TOP + _SIDE + 8


def position_map(title: str, axis: str, values: Sequence[float], grid: Grid) -> Markup:
    """A square of a colour per place, from the lowest (violet) to the highest (yellow), with a scale; the pointer says
    each value.

    Args:
        title: what it shows, for those who cannot see it.
        axis: what the values are.
        values: one per place, row by row.
    """
    low, high = min(values), max(values)
    span, cell, left = (high - low) or 1.0, _SIDE / max(grid.rows, grid.columns), (WIDTH - _SIDE) / 2 - 30
    marks = [label(0, 13, axis, "axis", anchor="start")]
    for place, value in enumerate(values):
        row, column = grid.place(place)
        marks.append(
            element(
                "rect",
                element("title", f"{grid.words(place)}: {value:.4f}"),
                x=left + column * cell,
                y=TOP + row * cell,
                width=cell + 0.3,  # neighbours overlap by less than can be seen, so that no paper shows between them
                height=cell + 0.3,
                fill=css(scale_colour((value - low) / span)),
            )
        )
    edge, steps = left + _SIDE + 18, 32
    for step in range(steps):
        height = _SIDE / steps
        top, fill = TOP + _SIDE - (step + 1) * height, css(scale_colour(step / (steps - 1)))
        marks.append(element("rect", x=edge, y=top, width=_SCALE, height=height + 0.3, fill=fill))
    for value, y in ((high, TOP + 9), (low, TOP + _SIDE)):
        marks.append(label(edge + _SCALE + 6, y, f"{value:.3f}", "tick", anchor="start"))
    return svg(title, HEIGHT, marks)
