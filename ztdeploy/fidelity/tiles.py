"""Draws one pruning layer's patches onto the image: kept ones as they are, dropped ones dimmed, merged ones tinted."""

from __future__ import annotations

import colorsys
import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ztdeploy.errors import InputError
from ztdeploy.fidelity.patches import GONE, LayerPatches

#: Side of a tile in pixels, to the nearest multiple of its patches.
_SIDE = 336
_DIM, _DIMMED_SHARE = np.array((34.0, 38.0, 46.0)), 0.78
_EDGE, _TINT_SHARE = np.array((236.0, 240.0, 245.0)), 0.6
_FUSED = (70.0, 130.0, 220.0)


def grid_of(patches: int) -> int:
    """Patches along one side of a square image.

    Raises:
        InputError: not a square.
    """
    grid = math.isqrt(patches)
    if grid * grid != patches:
        raise InputError(f"a model with {patches} patches", "as many rows as columns", "choose another bundle")
    return grid


def plain_tile(pixels: NDArray[np.uint8], grid: int) -> Image.Image:
    """The image as the model sees it, uint8 `[S, S, 3]`, scaled so that each patch has whole pixels."""
    side = grid * max(4, round(_SIDE / grid))
    smooth = side < 3 * len(pixels)  # small images are shown in their pixels
    return Image.fromarray(pixels).resize(
        (side, side), Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST
    )


def layer_tile(plain: Image.Image, layer: LayerPatches, grid: int) -> Image.Image:
    """A plain tile with one layer's patches. Those that stay keep their pixels, but for a group's outline."""
    pixels = np.asarray(plain).astype(np.float64)
    cell = len(pixels) // grid
    stays, groups = layer.stays, _group_of(layer)
    dimmed = pixels.mean(-1, keepdims=True) * (1 - _DIMMED_SHARE) + _DIM * _DIMMED_SHARE
    line = max(1, cell // 12)
    for patch in range(grid * grid):
        box = _box(patch, grid, cell)
        colour = None if groups[patch] == GONE else _colour(layer, int(groups[patch]))
        if colour is not None and not stays[patch]:
            grey = pixels[box].mean(-1, keepdims=True)
            pixels[box] = grey * (1 - _TINT_SHARE) + colour * _TINT_SHARE
        elif colour is None and not stays[patch]:
            pixels[box] = dimmed[box]
        if colour is not None:
            _outline(pixels[box], _open_sides(groups, patch, grid), line, colour * 0.75)
        elif not stays[patch]:
            # Where what stays begins: visible on dark photographs as well.
            _outline(pixels[box], _open_sides(stays, patch, grid), max(1, line // 2), _EDGE)
    return Image.fromarray(pixels.round().astype(np.uint8))


def _box(patch: int, grid: int, cell: int) -> tuple[slice, slice]:
    row, column = divmod(patch, grid)
    return slice(row * cell, (row + 1) * cell), slice(column * cell, (column + 1) * cell)


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


def _open_sides(values: NDArray[np.generic], patch: int, grid: int) -> tuple[bool, bool, bool, bool]:
    """Whether the patch above, below, left and right is another one's; the image's rim is nobody's."""
    row, column = divmod(patch, grid)
    square = values.reshape(grid, grid)
    here = square[row, column]
    return (
        bool(row > 0 and square[row - 1, column] != here),
        bool(row < grid - 1 and square[row + 1, column] != here),
        bool(column > 0 and square[row, column - 1] != here),
        bool(column < grid - 1 and square[row, column + 1] != here),
    )


def _outline(
    box: NDArray[np.float64], sides: tuple[bool, bool, bool, bool], width: int, colour: NDArray[np.float64]
) -> None:
    """Lines along some sides of a patch, inside it and in place."""
    places = (box[:width], box[-width:], box[:, :width], box[:, -width:])
    for place, wanted in zip(places, sides, strict=True):
        if wanted:
            place[...] = colour
