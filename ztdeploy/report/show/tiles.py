"""Draws one pruning layer's patches onto the image: kept ones as they are, dropped ones dimmed, merged ones tinted.

Where it is known why patches went, those that this layer let go are told apart by colour; and the importance of all.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ztdeploy.report.show.colours import (
    NOTHING,
    SIMILAR_COLOUR,
    UNIMPORTANT_COLOUR,
    importance_colour,
    importance_shares,
)
from ztdeploy.target.evaluate.patches import GONE, LayerPatches
from ztdeploy.target.evaluate.reasons import LayerReasons, Pair

#: The longer side of a tile in pixels, to the nearest multiple of its patches.
_SIDE = 336
_DIM, _DIMMED_SHARE = np.array(NOTHING, np.float64), 0.78
_GREY_SHARE, _REASON_SHARE = 0.3, 0.45
_EDGE, _TINT_SHARE = np.array((236.0, 240.0, 245.0)), 0.6
_FUSED = (70.0, 130.0, 220.0)
#: Pairs that are drawn; more of them hide each other.
DRAWN_PAIRS = 10
#: Lines are drawn so many times larger, and then smoothed.
_SMOOTH = 3


@dataclass(frozen=True)
class Grid:
    """Rows and columns of patches, which count row by row."""

    rows: int
    columns: int

    @property
    def patches(self) -> int:
        return self.rows * self.columns

    def place(self, patch: int) -> tuple[int, int]:
        """Row and column, from 0."""
        return divmod(patch, self.columns)


def plain_tile(pixels: NDArray[np.uint8], grid: Grid) -> Image.Image:
    """The image as the model sees it, uint8 `[H, W, C]`, scaled so that each patch has whole pixels, and as RGB.

    An image of one or two channels is shown by its first one, an image of more than three by its first three.
    """
    colours = pixels[..., :3] if pixels.shape[-1] >= 3 else np.repeat(pixels[..., :1], 3, -1)
    height, width = len(pixels) / grid.rows, pixels.shape[1] / grid.columns
    scale = max(4, round(_SIDE / max(grid.rows, grid.columns))) / max(height, width)
    cell = [max(2, round(side * scale)) for side in (height, width)]
    size = (grid.columns * cell[1], grid.rows * cell[0])
    smooth = size[1] < 3 * len(pixels)  # small images are shown in their pixels
    return Image.fromarray(colours).resize(size, Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST)


def layer_tile(plain: Image.Image, layer: LayerPatches, grid: Grid, reasons: LayerReasons | None = None) -> Image.Image:
    """A plain tile with one layer's patches. Those that stay keep their pixels, but for a group's outline.

    Args:
        reasons: colours the patches that went at this layer (or marks them, where they were merged), and draws a line
            to the partner of those that were the most similar.
    """
    pixels = np.asarray(plain).astype(np.float64)
    cell = _cell_of(plain.size, grid)
    stays, groups = layer.stays, _group_of(layer)
    dimmed = pixels.mean(-1, keepdims=True) * (1 - _DIMMED_SHARE) + _DIM * _DIMMED_SHARE
    line = max(1, min(cell) // 12)
    why = _why(reasons)
    for patch in range(grid.patches):
        box = _box(patch, grid, cell)
        colour = None if groups[patch] == GONE else _colour(layer, int(groups[patch]))
        if colour is not None and not stays[patch]:
            grey = pixels[box].mean(-1, keepdims=True)
            pixels[box] = grey * (1 - _TINT_SHARE) + colour * _TINT_SHARE
        elif colour is None and not stays[patch]:
            pixels[box] = _tinted(pixels[box], why[patch]) if patch in why else dimmed[box]
        if colour is not None:
            _outline(pixels[box], _open_sides(groups, patch, grid), line, colour * 0.75)
        elif not stays[patch]:
            # Where what stays begins: visible on dark photographs as well.
            _outline(pixels[box], _open_sides(stays, patch, grid), max(1, line // 2), _EDGE)
    tile = Image.fromarray(pixels.round().astype(np.uint8))
    if reasons is not None:
        _draw_over(tile, cell, grid, {patch: why[patch] for patch in why if groups[patch] != GONE}, reasons.pairs)
    return tile


def importance_tile(size: tuple[int, int], layer: LayerPatches, grid: Grid, reasons: LayerReasons) -> Image.Image:
    """The importance of what a layer ranked, by rank; a line runs around what stays. As large as a plain tile."""
    cell, stays = _cell_of(size, grid), layer.stays
    colours = importance_colour(np.nan_to_num(importance_shares(reasons.importance)))
    colours[~np.isfinite(reasons.importance)] = NOTHING
    pixels = np.zeros((size[1], size[0], 3))
    for patch in range(grid.patches):
        box = _box(patch, grid, cell)
        pixels[box] = colours[patch]
        if not stays[patch]:
            _outline(pixels[box], _open_sides(stays, patch, grid), max(1, min(cell) // 16), _EDGE)
    return Image.fromarray(pixels.round().astype(np.uint8))


def _why(reasons: LayerReasons | None) -> dict[int, tuple[int, int, int]]:
    """The colour of the reason for which a patch went."""
    if reasons is None:
        return {}
    unimportant = dict.fromkeys(reasons.by_importance, UNIMPORTANT_COLOUR)
    return unimportant | dict.fromkeys(reasons.by_similarity, SIMILAR_COLOUR)


def _tinted(pixels: NDArray[np.float64], colour: tuple[int, int, int]) -> NDArray[np.float64]:
    """A dimmed patch with some of the image left, and the reason's colour."""
    grey = pixels.mean(-1, keepdims=True)
    rest = 1 - _GREY_SHARE - _REASON_SHARE
    return np.asarray(grey * _GREY_SHARE + np.array(colour) * _REASON_SHARE + _DIM * rest)


