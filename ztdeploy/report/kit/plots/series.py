"""How methods are told apart: by colour and by shape, so that either is enough."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ztdeploy.report.kit.markup import Markup, element

#: The classes c0 ... c5 of style.css.
_COLOURS = 6


@dataclass(frozen=True)
class Series:
    """Colours and shapes of a report's methods; dense has its own."""

    methods: tuple[str, ...]

    def colour(self, method: str) -> str:
        return f"c{self.methods.index(method) % _COLOURS}"

    def aside(self, method: str) -> float:
        """Pixels that keep methods of one keep ratio from hiding each other's whiskers."""
        return 4.0 * (self.methods.index(method) - (len(self.methods) - 1) / 2)

    def point(self, x: float, y: float, method: str | None, read_out: str) -> Markup:
        """A mark with what it says on hovering; None for dense."""
        if method is None:
            return _mark(_diamond(x, y, 5), "mark cd", read_out)
        shape = _SHAPES[self.methods.index(method) % len(_SHAPES)]
        return _mark(shape(x, y, 4.2), f"mark {self.colour(method)}", read_out)

    def key(self, method: str | None) -> Markup:
        """The mark alone, for a legend."""
        drawn = self.point(7, 7, method, "baseline" if method is None else method)
        return element("svg", drawn, viewBox="0 0 14 14", class_="key", aria_hidden="true")


def _mark(outline: str, kind: str, read_out: str) -> Markup:
    return element("path", element("title", read_out), d=outline, class_=kind)


def _circle(x: float, y: float, r: float) -> str:
    return f"M{x - r:.2f} {y:.2f}a{r} {r} 0 1 0 {2 * r} 0a{r} {r} 0 1 0 {-2 * r} 0Z"


def _polygon(*corners: tuple[float, float]) -> Callable[[float, float, float], str]:
    def outline(x: float, y: float, r: float) -> str:
        return "M" + "L".join(f"{x + dx * r:.2f} {y + dy * r:.2f}" for dx, dy in corners) + "Z"

    return outline


_diamond = _polygon((0, -1.2), (1.2, 0), (0, 1.2), (-1.2, 0))
_SHAPES: Sequence[Callable[[float, float, float], str]] = (
    _circle,
    _polygon((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
    _polygon((0, -1.15), (1.1, 0.85), (-1.1, 0.85)),
    _polygon((-1.1, -0.85), (1.1, -0.85), (0, 1.15)),
    _polygon((-1.2, -0.45), (0, -1.2), (1.2, -0.45), (0.8, 1), (-0.8, 1)),
)
