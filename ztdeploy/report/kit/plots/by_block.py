"""Lines over the blocks of a model, each for one setting of something that grows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ztdeploy.report.kit.markup import Markup, element
from ztdeploy.report.kit.plots.frame import HEIGHT, TOP, Frame, block_numbers, label, path, x_range, y_range
from ztdeploy.report.kit.plots.labels import spread
from ztdeploy.report.kit.plots.scale import Scale, linear

_NAMES, _LINE = 34.0, 12.5
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
    blocks, (start, end) = len(curves[0].values), x_range()
    x = Scale(0, blocks, start, end - _NAMES, ())
    known = [value for curve in curves for value in curve.values]
    y = linear([*known, *([] if reference is None else [reference[0]])], *y_range())
    # From the last one, so that of curves that meet the later one's name stands higher.
    places = spread([y(curve.values[-1]) for curve in reversed(curves)], _LINE, TOP, HEIGHT)[::-1]
    marks = block_numbers([str(block + 1) for block in range(blocks)], x, y.start)
    if reference is not None:
        level = y(reference[0])
        marks.append(path([(x.start, level), (x.end, level)], "reference"))
        marks.append(label(x.start + 4, level - 5, reference[1], "note", anchor="start"))
    for position, (curve, place) in enumerate(zip(curves, places, strict=True)):
        shade = _FAINTEST + (1 - _FAINTEST) * (position + 1) / len(curves)
        marks += _curve(curve, place, x, y, round(shade, 2))
    return Frame(x, y, "block", y_name).draw(title, marks)


def _curve(curve: Curve, place: float, x: Scale, y: Scale, shade: float) -> list[Markup]:
    points = [(x(block + 0.5), y(value)) for block, value in enumerate(curve.values)]
    joined = " ".join(f"{across:.2f},{down:.2f}" for across, down in points)
    drawn = [element("polyline", points=joined, class_="line c0", stroke_opacity=shade)]
    for (across, down), text in zip(points, curve.read_outs, strict=True):
        read_out = element("title", text)
        drawn.append(element("circle", read_out, cx=across, cy=down, r=2.4, class_="dot c0", fill_opacity=shade))
    across, down = points[-1]
    drawn.append(path([(across + 3, down), (x.end + 6, place)], "leader"))
    drawn.append(label(x.end + 9, place + 3.5, curve.name, "note", anchor="start"))
    return drawn