def _draw_over(
    tile: Image.Image,
    cell: tuple[int, int],
    grid: Grid,
    marks: dict[int, tuple[int, int, int]],
    pairs: tuple[Pair, ...],
) -> None:
    """Marks in the middle of patches, and lines between those of the first pairs, smoothed, in place."""
    layer = Image.new("RGBA", (tile.width * _SMOOTH, tile.height * _SMOOTH), (0, 0, 0, 0))
    draw, size = ImageDraw.Draw(layer), min(cell) * _SMOOTH

    def middle(patch: int) -> tuple[float, float]:
        row, column = grid.place(patch)
        return (column + 0.5) * cell[1] * _SMOOTH, (row + 0.5) * cell[0] * _SMOOTH

    def dot(patch: int, radius: float, colour: tuple[int, int, int], outline: tuple[int, int, int]) -> None:
        x, y = middle(patch)
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), colour, outline, max(1, size // 24))

    for patch, colour in marks.items():
        dot(patch, size / 6, colour, (20, 22, 26))
    drawn = [pair for pair in pairs if pair.partner is not None][:DRAWN_PAIRS]
    wide, thin = min(size / 7, 4 * _SMOOTH), min(size / 16, 2 * _SMOOTH)
    for width, ink in ((wide, (16, 20, 28, 200)), (thin, (255, 255, 255, 255))):
        for pair in drawn:
            assert pair.partner is not None
            draw.line((*middle(pair.patch), *middle(pair.partner)), ink, max(1, round(width)))
    for pair in drawn:
        assert pair.partner is not None
        dot(pair.patch, min(size / 7, 4 * _SMOOTH), SIMILAR_COLOUR, (255, 255, 255))
        dot(pair.partner, min(size / 5, 6 * _SMOOTH), (255, 255, 255), (16, 20, 28))
    smooth = layer.resize(tile.size, Image.Resampling.LANCZOS)
    tile.paste(smooth, (0, 0), smooth)


def _cell_of(size: tuple[int, int], grid: Grid) -> tuple[int, int]:
    """Height and width of a patch in a tile whose width and height are `size`."""
    return size[1] // grid.rows, size[0] // grid.columns


def _box(patch: int, grid: Grid, cell: tuple[int, int]) -> tuple[slice, slice]:
    row, column = grid.place(patch)
    return slice(row * cell[0], (row + 1) * cell[0]), slice(column * cell[1], (column + 1) * cell[1])


def _group_of(layer: LayerPatches) -> NDArray[np.int64]:
    """`[patches]`: the token that each patch shares with others; `GONE` for dropped patches and those by themselves."""
    group = np.full(len(layer.holder), GONE)
    for patches in layer.groups:
        group[patches] = layer.holder[patches]
    return group


def _colour(layer: LayerPatches, token: int) -> NDArray[np.float64]:
    """A token keeps its colour through all layers: it goes by the patch in whose place it is."""
    place = int(layer.own[token])
    if place == GONE:
        return np.array(_FUSED)
    scattered = place * 0.7548776662 % 1, place * 0.5698402910 % 1  # the plane's counterpart of the golden ratio
    rgb = colorsys.hsv_to_rgb(scattered[0], 0.55 + 0.4 * scattered[1], 1 - 0.25 * scattered[1])
    return 255 * np.array(rgb)


def _open_sides(values: NDArray[np.generic], patch: int, grid: Grid) -> tuple[bool, bool, bool, bool]:
    """Whether the patch above, below, left and right is another one's; the image's rim is nobody's."""
    row, column = grid.place(patch)
    places = values.reshape(grid.rows, grid.columns)
    here = places[row, column]
    return (
        bool(row > 0 and places[row - 1, column] != here),
        bool(row < grid.rows - 1 and places[row + 1, column] != here),
        bool(column > 0 and places[row, column - 1] != here),
        bool(column < grid.columns - 1 and places[row, column + 1] != here),
    )


def _outline(
    box: NDArray[np.float64], sides: tuple[bool, bool, bool, bool], width: int, colour: NDArray[np.float64]
) -> None:
    """Lines along some sides of a patch, inside it and in place."""
    places = (box[:width], box[-width:], box[:, :width], box[:, -width:])
    for place, wanted in zip(places, sides, strict=True):
        if wanted:
            place[...] = colour
