"""The colours of what is drawn: a scale for importance, and one for each way in which patches go."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

#: Dropped by similarity, and by importance: told apart in all common kinds of colour blindness.
SIMILAR_COLOUR, UNIMPORTANT_COLOUR = (70, 150, 255), (255, 140, 40)
#: No token is there any more.
NOTHING = (34, 38, 46)


def importance_colour(share: ArrayLike) -> NDArray[np.float64]:
    """From 0 (dark violet) to 1 (light yellow), as sRGB 0 to 255 `[..., 3]`.

    Even steps look evenly far apart: lightness and hue grow evenly in OKLab, whose distances are about those that
    people see. Formulas: Björn Ottosson, "A perceptual color space for image processing" (2020).
    """
    share = np.clip(np.asarray(share, np.float64), 0, 1)
    lightness, hue = 0.27 + 0.66 * share, np.deg2rad(300 - 195 * share)
    chroma = 0.1  # as much as all of these hues have on a screen
    a, b = chroma * np.cos(hue), chroma * np.sin(hue)
    cones = np.stack(
        [
            lightness + 0.3963377774 * a + 0.2158037573 * b,
            lightness - 0.1055613458 * a - 0.0638541728 * b,
            lightness - 0.0894841775 * a - 1.2914855480 * b,
        ],
        -1,
    )
    linear = cones**3 @ np.array(
        [
            [4.0767416621, -1.2684380046, -0.0041960863],
            [-3.3077115913, 2.6097574011, -0.7034186147],
            [0.2309699292, -0.3413193965, 1.7076147010],
        ]
    )
    linear = np.clip(linear, 0, 1)
    rgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.asarray(255 * rgb)


def importance_shares(importance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Where each value stands among the finite ones, by rank, from 0 to 1; ties alike, NaN stays.

    A layer decides by the order alone, and a few tokens may have a hundred times the importance of the others.
    """
    finite = importance[np.isfinite(importance)]
    distinct = np.unique(finite)
    places = np.searchsorted(distinct, importance) / max(1, len(distinct) - 1)
    return np.where(np.isfinite(importance), places, np.nan)
