"""Labels beside marks: only where they touch nothing. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

#: About the width of one character, and the height of a line, of the smallest type in a plot.
_CHARACTER, _LINE = 6.2, 12.0
_REACH = 9.0  #: from a mark's middle to its label


@dataclass(frozen=True)
class Box:
    left: float
    top: float
    right: float
    bottom: float

    def touches(self, other: Box) -> bool:
        beside = self.right <= other.left or other.right <= self.left
        return not beside and self.top < other.bottom and other.top < self.bottom

    def holds(self, other: Box) -> bool:
        inside = self.left <= other.left and other.right <= self.right
        return inside and self.top <= other.top and other.bottom <= self.bottom


@dataclass(frozen=True)
class Placed:
    x: float
    y: float  #: of the text's baseline
    anchor: str
    text: str


def beside(points: Sequence[tuple[float, float, str]], area: Box, taken: Sequence[Box] = ()) -> list[Placed]:
    """Right of its point, left of it, above or below: the first place that is free; a label without one is left out.

    Args:
        points: x, y and text.
        area: what labels must not leave.
        taken: what they must not touch, besides the points and each other.
    """
    occupied = [*taken, *(Box(x - 5, y - 5, x + 5, y + 5) for x, y, _ in points)]
    placed = []
    for x, y, text in points:
        width = _CHARACTER * len(text)
        for candidate, room in _candidates(x, y, text, width):
            if area.holds(room) and not any(room.touches(other) for other in occupied):
                placed.append(candidate)
                occupied.append(room)
                break
    return placed


def along(points: Sequence[tuple[float, float]], every: float = 5.0) -> list[Box]:
    """Boxes along a line through points, for labels to keep off."""
    boxes = []
    for (x1, y1), (x2, y2) in pairwise(points):
        count = 1 + int(max(abs(x2 - x1), abs(y2 - y1)) / every)
        for step in range(count + 1):
            x, y = x1 + (x2 - x1) * step / count, y1 + (y2 - y1) * step / count
            boxes.append(Box(x - 2, y - 2, x + 2, y + 2))
    return boxes


def _candidates(x: float, y: float, text: str, width: float) -> list[tuple[Placed, Box]]:
    middle, half = y + 4, width / 2
    return [
        (Placed(x + _REACH, middle, "start", text), _room(x + _REACH, middle, width)),
        (Placed(x - _REACH, middle, "end", text), _room(x - _REACH - width, middle, width)),
        (Placed(x, y - _REACH, "middle", text), _room(x - half, y - _REACH, width)),
        (Placed(x, y + _REACH + 8, "middle", text), _room(x - half, y + _REACH + 8, width)),
    ]


def _room(left: float, baseline: float, width: float) -> Box:
    return Box(left, baseline - _LINE + 2, left + width, baseline + 2)


def spread(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places moved apart to at least `gap`, in their order, each as near to where it was as they allow.

    Where they do not all fit between `low` and `high` they keep `gap` and run over `high`.
    """
    order = sorted(range(len(places)), key=lambda index: places[index])
    moved = [0.0] * len(places)
    floor = low
    for index in order:
        moved[index] = max(places[index], floor)
        floor = moved[index] + gap
    ceiling = max(high, low + gap * (len(places) - 1))
    for index in reversed(order):
        moved[index] = min(moved[index], ceiling)
        ceiling = moved[index] - gap
    return moved
