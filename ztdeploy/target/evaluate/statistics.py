"""How far the figures of an evaluation can be trusted: pure functions of counts and values, no engine, no clock.

- **Share** (top-1, top-5, agreement): `measure.statistics.wilson_interval`.
- **Paired change** (top-1 of a variant less that of dense, on the same images): the score interval that inverts
  McNemar's test. T. Tango, "Equivalence test and confidence interval for the difference in proportions for the
  paired-sample design", Statistics in Medicine 17 (1998), 891-908.
- **Mean** (KL divergence, cosine): percentile bootstrap over images. B. Efron and R. J. Tibshirani, "An introduction
  to the bootstrap" (1993), chapter 13.
- **Quantile** (cosine), positions of one image not being independent: R. S. Woodruff, "Confidence intervals for medians
  and other position measures", J. Am. Stat. Assoc. 47 (1952), 635-646.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ztdeploy.target.measure.statistics import CONFIDENCE, Interval
from ztdeploy.target.measure.statistics import Z as _Z

RESAMPLES = 2_000
#: Values that are drawn at once.
_DRAWN_AT_ONCE = 2_000_000
#: Each halves an interval of at most 2; more do nothing in double precision.
_HALVINGS = 60


def paired_interval(gained: int, lost: int, total: int) -> Interval:
    """Where the change of a share lies, both shares being taken on the same `total` images (Tango's score interval).

    It holds every change that a score test does not reject; for a change of 0 that test is McNemar's (without
    continuity correction), so the interval leaves out 0 exactly where (gained - lost)^2 / (gained + lost) > z^2.

    Args:
        gained: images that only the variant has right.
        lost: images that only dense has right.

    Returns:
        In the unit of (gained - lost) / total, from -1 to 1.

    Raises:
        ValueError: no images, or counts that do not fit.
    """
    if min(gained, lost) < 0 or not total >= 1 or gained + lost > total:
        raise ValueError(f"{gained} gained and {lost} lost of {total} images")
    change = (gained - lost) / total
    low = _last(lambda delta: tango_score(gained, lost, total, delta) <= _Z, change, -1.0)
    high = _last(lambda delta: tango_score(gained, lost, total, delta) >= -_Z, change, 1.0)
    return Interval(low=low, high=high, confidence=CONFIDENCE)


def tango_score(gained: int, lost: int, total: int, delta: float) -> float:
    """The score statistic of "the change is `delta`": standard normal where it is. Falls as `delta` grows.

    (b - c - n delta) / sqrt(n (2 q + delta (1 - delta))), q being the likeliest probability of "lost" given `delta`:
    the larger root of 2 n q^2 + (-b - c + (2 n - b + c) delta) q - c delta (1 - delta) (Tango 1998, section 2).
    """
    distance = gained - lost - total * delta
    a, b = 2 * total, -gained - lost + (2 * total - gained + lost) * delta
    c = -lost * delta * (1 - delta)
    q = (math.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)
    variance = total * (2 * q + delta * (1 - delta))
    if variance <= 0:
        return 0.0 if abs(distance) < 1e-12 * total else math.copysign(math.inf, distance)
    return distance / math.sqrt(variance)


def mean_interval(values: NDArray[np.float64], *, seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """The percentile bootstrap of the mean, images being the unit. The same seed, the same interval.

    Args:
        values: one per image, `[n]`, n at least 1.
    """
    generator, at_once = np.random.default_rng(seed), max(1, _DRAWN_AT_ONCE // len(values))
    means = [
        values[generator.integers(0, len(values), (min(at_once, resamples - start), len(values)))].mean(axis=1)
        for start in range(0, resamples, at_once)
    ]
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(np.concatenate(means), [tail, 100 - tail])
    return Interval(low=float(low), high=float(high), confidence=CONFIDENCE)


def quantile_interval(values: NDArray[np.floating[Any]], share: float) -> Interval:
    """Where a quantile lies of what images like these have, the images being the unit (Woodruff).

    The share of values below the sample's quantile has an interval, by how it differs from image to image; the sample's
    quantiles at the ends of that are the interval's. With few images an end is the lowest or the highest value.

    Args:
        values: `[n, m]`: m of each image, n at least 1.
        share: the share of the values below the quantile, from 0 to 1.
    """
    below = (values <= np.quantile(values, share)).mean(axis=1)
    reach = _Z * (float(below.std(ddof=1)) / math.sqrt(len(below)) if len(below) > 1 else 1.0)
    low, high = np.quantile(values, [max(0.0, share - reach), min(1.0, share + reach)])
    return Interval(low=float(low), high=float(high), confidence=CONFIDENCE)


def _last(holds: Callable[[float], bool], inside: float, outside: float) -> float:
    """The value furthest from `inside`, on the way to `outside`, up to which a condition holds."""
    if holds(outside):
        return outside
    for _ in range(_HALVINGS):
        middle = (inside + outside) / 2
        inside, outside = (middle, outside) if holds(middle) else (inside, middle)
    return inside
