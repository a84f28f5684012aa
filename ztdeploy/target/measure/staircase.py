"""The token staircase: which token counts are measured, and where the time of a block jumps. Pure.

A jump is looked for between neighbouring counts: the median of the few counts above against that of the few below,
within one round, less what growth alone makes of it. It counts where the median over the rounds is both large against
the time of the block and far outside of how rounds differ. One slow call, one slow round, and smooth growth make no
jump; steps of fewer counts than the window holds are not seen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

from ztdeploy.target.measure.statistics import median_absolute_deviation

#: Counts on each side of a jump.
WINDOW = 3
#: A jump is at least this share of the block's time...
SMALLEST = 0.04
#: ... and this many standard errors of its median over the rounds, for some hundred places are looked at.
CERTAIN = 6.0
#: Fewer rounds say nothing about how they differ.
FEWEST_ROUNDS = 6
#: The standard error of the median of n normal values, from their unscaled MAD, times the root of n.
_SPREAD = 1.4826 * 1.2533
#: Nobody keeps so few tokens.
_LOWEST = 8


def token_counts(most: int, affordable: int) -> tuple[int, ...]:
    """Counts to measure, ascending: up to the dense model's, from a quarter of it; as many as can be afforded.

    Args:
        most: the dense model's.
        affordable: how many may be measured.
    """
    lowest = min(most, max(_LOWEST, most // 4))
    span = most - lowest
    step = max(1, math.ceil(span / max(1, affordable - 1)))
    return tuple(sorted({most - offset for offset in range(0, span + 1, step)}))


def find_treads(tokens: Sequence[int], rounds_ms: Sequence[Sequence[float]]) -> tuple[int, ...]:
    """The counts right below a jump, ascending.

    Args:
        tokens: ascending, evenly spaced.
        rounds_ms: per round, one time per count.
    """
    if len(rounds_ms) < FEWEST_ROUNDS or len(tokens) < 2 * WINDOW:
        return ()
    growth = median(_ends(own) for own in rounds_ms) / (len(tokens) - WINDOW)
    jumps = [place for place in range(WINDOW - 1, len(tokens) - WINDOW) if _jumps(place, growth, rounds_ms)]
    # Its neighbours' windows reach over a jump as well; the step itself is where it is steepest.
    rises = {place: median(own[place + 1] - own[place] for own in rounds_ms) for place in jumps}
    return tuple(
        tokens[place]
        for place, rise in rises.items()
        if rise == max(rises.get(near, rise) for near in range(place + 1 - WINDOW, place + WINDOW))
    )


def _ends(own: Sequence[float]) -> float:
    """How much longer a round's highest counts take than its lowest."""
    return median(own[-WINDOW:]) - median(own[:WINDOW])


def _jumps(place: int, growth: float, rounds_ms: Sequence[Sequence[float]]) -> bool:
    """Whether the counts above a place take longer than those up to it by more than growth and noise explain."""
    heights, levels = [], []
    for own in rounds_ms:
        below, above = median(own[place + 1 - WINDOW : place + 1]), median(own[place + 1 : place + 1 + WINDOW])
        heights.append(above - below - WINDOW * growth)
        levels.append(below)
    error = _SPREAD * median_absolute_deviation(heights) / math.sqrt(len(heights))
    return median(heights) > max(CERTAIN * error, SMALLEST * median(levels))
