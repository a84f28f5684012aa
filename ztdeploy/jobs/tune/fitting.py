"""Least squares whose coefficients are times, and so never below 0. Pure."""

from __future__ import annotations

from itertools import combinations

import numpy as np
from numpy.typing import NDArray


def least_squares(features: NDArray[np.float64], times: NDArray[np.float64]) -> NDArray[np.float64]:
    """The coefficients `[m]`, none below 0, with the smallest relative errors on `times [n]`.

    Of every set of columns, the unbounded solution that has no negative coefficient is tried: with so few columns that
    is quick, and exact, for the best bounded one is among these.

    Args:
        features: `[n, m]`; m is at most about 10.
    """
    weighted = features / times[:, None]
    best, least = np.zeros(features.shape[1]), np.inf
    for size in range(1, features.shape[1] + 1):
        for columns in map(list, combinations(range(features.shape[1]), size)):
            found = np.linalg.lstsq(weighted[:, columns], np.ones(len(times)), rcond=None)[0]
            error = float(((weighted[:, columns] @ found - 1) ** 2).sum())
            if (found >= 0).all() and error < least:
                best, least = np.zeros(features.shape[1]), error
                best[columns] = found
    return best
