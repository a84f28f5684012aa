"""ToMe and merging once more, in NumPy and fp64, from the text of arXiv 2210.09461 and the specification alone.

For one image at a time and with loops, nothing shared with the package. The reading taken here: tokens are numbered
in their original order, even ones (but for prefix tokens) form A, odd ones B; of equally similar pairs the one whose
token of A comes first is taken, and of equally similar partners the first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from helpers.reference import Array, cosine, gap, key_features


@dataclass
class Merge:
    """Which tokens stay, and in whom each other one ends up, by their numbers; and how close the calls were."""

    kept: list[int]
    partner: dict[int, int]
    margins: dict[str, float] = field(default_factory=dict)

    @property
    def margin(self) -> float:
        return min(self.margins.values(), default=np.inf)

    @property
    def into(self) -> list[int]:
        """Slots, of the tokens that go in ascending order."""
        return [self.kept.index(self.partner[token]) for token in sorted(self.partner)]


def tome(
    keys: Array, *, prefix: int, count: int, alike: Callable[[Array, Array], float] = cosine, scale: float = 1.0
) -> Merge:
    """Bipartite soft matching of `[H, N, d]` keys: `count` tokens of A are merged into tokens of B."""
    feature = key_features(keys)
    tokens = range(len(feature))
    group_a = [token for token in tokens if token >= prefix and token % 2 == 0]
    group_b = [token for token in tokens if token >= prefix and token % 2 == 1]
    similar = {a: [alike(feature[a], feature[b]) / scale for b in group_b] for a in group_a}
    edges = sorted(group_a, key=lambda a: (-max(similar[a]), a))[:count]
    partner = {a: group_b[int(np.argmax(similar[a]))] for a in edges}
    margins = {
        "similarity": gap([max(similar[a]) for a in group_a], count),
        "partner": min((gap(similar[a], 1) for a in edges), default=np.inf),
    }
    return Merge([token for token in tokens if token not in partner], partner, margins)


def join_most_similar(
    keys: Array, kept: list[int], *, prefix: int, least: float | None = None
) -> tuple[list[int], float]:
    """The slots of all that are not kept, each that of the most similar kept patch token; and the margin."""
    feature, slots, margin = key_features(keys), [], np.inf
    for token in range(len(feature)):
        if token not in kept:
            similar = [cosine(feature[token], feature[other]) for other in kept[prefix:]]
            best = int(np.argmax(similar))
            too_far = least is not None and similar[best] < least
            slots.append(-1 if too_far else prefix + best)
            margin = min(margin, gap(similar, 1), np.inf if least is None else abs(similar[best] - least))
    return slots, margin


def merged(x: Array, size: Array, kept: list[int], into: list[int]) -> tuple[Array, Array]:
    """Tokens `[N, D]` and sizes `[N]` after merging: size-weighted means; a slot of -1 drops its token."""
    gone = [token for token in range(len(x)) if token not in kept]
    members = [[token] for token in kept]
    for token, slot in zip(gone, into, strict=True):
        if slot >= 0:
            members[slot].append(token)
    tokens = [sum(size[m] * x[m] for m in slot) / sum(size[m] for m in slot) for slot in members]
    return np.array(tokens), np.array([sum(size[m] for m in slot) for slot in members])


def ints(values: NDArray[np.integer]) -> list[int]:
    return [int(value) for value in values]
