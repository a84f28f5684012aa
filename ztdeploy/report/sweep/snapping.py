"""Which numbers of tokens lie just above a tread of the machine's staircase: a few less would cost less. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ztdeploy.core.preprocess_spec import ImageSize
from ztdeploy.report.sweep.panels import is_dense
from ztdeploy.target.measure.sweep_report import Staircase, SweepReport, TokenStep

#: The share of its tokens that a schedule may be asked to give up for a tread.
_NEAR = 0.06


@dataclass(frozen=True)
class Snap:
    """A schedule's number of tokens, and the tread right below it."""

    tokens: int
    tread: int
    variants: tuple[str, ...]
    saved_ms: float  #: of one block; above 0


def token_counts(report: SweepReport, image_size: ImageSize) -> dict[int, tuple[str, ...]]:
    """Every number of tokens that a block is given, ascending, with the variants that do."""
    found: dict[int, list[str]] = {}
    for one in report.variants:
        if one.image_size == image_size:
            for count in set(one.tokens_per_block):
                found.setdefault(count, []).append(one.name)
    return {count: tuple(found[count]) for count in sorted(found)}


def snaps(report: SweepReport, staircase: Staircase) -> list[Snap]:
    """Numbers of tokens up to 6 % above a tread that is faster; the baseline's own number is not to be changed."""
    pruned = {one.name for one in report.variants if not is_dense(one)}
    found = []
    for count, names in token_counts(report, staircase.image_size).items():
        below = max((tread for tread in staircase.treads if tread < count), default=None)
        if below is None or count - below > _NEAR * count or not set(names) <= pruned:
            continue
        saved = block_ms(staircase.points, count) - block_ms(staircase.points, below)
        if saved > 0:
            found.append(Snap(count, below, names, saved))
    return found


def block_ms(points: Sequence[TokenStep], tokens: int) -> float:
    """Time of a block at that many tokens, on the straight line between the two nearest that were measured."""
    return float(np.interp(tokens, [one.tokens for one in points], [one.block_ms for one in points]))
