"""Colours of pictures: an even scale, a scale of two directions, and colours that tell classes apart."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Colour: TypeAlias = tuple[int, int, int]
#: Two directions, told apart in all common kinds of colour blindness, and what lies between them.
LESS, MORE, NOTHING = (70, 150, 255), (255, 140, 40), (34, 38, 46)
_GOLDEN_ANGLE = 137.508  #: degrees; the hues of any number of neighbouring classes are far apart


def scale_colour(share: ArrayLike) -> NDArray[np.float64]:
    """From 0 (dark violet) to 1 (light yellow), as sRGB 0 to 255 `[..., 3]`.

    Even steps look evenly far apart: lightness and hue grow evenly in OKLab.
    """
    share = np.clip(np.asarray(share, np.float64), 0, 1)
    return _oklab_colour(0.27 + 0.66 * share, 300 - 195 * share, 0.1)  # as much as all of these hues have on a screen


def signed_colour(share: ArrayLike) -> NDArray[np.float64]:
    """From -1 (blue) over 0 (dark) to 1 (orange), as sRGB 0 to 255 `[..., 3]`."""
    share = np.clip(np.asarray(share, np.float64), -1, 1)[..., None]
    ends, middle = np.where(share < 0, np.array(LESS, np.float64), np.array(MORE, np.float64)), np.array(NOTHING)
    return np.asarray(middle + np.abs(share) * (ends - middle))


def class_colour(index: ArrayLike) -> NDArray[np.float64]:
    """The colour of a class, the same in all pictures, as sRGB 0 to 255 `[..., 3]`; class 0 (background) is dark."""
    index = np.asarray(index)
    colours = _oklab_colour(np.array([0.55, 0.7, 0.85])[index % 3], 20 + _GOLDEN_ANGLE * index, 0.14)
    return np.where(index[..., None] == 0, np.array(NOTHING, np.float64), colours)


def css(colour: Iterable[float]) -> str:
    """A colour for pages and SVG."""
    return f"rgb({', '.join(str(round(float(part))) for part in colour)})"


def _oklab_colour(lightness: ArrayLike, hue: ArrayLike, chroma: float) -> NDArray[np.float64]:
    """As sRGB 0 to 255 `[..., 3]`; distances in OKLab are about those that people see.

    Formulas: Björn Ottosson, "A perceptual color space for image processing" (2020).

    Args:
        hue: in degrees.
    """
    angle = np.deg2rad(hue)
    oklab = np.stack(np.broadcast_arrays(lightness, chroma * np.cos(angle), chroma * np.sin(angle)), -1)
    cones = oklab @ np.array(
        [[1, 1, 1], [0.3963377774, -0.1055613458, -0.0894841775], [0.2158037573, -0.0638541728, -1.2914855480]]
    )
    linear = cones**3 @ np.array(
        [
            [4.0767416621, -1.2684380046, -0.0041960863],
            [-3.3077115913, 2.6097574011, -0.7034186147],
            [0.2309699292, -0.3413193965, 1.7076147010],
        ]
    )
    linear = np.clip(linear, 0, 1)
    return np.asarray(255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055))
