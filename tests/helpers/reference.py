"""Zero-TPrune's pruning layer once more, in NumPy and fp64, from the text of the method's specification alone.

Written for one image at a time and with loops, to be compared with by eye; nothing here is shared with the
package. `A[h, i, j]` is what query token `i` pays to key token `j`.

Where the specification is silent, the reading taken here is: an odd number of prunable tokens gives the smaller
half to group A; where two pairs are equally similar, the pair comes first whose token of A ranks higher; a head
whose whole vote goes to tokens that are no longer there has no scores, and doesn't count.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

VARIANCE_MIN, VARIANCE_MAX = 0.01, 0.7


@dataclass
class Decision:
    """What the layer decides, and by how much it could have decided otherwise."""

    kept: list[int]
    survivors: list[int]
    rank: Array | None = None  #: I' scores
    scores: Array | None = None  #: I-stage scores
    margins: dict[str, float] = field(default_factory=dict)

    @property
    def margin(self) -> float:
        return min(self.margins.values(), default=np.inf)


def start_vector(tokens: int, *, class_token: bool) -> Array:
    start = np.full(tokens, 1.0 / tokens)
    if class_token:
        start[0] = start[0] * np.sqrt(tokens)
    return start


def propagate(attention: Array, start: Array, iterations: int, live: list[int] | None = None) -> Array:
    """`s_{t+1}[j] = sum_i A[i, j] s_t[i]` per head, over the live tokens; `[H, N]`."""
    heads, tokens, _ = attention.shape
    nodes = range(tokens) if live is None else live
    result = np.zeros((heads, tokens))
    for head in range(heads):
        scores = np.zeros(tokens)
        for token in nodes:
            scores[token] = start[token]
        for _ in range(iterations):
            following = np.zeros(tokens)
            for j in nodes:
                following[j] = sum(attention[head, i, j] * scores[i] for i in nodes)
            total = following.sum()
            scores = following / total if total > 0 else following  # the scale is free
        result[head] = scores
    return result


def mean_one(scores: Array, live: list[int]) -> Array:
    """Scores of one head scaled to mean 1 over the live tokens."""
    mean = scores[live].mean()
    return scores / mean if mean > 0 else np.zeros_like(scores)


def variances(scores: Array, live: list[int]) -> Array:
    """`[H]`: how spread each head's scores are; NaN for a head without any."""
    return np.array([np.var(mean_one(head, live)[live]) if head[live].sum() > 0 else np.nan for head in scores])


def heads_that_count(variance: Array) -> list[int]:
    passing = [head for head, value in enumerate(variance) if VARIANCE_MIN <= value <= VARIANCE_MAX]
    return passing or list(range(len(variance)))


def join(scores: Array, live: list[int], *, filter_heads: bool = True, mean: bool = False) -> Array:
    """VHF, then EIR (root mean square over the heads that count), or the mean for the ablation; `[N]`."""
    heads = heads_that_count(variances(scores, live)) if filter_heads else list(range(len(scores)))
    joined = np.zeros(scores.shape[1])
    for token in live:
        values = [mean_one(scores[head], live)[token] for head in heads]
        joined[token] = np.mean(values) if mean else np.sqrt(np.mean(np.square(values)))
    return joined


def filter_margin(scores: Array, live: list[int]) -> float:
    """How far the variance nearest to one of VHF's limits is from it."""
    distances = [min(abs(value - VARIANCE_MIN), abs(value - VARIANCE_MAX)) for value in variances(scores, live)]
    return min((value for value in distances if not np.isnan(value)), default=np.inf)


def by_importance(scores: Array, tokens: list[int]) -> list[int]:
    """Tokens, the most important first; ties go to the lower index."""
    return sorted(tokens, key=lambda token: (-scores[token], token))


def key_features(keys: Array) -> Array:
    """`[H, N, d]` to `[N, d]`: averaged over heads."""
    return np.stack([np.mean([head[token] for head in keys], axis=0) for token in range(keys.shape[1])])


def cosine(a: Array, b: Array) -> float:
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / norms if norms > 0 else 0.0


def groups(rank: Array, prefix: int) -> tuple[list[int], list[int]]:
    """Group A, the less important half of the prunable tokens, most important first; and group B, the rest."""
    order = by_importance(rank, list(range(prefix, len(rank))))
    half = len(order) // 2
    group_a = order[len(order) - half :]
    return group_a, [token for token in range(len(rank)) if token not in group_a]


def most_similar(keys: Array, group_a: list[int], group_b: list[int]) -> list[float]:
    """For each token of A its cosine similarity to the most similar token of B."""
    feature = key_features(keys)
    return [max(cosine(feature[a], feature[b]) for b in group_b) for a in group_a]


def gap(values: list[float], count: int) -> float:
    """Between the last of the `count` largest values and the first that is not among them."""
    ordered = sorted(values, reverse=True)
    return ordered[count - 1] - ordered[count] if 0 < count < len(ordered) else np.inf


def s_stage(rank: Array, keys: Array, prefix: int, drop: int) -> tuple[list[int], dict[str, float]]:
    """The tokens that survive, ascending, and the margins."""
    group_a, group_b = groups(rank, prefix)
    best = most_similar(keys, group_a, group_b)
    pairs = sorted(range(len(group_a)), key=lambda position: (-best[position], position))
    dropped = {group_a[position] for position in pairs[:drop]}
    prunable = list(rank[prefix:])
    margins = {"rank": gap(prunable, len(prunable) - len(group_a)), "similarity": gap(best, drop)}
    return [token for token in range(len(rank)) if token not in dropped], margins


def i_stage(scores: Array, survivors: list[int], prefix: int, keep: int) -> tuple[list[int], float]:
    """The kept tokens, ascending, and the margin; `keep` counts prefix tokens."""
    candidates = [token for token in survivors if token >= prefix]
    best = by_importance(scores, candidates)[: keep - prefix]
    margin = gap([float(scores[token]) for token in candidates], keep - prefix)
    return [*range(prefix), *sorted(best)], margin


def zero_tprune(
    attention: Array,
    keys: Array | None,
    *,
    prefix: int,
    class_token: bool,
    keep: int,
    similarity_drop: int,
    iterations: int,
) -> Decision:
    """The whole layer for one image: `[H, N, N]` attention and `[H, N, d]` keys; `keep` counts prefix tokens."""
    tokens = attention.shape[1]
    every, start = list(range(tokens)), start_vector(tokens, class_token=class_token)
    decision = Decision(kept=every, survivors=every)
    if similarity_drop:
        assert keys is not None
        raw = propagate(attention, start, 1)
        decision.rank = join(raw, every)
        decision.survivors, decision.margins = s_stage(decision.rank, keys, prefix, similarity_drop)
        decision.margins["rank heads"] = filter_margin(raw, every)
        decision.kept = decision.survivors
    if tokens - similarity_drop > keep:
        raw = propagate(attention, start, iterations, decision.survivors)
        decision.scores = join(raw, decision.survivors)
        decision.kept, decision.margins["importance"] = i_stage(decision.scores, decision.survivors, prefix, keep)
        decision.margins["heads"] = filter_margin(raw, decision.survivors)
    return decision
