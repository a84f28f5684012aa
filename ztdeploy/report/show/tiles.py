"""Draws one pruning layer's patches onto the image: kept ones as they are, dropped ones dimmed, merged ones tinted.

Where it is known why patches went, those that this layer let go are told apart by colour; and the importance of all.
"""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ztdeploy.report.kit.colours import LESS, MORE, NOTHING, Colour, scale_colour
from ztdeploy.target.evaluate.patches import GONE, LayerPatches
from ztdeploy.target.evaluate.reasons import LayerReasons, Pair

SIMILAR_COLOUR, UNIMPORTANT_COLOUR = LESS, MORE  #: dropped by similarity, and by importance
DRAWN_PAIRS = 10  #: lines to partners; more of them hide each other
#: The longer side of a tile in pixels, to the nearest multiple of its patches.
_SIDE = 336
_DIM, _DIMMED_SHARE = np.array(NOTHING, np.float64), 0.78
_GREY_SHARE, _REASON_SHARE = 0.3, 0.45
_EDGE, _TINT_SHARE = np.array((236.0, 240.0, 245.0)), 0.45
_FUSED = (70.0, 130.0, 220.0)
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

    def words(self, patch: int | None) -> str:
        """Where a patch is, counted from 1."""
        if patch is None:
            return "a token without a patch"
        row, column = self.place(patch)
        return f"row {row + 1}, column {column + 1}"

    def cell(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of a patch in a tile whose width and height are `size`."""
        return size[1] // self.rows, size[0] // self.columns

    def box(self, patch: int, cell: tuple[int, int]) -> tuple[slice, slice]:
        """A patch's pixels in a tile."""
        row, column = self.place(patch)
        return slice(row * cell[0], (row + 1) * cell[0]), slice(column * cell[1], (column + 1) * cell[1])


def importance_shares(importance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Where each value stands among the finite ones, by rank, from 0 to 1; ties alike, NaN stays.

    A layer decides by the order alone, and a few tokens may have a hundred times the importance of the others.
    """
    finite = np.isfinite(importance)
    distinct = np.unique(importance[finite])
    return np.where(finite, np.searchsorted(distinct, importance) / max(1, len(distinct) - 1), np.nan)


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
    cell, stays, why = grid.cell(plain.size), layer.stays, dict[int, Colour]()
    line = max(1, min(cell) // 12)
    groups = np.full(grid.patches, GONE)  # the token that each patch shares with others
    for patches in layer.groups:
        groups[patches] = layer.holder[patches]
    if reasons is not None:
        why = dict.fromkeys(reasons.by_importance, UNIMPORTANT_COLOUR)
        why |= dict.fromkeys(reasons.by_similarity, SIMILAR_COLOUR)
    for patch in range(grid.patches):
        box = grid.box(patch, cell)
        grey = pixels[box].mean(-1, keepdims=True)
        if groups[patch] != GONE:
            colour = _colour(layer, int(groups[patch]))
            if not stays[patch]:
                pixels[box] = grey * (1 - _TINT_SHARE) + colour * _TINT_SHARE
            _outline(pixels[box], groups, patch, grid, line, colour * 0.75)
        elif not stays[patch]:
            if patch in why:  # dimmed with some of the image left, and the reason's colour
                rest = 1 - _GREY_SHARE - _REASON_SHARE
                pixels[box] = grey * _GREY_SHARE + np.array(why[patch]) * _REASON_SHARE + _DIM * rest
            else:
                pixels[box] = grey * (1 - _DIMMED_SHARE) + _DIM * _DIMMED_SHARE
            # Where what stays begins: visible on dark photographs as well.
            _outline(pixels[box], stays, patch, grid, max(1, line // 2), _EDGE)
    tile = Image.fromarray(pixels.round().astype(np.uint8))
    if reasons is not None:
        _draw_over(tile, grid, {patch: why[patch] for patch in why if groups[patch] != GONE}, reasons.pairs)
    return tile


def importance_tile(size: tuple[int, int], layer: LayerPatches, grid: Grid, reasons: LayerReasons) -> Image.Image:
    """The importance of what a layer ranked, by rank; a line runs around what stays. As large as a plain tile."""
    cell, stays = grid.cell(size), layer.stays
    colours = scale_colour(np.nan_to_num(importance_shares(reasons.importance)))
    colours[~np.isfinite(reasons.importance)] = NOTHING
    pixels = np.zeros((size[1], size[0], 3))
    for patch in range(grid.patches):
        box = grid.box(patch, cell)
        pixels[box] = colours[patch]
        if not stays[patch]:
            _outline(pixels[box], stays, patch, grid, max(1, min(cell) // 16), _EDGE)
    return Image.fromarray(pixels.round().astype(np.uint8))


def _draw_over(tile: Image.Image, grid: Grid, marks: Mapping[int, Colour], pairs: Sequence[Pair]) -> None:
    """Marks in the middle of patches, and lines between those of the first pairs, smoothed, in place."""
    layer, cell = Image.new("RGBA", (tile.width * _SMOOTH, tile.height * _SMOOTH), (0, 0, 0, 0)), grid.cell(tile.size)
    draw, size = ImageDraw.Draw(layer), min(cell) * _SMOOTH

    def middle(patch: int) -> tuple[float, float]:
        row, column = grid.place(patch)
        return (column + 0.5) * cell[1] * _SMOOTH, (row + 0.5) * cell[0] * _SMOOTH

    def dot(patch: int, radius: float, colour: Colour, outline: Colour) -> None:
        x, y = middle(patch)
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), colour, outline, max(1, size // 24))

    for patch, colour in marks.items():
        dot(patch, size / 6, colour, (20, 22, 26))
    drawn = [(pair.patch, pair.partner) for pair in pairs if pair.partner is not None][:DRAWN_PAIRS]
    wide, thin = min(size / 7, 4 * _SMOOTH), min(size / 16, 2 * _SMOOTH)
    for width, ink in ((wide, (16, 20, 28, 200)), (thin, (255, 255, 255, 255))):
        for patch, partner in drawn:
            draw.line((*middle(patch), *middle(partner)), ink, max(1, round(width)))
    for patch, partner in drawn:
        dot(patch, wide, SIMILAR_COLOUR, (255, 255, 255))
        dot(partner, min(size / 5, 6 * _SMOOTH), (255, 255, 255), (16, 20, 28))
    smooth = layer.resize(tile.size, Image.Resampling.LANCZOS)
    tile.paste(smooth, (0, 0), smooth)


def _colour(layer: LayerPatches, token: int) -> NDArray[np.float64]:
    """The colour of a token: that of the patch in whose place it is, so that it stays the same through all layers."""
    place = int(layer.own[token])
    if place == GONE:
        return np.array(_FUSED)
    scattered = place * 0.7548776662 % 1, place * 0.5698402910 % 1  # the plane's counterpart of the golden ratio
    rgb = colorsys.hsv_to_rgb(scattered[0], 0.55 + 0.4 * scattered[1], 1 - 0.25 * scattered[1])
    return 255 * np.array(rgb)


def _outline(
    box: NDArray[np.float64], values: NDArray[Any], patch: int, grid: Grid, width: int, colour: NDArray[np.float64]
) -> None:
    """Lines inside a patch, in place, along the sides whose neighbour has another value; the image's rim has none."""
    row, column = grid.place(patch)
    places = values.reshape(grid.rows, grid.columns)
    sides = ((-1, 0, box[:width]), (1, 0, box[-width:]), (0, -1, box[:, :width]), (0, 1, box[:, -width:]))
    for down, right, edge in sides:
        inside = 0 <= row + down < grid.rows and 0 <= column + right < grid.columns
        if inside and places[row + down, column + right] != places[row, column]:
            edge[...] = colour
