"""The thresholds of a cascade, with a bound on its agreement: pure functions of counts and values.

- **Bound of a share**: C. J. Clopper and E. S. Pearson, "The use of confidence or fiducial limits illustrated in the
  case of the binomial", Biometrika 26 (1934), 404-413. It is exact for any number of images.
- **Choosing a threshold and bounding on the same images**: thresholds are tested in a fixed order, from the one at
  which every image goes on (which cannot fail) downwards, each at the full level, until one is not shown to hold; the
  last that held is taken. Because fewer images go on at a lower threshold, failures only grow along this path, so
  nothing has to be corrected for having tried many thresholds. What is reported is the bound of the most failures that
  pass the test, also where fewer were seen: the bound of these holds only for a threshold that was fixed beforehand.
  A. N. Angelopoulos, S. Bates, E. J. Candès, M. I. Jordan and L. Lei, "Learn then test: calibrating predictive
  algorithms to achieve risk control", Annals of Applied Statistics 19 (2025), section 2.3; for such monotone risks
  S. Bates, A. Angelopoulos, L. Lei, J. Malik and M. I. Jordan, "Distribution-free, risk-controlling prediction sets",
  Journal of the ACM 68 (2021), theorem 1. A fixed sequence needs no monotone risk, so that it also serves a chain of
  more than two stages, whose thresholds are all the same and fall along a grid.
- **Images unlike the calibration images**: the one-sided two-sample test of Kolmogorov and Smirnov, whose tail for
  samples of n and m is at most about exp(-2 D^2 n m / (n + m)). N. V. Smirnov, "On the estimation of the discrepancy
  between empirical curves of distribution for two independent samples", Bull. Math. Univ. Moscou 2 (1939).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
_HALVINGS = 60


def lower_bound(failures: int, images: int, confidence: float = CONFIDENCE) -> float:
    """Clopper and Pearson's one-sided lower bound of the share of images that do not fail.

    Args:
        failures: from 0 to `images`, of which there is at least one.
    """
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):  # the share at which so few failures have a probability of 1 - confidence
        middle = (low + high) / 2
        low, high = (
            (middle, high) if chance_of_at_most(failures, images, 1 - middle) <= 1 - confidence else (low, middle)
        )
    return low


def chance_of_at_most(failures: int, images: int, rate: float) -> float:
    """The probability of at most so many failures of independent images that each fail at a rate."""
    if rate <= 0 or failures >= images:
        return 1.0
    if rate >= 1:
        return 0.0
    return math.fsum(
        math.exp(
            math.lgamma(images + 1)
            - math.lgamma(count + 1)
            - math.lgamma(images - count + 1)
            + count * math.log(rate)
            + (images - count) * math.log1p(-rate)
        )
        for count in range(failures + 1)
    )


def most_failures(images: int, agreement: float, confidence: float = CONFIDENCE) -> int:
    """How many images may fail so that the agreement of images like them is shown; -1 where there are too few."""
    failures = -1
    while chance_of_at_most(failures + 1, images, 1 - agreement) <= 1 - confidence:
        failures += 1
    return failures


def fewest_images(agreement: float, confidence: float = CONFIDENCE) -> int:
    """How many images it takes to show an agreement below 1, where none of them fails."""
    return math.ceil(math.log(1 - confidence) / math.log(agreement))


def threshold_for(confidence: NDArray[np.floating], agrees: NDArray[np.bool_], failures: int) -> float:
    """The lowest threshold at which no more images fail: those that stay, at or above it, and do not agree.

    Args:
        confidence: of the stage in each image, `[n]`.
        agrees: whether the stage agrees with the baseline, `[n]`.
        failures: how many images may fail.

    Returns:
        One that keeps all images where all may stay, and none where none may; always finite.
    """
    wrong = np.sort(confidence[~agrees])[::-1]
    if len(wrong) <= failures:
        return float(confidence.min())
    above = confidence[confidence > wrong[failures]]
    return float(above.min()) if len(above) else float(np.nextafter(confidence.max(), np.float32(math.inf)))


def quantiles(confidence: NDArray[np.floating], count: int = 64) -> tuple[float, ...]:
    """So many quantiles of the confidence, ascending: the values with the same share of images below each of them."""
    shares = (np.arange(count) + 0.5) / count
    return tuple(float(value) for value in np.quantile(confidence, shares, method="inverted_cdf"))


def unlike(confidence: NDArray[np.floating], expected: Sequence[float], images: int, level: float = 0.01) -> bool:
    """Whether images are less confident than calibration images were, by more than chance explains.

    Args:
        confidence: of the images, `[m]`.
        expected: `quantiles` of the calibration images.
        images: how many calibration images there were.
        level: how often this is so of images that are alike.
    """
    below = np.searchsorted(np.sort(confidence), expected, side="right") / len(confidence)
    apart = float((below - (np.arange(len(expected)) + 0.5) / len(expected)).max()) - 0.5 / len(expected)
    return apart > math.sqrt(-math.log(level) / 2 * (1 / len(confidence) + 1 / images))
