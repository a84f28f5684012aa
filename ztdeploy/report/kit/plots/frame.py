"""What all plots have in common: their size, gridlines, tick labels, the names of axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ztdeploy.report.kit.markup import Child, Markup, element
from ztdeploy.report.kit.plots.scale import Scale

#: Pixels at the size that type is designed for; a plot is as wide as its column on the page.
WIDTH, HEIGHT = 380.0, 250.0
LEFT, RIGHT, TOP, BOTTOM = 42.0, 14.0, 26.0, 40.0
SVG = "http://www.w3.org/2000/svg"
#: Tick labels closer than this touch each other.
_TICK_ROOM = 26.0


@dataclass(frozen=True)
class Frame:
    """Axes around a plot's marks."""

    x: Scale
    y: Scale
    x_name: str
    y_name: str
    height: float = HEIGHT
    grid: str = "y"  #: which axes have gridlines: "x", "y" or "xy"

    def draw(self, title: str, *marks: Child) -> Markup:
        """The finished plot.

        Args:
            title: what it shows, for those who cannot see it.
        """
        return svg(title, self.height, self._x_axis(), self._y_axis(), marks)

    def _y_axis(self) -> list[Markup]:
        drawn = [label(0, 13, self.y_name, "axis", anchor="start")]
        for tick, text in zip(self.y.ticks, self.y.labels, strict=True):
            place = self.y(tick)
            if "y" in self.grid:
                drawn.append(line(self.x.start, place, self.x.end, place, "grid"))
            drawn.append(label(LEFT - 7, place + 3.5, text, "tick", anchor="end"))
        return drawn

    def _x_axis(self) -> list[Markup]:
        base = self.height - BOTTOM
        drawn = [label((self.x.start + self.x.end) / 2, self.height - 6, self.x_name, "axis")]
        last: float | None = None
        for tick, text in zip(self.x.ticks, self.x.labels, strict=True):
            place = self.x(tick)
            if "x" in self.grid:
                drawn.append(line(place, TOP, place, base, "grid"))
            if last is None or abs(place - last) >= _TICK_ROOM:
                drawn.append(label(place, base + 16, text, "tick"))
                last = place
        return [line(self.x.start, base, self.x.end, base, "base"), *drawn]


def svg(title: str, height: float, *children: Child, width: float = WIDTH) -> Markup:
    """A drawing that scales with its column; `title` is what it shows, in words."""
    return element(
        "svg", children, xmlns=SVG, viewBox=f"0 0 {width:g} {height:g}", role="img", aria_label=title, class_="plot"
    )


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    return element("line", x1=float(x1), y1=float(y1), x2=float(x2), y2=float(y2), class_=kind)


def label(x: float, y: float, text: str, kind: str, *, anchor: str = "middle") -> Markup:
    return element("text", text, x=float(x), y=float(y), text_anchor=anchor, class_=kind)


def path(points: Sequence[tuple[float, float]], kind: str) -> Markup:
    """Straight lines through points."""
    joined = " ".join(f"{x:.2f},{y:.2f}" for x, y in points)
    return element("polyline", points=joined, class_=kind)


def box(x: float, y: float, width: float, height: float, kind: str, read_out: str | None = None) -> Markup:
    inner = () if read_out is None else (element("title", read_out),)
    return element("rect", *inner, x=float(x), y=float(y), width=float(width), height=float(height), class_=kind)


def block_numbers(names: Sequence[str], x: Scale, base: float) -> list[Markup]:
    """Names below the middles of columns that are each 1 wide, as many of them as fit; the last one always does."""
    every = -(-len(names) * 22 // max(1, int(x.end - x.start)))
    drawn = [
        (place, name) for place, name in enumerate(names[:-1]) if place % every == 0 and place + every < len(names)
    ]
    drawn += [(len(names) - 1, name) for name in names[-1:]]
    return [label(x(place + 0.5), base + 16, name, "tick") for place, name in drawn]


def x_range() -> tuple[float, float]:
    return LEFT, WIDTH - RIGHT


def y_range(height: float = HEIGHT) -> tuple[float, float]:
    return height - BOTTOM, TOP
