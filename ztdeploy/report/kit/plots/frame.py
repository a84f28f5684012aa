"""What all plots have in common: their size, gridlines, tick labels, the names of axes, marks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ztdeploy.report.kit.markup import Child, Markup, element
from ztdeploy.report.kit.plots.labels import Box, along, beside, spread
from ztdeploy.report.kit.plots.scale import Scale, linear

#: Pixels at the size that type is designed for; a plot is as wide as its column on the page.
WIDTH, HEIGHT = 380.0, 250.0
LEFT, RIGHT, TOP, BOTTOM = 42.0, 14.0, 26.0, 40.0
SVG = "http://www.w3.org/2000/svg"
#: Of plots with a row per thing: the height of a row, the width of a letter, and how many letters a name may have.
_ROW, _LETTER, _MOST_LETTERS = 24.0, 6.7, 25


@dataclass(frozen=True)
class Frame:
    """Axes around a plot's marks."""

    x: Scale
    y: Scale
    x_name: str
    y_name: str

    def draw(self, title: str, *marks: Child) -> Markup:
        """The finished plot.

        Args:
            title: what it shows, for those who cannot see it.
        """
        return svg(title, HEIGHT, self._x_axis(), self._y_axis(), marks)

    def _y_axis(self) -> list[Markup]:
        drawn = [label(0, 13, self.y_name, "axis", anchor="start")]
        for tick, text in zip(self.y.ticks, self.y.labels, strict=True):
            place = self.y(tick)
            drawn.append(line(self.x.start, place, self.x.end, place, "grid"))
            drawn.append(label(LEFT - 7, place + 3.5, text, "tick", anchor="end"))
        return drawn

    def _x_axis(self) -> list[Markup]:
        base = HEIGHT - BOTTOM
        drawn = [label((self.x.start + self.x.end) / 2, HEIGHT - 6, self.x_name, "axis")]
        last: float | None = None
        for tick, text in zip(self.x.ticks, self.x.labels, strict=True):
            place = self.x(tick)
            if last is None or abs(place - last) >= _LETTER * len(text) + 6:
                drawn.append(label(place, base + 16, text, "tick"))
                last = place
        return [line(self.x.start, base, self.x.end, base, "base"), *drawn]


def rows_plot(
    title: str,
    axis: str,
    values: Iterable[float],
    rows: Sequence[tuple[str, Callable[[Scale, float], Sequence[Markup]]]],
    *,
    reference: float | None = None,
) -> Markup | None:
    """A row per thing, one below the other, over one axis. None without rows.

    Args:
        title: what it shows, for those who cannot see it.
        axis: what the values are.
        values: all that the axis must hold.
        rows: a name, and what draws the row's marks at the height of its middle.
        reference: a value that the others are seen against.
    """
    if not rows:
        return None
    names = 14 + _LETTER * min(_MOST_LETTERS, max(len(name) for name, _ in rows))
    x = linear([*values, *([] if reference is None else [reference])], names, WIDTH - RIGHT - 4)
    base = TOP + _ROW * len(rows)
    marks = [label(0, 13, axis, "axis", anchor="start")]
    for tick, text in zip(x.ticks, x.labels, strict=True):
        marks += [line(x(tick), TOP, x(tick), base, "grid"), label(x(tick), base + 16, text, "tick")]
    if reference is not None:
        marks.append(line(x(reference), TOP, x(reference), base, "reference"))
    for position, (name, draw) in enumerate(rows):
        middle = TOP + _ROW * (position + 0.5)
        half = _MOST_LETTERS // 2  # names differ at the end as often as at the beginning
        short = name if len(name) <= _MOST_LETTERS else f"{name[:half]}…{name[-half:]}"
        marks += [label(names - 9, middle + 3.5, short, "tick", anchor="end"), *draw(x, middle)]
    return svg(title, base + BOTTOM - 16, marks)


def svg(title: str, height: float, *children: Child) -> Markup:
    """A drawing that scales with its column; `title` is what it shows, in words."""
    view = f"0 0 {WIDTH:g} {height:g}"
    return element("svg", children, xmlns=SVG, viewBox=view, role="img", aria_label=title, class_="plot")


def line(x1: float, y1: float, x2: float, y2: float, kind: str, read_out: str | None = None) -> Markup:
    title = None if read_out is None else element("title", read_out)
    return element("line", title, x1=float(x1), y1=float(y1), x2=float(x2), y2=float(y2), class_=kind)


def label(x: float, y: float, text: str, kind: str, *, anchor: str = "middle") -> Markup:
    return element("text", text, x=float(x), y=float(y), text_anchor=anchor, class_=kind)


def path(points: Sequence[tuple[float, float]], kind: str, read_out: str | None = None, **more: float | None) -> Markup:
    """Straight lines through points."""
    joined = " ".join(f"{x:.2f},{y:.2f}" for x, y in points)
    title = None if read_out is None else element("title", read_out)
    return element("polyline", title, points=joined, class_=kind, **more)


def dot(x: float, y: float, radius: float, kind: str, read_out: str | None = None, **more: float | None) -> Markup:
    title = None if read_out is None else element("title", read_out)
    return element("circle", title, cx=float(x), cy=float(y), r=float(radius), class_=kind, **more)


def box(x: float, y: float, width: float, height: float, kind: str, read_out: str | None = None) -> Markup:
    title = None if read_out is None else element("title", read_out)
    return element("rect", title, x=float(x), y=float(y), width=float(width), height=float(height), class_=kind)


def level(x: Scale, place: float, text: str) -> list[Markup]:
    """A dashed line across the plot, with what it stands for above its right end."""
    right = max(x.start, x.end)  # keep ratios fall from left to right
    return [line(x.start, place, x.end, place, "reference"), label(right, place - 6, text, "note", anchor="end")]


def notes(points: Sequence[tuple[float, float, str]], x: Scale, drawn: Sequence[tuple[float, float]]) -> list[Markup]:
    """Labels beside points, where they touch neither each other nor the line through `drawn`."""
    placed = beside(points, Box(x.start, TOP, x.end, HEIGHT), along(drawn))
    return [label(one.x, one.y, one.text, "note", anchor=one.anchor) for one in placed]


def names_of_ends(ends: Sequence[tuple[float, float, str]], x: Scale) -> list[Markup]:
    """The names of lines, right of the plot, each joined to its line's end, and none on top of another.

    Args:
        ends: x, y and a name.
    """
    drawn = []
    for (across, down, name), place in zip(ends, spread([y for _, y, _ in ends], 12.5, TOP, HEIGHT), strict=True):
        drawn.append(path([(across + 3, down), (x.end + 7, place)], "leader"))
        drawn.append(label(x.end + 11, place + 3.5, name, "note", anchor="start"))
    return drawn


def block_numbers(names: Sequence[str], x: Scale, base: float) -> list[Markup]:
    """Names below the middles of columns that are each 1 wide, as many of them as fit; the last one always does."""
    every = -(-len(names) * 22 // max(1, int(x.end - x.start)))
    drawn = [
        (place, name) for place, name in enumerate(names[:-1]) if place % every == 0 and place + every < len(names)
    ]
    drawn += [(len(names) - 1, name) for name in names[-1:]]
    return [label(x(place + 0.5), base + 16, name, "tick") for place, name in drawn]


def x_range(room: float = 0) -> tuple[float, float]:
    """
    Args:
        room: for names on the right.
    """
    return LEFT, WIDTH - RIGHT - room


def y_range() -> tuple[float, float]:
    return HEIGHT - BOTTOM, TOP
