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


def importance_of(attention: Array, *, class_token: bool) -> list[float]:
    """Of each token, from `[H, N, N]` attention."""
    tokens = range(attention.shape[-1])
    votes = [len(tokens) if class_token and token == 0 else 1 for token in tokens]
    per_head = [[sum(votes[i] * head[i, j] for i in tokens) for j in tokens] for head in attention]
    scaled = [[value / np.mean(head) for value in head] for head in per_head]
    return [float(np.sqrt(np.mean([head[token] ** 2 for head in scaled]))) for token in tokens]


def novelty(
    x: Array,
    attention: Array,
    size: Array,
    *,
    prefix: int,
    class_token: bool,
    keep: int,
    powers: tuple[float, float, float] = (1.0, 1.0, 2.0),
) -> tuple[list[int], float]:
    """Which of `x [N, D]` stay, prefix tokens among the `keep`, and how close the calls were.

    A token's loss: importance times size times squared distance to the nearest more important patch token. Importance
    is the root mean square over heads of what `[H, N, N]` attention gives in one step, the class token's vote counting
    N times, each head's mean being 1. Distances are measured in the longest distance from the mean token. `powers` are
    of importance, size and distance.
    """
    tokens, importance = range(len(x)), importance_of(attention, class_token=class_token)
    longest = max(np.linalg.norm(token - x.mean(0)) for token in x)
    apart = [[float(((x[i] - x[j]) ** 2).sum()) / longest**2 for j in tokens] for i in tokens]
    margin, loss = np.inf, {}
    for i in tokens[prefix:]:
        rivals = [j for j in tokens[prefix:] if importance[j] > importance[i]]
        nearest = min((apart[i][j] for j in rivals), default=np.inf)
        loss[i] = importance[i] ** powers[0] * size[i] ** powers[1] * nearest ** (powers[2] / 2)
        near = [abs(importance[i] - importance[j]) for j in tokens[prefix:] if j != i and apart[i][j] <= nearest]
        margin = min([margin, *near])
    order = sorted(loss, key=lambda token: (-loss[token], token))
    count = keep - prefix
    margin = min(margin, loss[order[count - 1]] - loss[order[count]])
    return [*range(prefix), *sorted(order[:count])], margin


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
