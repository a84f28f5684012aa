"""The range that loses the least information when it is cut into few levels.

From S. Migacz, "8-bit Inference with TensorRT", GTC 2017: of all thresholds on magnitudes, the one whose quantised
distribution diverges least (Kullback-Leibler) from the true one, with what lies beyond counted at its edge.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

LEVELS = 128  #: of a magnitude in int8
BINS = 2048
_STRIDE = 16  #: thresholds are looked at in steps of so many bins


class Magnitudes:
    """A histogram of magnitudes that takes values in parts and holds none of them.

    Its bins start at 0; where a value lies beyond the last one, pairs of bins become one and the range doubles.
    """

    def __init__(self) -> None:
        self.counts, self.top = np.zeros(BINS), 0.0

    def add(self, values: NDArray[Any]) -> None:
        magnitudes = np.abs(values, dtype=np.float64).ravel()
        most = float(magnitudes.max())
        if self.top == 0:
            self.top = most
        while 0 < self.top < most:
            self.counts = np.concatenate([self.counts.reshape(-1, 2).sum(1), np.zeros(BINS // 2)])
            self.top *= 2
        if self.top > 0:
            self.counts += np.histogram(magnitudes, BINS, (0, self.top))[0]
        else:
            self.counts[0] += magnitudes.size

    def threshold(self) -> float:
        """The magnitude beyond which values are best cut off."""
        used = int(np.flatnonzero(self.counts)[-1]) + 1
        tried = [*range(LEVELS, used, _STRIDE), max(used, LEVELS)]
        best = min(tried, key=lambda bins: divergence(self.counts, bins))
        return float(self.top * best / BINS)


def divergence(counts: NDArray[np.float64], bins: int) -> float:
    """Kullback-Leibler divergence, in nats, of a distribution whose first bins alone are kept, in `LEVELS` levels.

    Args:
        counts: of all bins.
        bins: that are kept, at least `LEVELS`; what lies beyond is counted in the last of them.
    """
    kept = counts[:bins]
    true = kept.copy()
    true[-1] += counts[bins:].sum()
    level = np.arange(bins) * LEVELS // bins
    filled = kept > 0  # a level spreads over those of its bins that hold anything
    share = np.bincount(level, kept, LEVELS) / np.maximum(np.bincount(level, filled, LEVELS), 1)
    coarse = np.where(filled, share[level], 0.0)
    p, q = true / true.sum(), coarse / max(coarse.sum(), 1.0)
    held = p > 0
    # The last bin may hold nothing but what was cut off: then nothing of it is left in the levels.
    return float((p[held] * np.log(p[held] / np.maximum(q[held], 1e-12))).sum())
