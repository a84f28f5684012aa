"""How alike two vectors are, whatever their lengths."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def cosines(dense: NDArray[Any], variant: NDArray[Any]) -> NDArray[np.float64]:
    """Of vectors along the last axis, in fp64, from -1 to 1: `[..., D]` and `[..., D]` give `[...]`.

    A vector of zeros has no direction: it is like another one of zeros (1), and like nothing else (0).
    """
    a, b = unit_vectors(dense.astype(np.float64)), unit_vectors(variant.astype(np.float64))
    found: NDArray[np.float64] = np.clip((a * b).sum(-1), -1.0, 1.0)
    return np.where((a == 0).all(-1) & (b == 0).all(-1), 1.0, found)


def unit_vectors(vectors: NDArray[Any]) -> NDArray[Any]:
    """The same directions with a length of 1; zeros stay zeros. Finite also where squares would overflow."""
    largest = np.abs(vectors).max(-1, keepdims=True, initial=0)
    scaled = vectors / np.where(largest == 0, 1, largest)
    length = np.sqrt((scaled * scaled).sum(-1, keepdims=True))
    result: NDArray[Any] = scaled / np.where(length == 0, 1, length)
    return result
