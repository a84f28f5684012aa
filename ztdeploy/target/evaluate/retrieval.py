"""Finding images by their embeddings, each image asking for its nearest among all others (leave one out). Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

#: Similarities that are held at once.
_AT_ONCE = 8_000_000


def neighbours(queries: NDArray[np.float32], gallery: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """The nearest of a gallery by cosine, nearest first; of equals, the one that comes first. Never the image itself.

    Args:
        queries, gallery: `[n, D]` of length 1, of the same images in the same order.
        count: from 1 to n - 1.

    Returns:
        `[n, count]` indices.
    """
    images, rows = len(queries), max(1, _AT_ONCE // len(queries))
    found = np.empty((images, count), np.int64)
    for start in range(0, images, rows):
        part = queries[start : start + rows] @ gallery.T
        own = np.arange(len(part))
        part[own, start + own] = -np.inf
        near = np.sort(np.argpartition(-part, count - 1, axis=1)[:, :count], axis=1)
        order = np.argsort(-np.take_along_axis(part, near, 1), axis=1, kind="stable")
        found[start : start + len(part)] = np.take_along_axis(near, order, 1)
    return found


def with_company(accepted: Sequence[frozenset[int]]) -> NDArray[np.bool_]:
    """`[n]`: whether any other image has one of an image's classes; without, nothing could be found for it."""
    counts = Counter(label for one in accepted for label in one)
    return np.array([any(counts[label] > 1 for label in one) for one in accepted], np.bool_)


def first_hits(near: NDArray[np.int64], accepted: Sequence[frozenset[int]]) -> NDArray[np.int64]:
    """`[n]`: at which place from 0 the first neighbour with one of an image's classes is; k where none of k has."""
    most = near.shape[1]
    return np.array(
        [
            next((place for place, other in enumerate(row) if not own.isdisjoint(accepted[other])), most)
            for own, row in zip(accepted, near.tolist(), strict=True)
        ],
        np.int64,
    )


def overlaps(near: NDArray[np.int64], dense: NDArray[np.int64]) -> NDArray[np.float64]:
    """Of each image's k neighbours, the share that are among dense's k: two `[n, k]` give `[n]`."""
    return np.array(
        [len(set(own) & set(theirs)) / len(own) for own, theirs in zip(near.tolist(), dense.tolist(), strict=True)]
    )
