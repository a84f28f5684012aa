"""What is computed from samples: pure functions, no clock.

- **Percentile**: linear interpolation between the two closest ranks (type 7 of Hyndman and Fan, NumPy's default).
- **Dispersion**: the median absolute deviation from the median (MAD), unscaled: half of the samples lie within it.
- **Speed-up**: the median of the rounds' ratios, each a ratio of two medians taken within one round.
- **Interval**: a percentile bootstrap over rounds. A round is the unit, since what disturbs a machine lasts longer than
  a call: calls of one round are not independent, and resampling them would feign precision. Rounds of two runs are
  resampled each by itself, since no round of one belongs to a round of the other.
- **Share** of images: the score interval of a binomial proportion. E. B. Wilson, "Probable inference, the law of
  succession, and statistical inference", J. Am. Stat. Assoc. 22 (1927), 209-212.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import NormalDist, fmean, median
from typing import TYPE_CHECKING

from ztdeploy.core.records import Record

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: With fewer rounds even the span from the lowest to the highest ratio misses the median too often: 2 * 2^-5 > 0.05.
FEWEST_ROUNDS = 6
#: Round -> samples, in any unit but the same.
Rounds = Mapping[int, Sequence[float]]
CONFIDENCE = 0.95
Z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
RESAMPLES = 10_000
#: Values that are drawn at once.
_DRAWN_AT_ONCE = 2_000_000


class Summary(Record):
    """Latency of one call in milliseconds, over `samples` calls.

    A percentile is None where there are too few samples to tell it from the maximum: p90 takes 10, p95 20, p99 100.
    """

    samples: int
    min_ms: float
    mean_ms: float
    p50_ms: float
    p90_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    max_ms: float
    mad_ms: float  #: median absolute deviation


class Interval(Record):
    """Where a figure lies with the stated confidence."""

    low: float
    high: float
    confidence: float

    def contains(self, value: float) -> bool:
        return self.low <= value <= self.high

    def scaled(self, factor: float) -> Interval:
        """The interval of a figure in another unit."""
        return Interval(low=factor * self.low, high=factor * self.high, confidence=self.confidence)

    def __format__(self, spec: str) -> str:
        """Both ends with the same format, such as "1.01 to 1.03" for ".2f"."""
        return f"{self.low:{spec}} to {self.high:{spec}}"


def percentile(samples: Sequence[float], percent: float) -> float:
    """The value below which `percent` of the samples lie, interpolated between the two closest ranks.

    Raises:
        ValueError: no samples, or a percentage outside 0 to 100.
    """
    if not samples or not 0 <= percent <= 100:
        raise ValueError(f"percentile {percent} of {len(samples)} samples")
    ordered = sorted(samples)
    rank = (len(ordered) - 1) * percent / 100
    below = math.floor(rank)
    low, high = ordered[below], ordered[min(below + 1, len(ordered) - 1)]
    return min(high, low + (high - low) * (rank - below))


def median_absolute_deviation(samples: Sequence[float]) -> float:
    """The median distance from the median, in the samples' unit; unscaled.

    Raises:
        ValueError: no samples.
    """
    centre = median(samples)
    return median(abs(sample - centre) for sample in samples)


def summarise(samples_ms: Sequence[float]) -> Summary:
    """
    Raises:
        ValueError: no samples.
    """
    return Summary(
        samples=len(samples_ms),
        min_ms=min(samples_ms),
        mean_ms=fmean(samples_ms),
        p50_ms=percentile(samples_ms, 50),
        p90_ms=_tail(samples_ms, 90),
        p95_ms=_tail(samples_ms, 95),
        p99_ms=_tail(samples_ms, 99),
        max_ms=max(samples_ms),
        mad_ms=median_absolute_deviation(samples_ms),
    )


def _tail(samples: Sequence[float], percent: int) -> float | None:
    return percentile(samples, percent) if len(samples) * (100 - percent) >= 100 else None


def round_ratios(reference: Rounds, own: Rounds, centre: Callable[[Sequence[float]], float] = median) -> list[float]:
    """How many times longer the reference takes, round by round; rounds that only one of them has are left out."""
    return [centre(reference[turn]) / centre(own[turn]) for turn in sorted(reference.keys() & own.keys())]


def median_ratio(reference: Rounds, own: Rounds) -> float:
    """How many times longer the reference takes: the median of the rounds' ratios.

    Raises:
        ValueError: they have no round in common.
    """
    return median(round_ratios(reference, own))


def overall_median(rounds: Rounds) -> float:
    """The median of all samples of all rounds.

    Raises:
        ValueError: no samples.
    """
    return median(sample for samples in rounds.values() for sample in samples)


def bootstrap_interval(
    values: Sequence[float], *, seed: int = 0, confidence: float = CONFIDENCE, resamples: int = RESAMPLES
) -> Interval | None:
    """The percentile bootstrap of the median; None below `FEWEST_ROUNDS` values. The same seed, the same interval."""
    if len(values) < FEWEST_ROUNDS:
        return None
    import numpy as np

    return _interval(_resampled_medians(values, np.random.default_rng(seed), resamples), confidence)


def unpaired_ratio_interval(
    numerator: Sequence[float],
    denominator: Sequence[float],
    *,
    seed: int = 0,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
) -> Interval | None:
    """The percentile bootstrap of a ratio of two medians whose values come from separate runs, so that no two of them
    belong together: each side is resampled by itself.

    Args:
        numerator, denominator: one value per round, above 0.

    Returns:
        None below `FEWEST_ROUNDS` values on either side. The same seed, the same interval.
    """
    if min(len(numerator), len(denominator)) < FEWEST_ROUNDS:
        return None
    import numpy as np

    generator = np.random.default_rng(seed)
    above = _resampled_medians(numerator, generator, resamples)
    return _interval(above / _resampled_medians(denominator, generator, resamples), confidence)


def _resampled_medians(values: Sequence[float], generator: np.random.Generator, resamples: int) -> NDArray[np.float64]:
    """Medians of `resamples` draws with replacement, some draws at a time: thousands of rounds still fit in memory."""
    import numpy as np

    given = np.asarray(values, dtype=np.float64)
    at_once = max(1, _DRAWN_AT_ONCE // len(given))
    medians = [
        np.median(given[generator.integers(0, len(given), (min(at_once, resamples - start), len(given)))], axis=1)
        for start in range(0, resamples, at_once)
    ]
    return np.concatenate(medians)


def _interval(medians: NDArray[np.float64], confidence: float) -> Interval:
    import numpy as np

    tail = 100 * (1 - confidence) / 2
    low, high = np.percentile(medians, [tail, 100 - tail])
    return Interval(low=float(low), high=float(high), confidence=confidence)


def wilson_interval(count: int, total: int) -> Interval:
    """Where the share lies of which `count` of `total` images are a sample (Wilson's score interval).

    Raises:
        ValueError: no images, or a count outside 0 to `total`.
    """
    if not 0 <= count <= total or total < 1:
        raise ValueError(f"{count} of {total} images")
    scale = 1 + Z * Z / total
    centre = (count + Z * Z / 2) / total / scale
    half = Z * math.sqrt(count * (total - count) / total + Z * Z / 4) / total / scale
    low = 0.0 if count == 0 else max(0.0, centre - half)
    high = 1.0 if count == total else min(1.0, centre + half)
    return Interval(low=low, high=high, confidence=CONFIDENCE)
