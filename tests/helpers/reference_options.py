"""The options of Zero-TPrune once more, in NumPy and fp64, from the text of docs/explanation/method.md alone.

For one image at a time and with loops, on `reference`'s page rank. The readings taken here are its own, and: where two
pairs are equally similar, that one comes first whose token of A is the more important one, or, where chance makes the
groups, has the lower index.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from helpers import reference
from helpers.reference import Array, Decision, gap
from ztdeploy.core.options import MethodOptions


@dataclass(frozen=True)
class Shown:
    """What a block shows of one image."""

    attention: Array  # [H, N, N]
    keys: Array  # [H, N, d]
    queries: Array
    values: Array
    tokens: Array  # [N, D]

    def feature(self, name: str) -> Array:
        """`[N, f]`"""
        if name == "tokens":
            return self.tokens
        if name == "all-keys":
            return np.stack([np.concatenate([head[token] for head in self.keys]) for token in range(len(self.tokens))])
        return reference.key_features(getattr(self, name))


def alike(a: Array, b: Array, metric: str) -> float:
    """The larger, the more alike."""
    if metric == "cosine":
        return reference.cosine(a, b)
    if metric == "dot":
        return float(sum(x * y for x, y in zip(a, b, strict=True)))
    power = 2 if metric == "euclidean" else 1
    return -float(sum(abs(x - y) ** power for x, y in zip(a, b, strict=True)))


def scale(feature: Array, metric: str) -> float:
    """What similarities of an image's features are measured in."""
    longest = max(float(np.linalg.norm(one)) for one in feature)
    return {"cosine": 1.0, "manhattan": longest}.get(metric, longest**2) or 1.0


def partners(order: list[int], prefix: int, partition: str, half: list[int]) -> dict[int, list[int]]:
    """Whom each token that may go is compared with; `order` has the prefix tokens first, then the most important."""
    patches = order[prefix:]
    if partition == "full":
        return {token: order[:place] for place, token in enumerate(order) if place > prefix}
    count = len(patches) // 2
    group_a = {
        "sequential": patches[len(patches) - count :],
        "important": patches[:count],
        "alternate": [token for place, token in enumerate(patches) if place % 2],
        "random": [sorted(order)[place] for place in half],
    }[partition]
    return {token: [other for other in order if other not in group_a] for token in group_a}


def s_stage(
    shown: Shown, options: MethodOptions, scores: Array, live: list[int], *, prefix: int, drop: int, half: list[int]
) -> tuple[list[int], dict[str, float]]:
    """Which of the live tokens survive, ascending, and the margins."""
    order = [*range(prefix), *reference.by_importance(scores, [token for token in live if token >= prefix])]
    choices, feature = partners(order, prefix, options.partition, half), shown.feature(options.feature)
    best = {a: max(alike(feature[a], feature[b], options.metric) for b in others) for a, others in choices.items()}
    pairs = sorted(best, key=lambda token: -best[token])  # stable
    margins = {"similarity": gap(list(best.values()), drop) / scale(feature[live], options.metric)}
    ranked = [float(scores[token]) for token in order[prefix:]]
    if options.partition in ("sequential", "important"):
        count = len(ranked) // 2
        margins["rank"] = gap(ranked, len(ranked) - count if options.partition == "sequential" else count)
    elif options.partition != "random":
        margins["rank"] = min((one - other for one, other in pairwise(ranked)), default=np.inf)
    return [token for token in live if token not in pairs[:drop]], margins


def decide(
    shown: Shown,
    options: MethodOptions,
    *,
    prefix: int,
    class_token: bool,
    keep: int,
    similarity_drop: int,
    iterations: int,
    half: list[int],
) -> Decision:
    """The whole layer for one image; `keep` counts prefix tokens.

    Args:
        half: the places, among the tokens that the S-stage sees, of those that may go where chance decides.
    """
    tokens = shown.attention.shape[1]
    every = list(range(tokens))
    start = reference.start_vector(tokens, class_token=class_token and options.start == "boosted")
    how = {"filter_heads": options.head_filter, "mean": options.join == "mean"}
    decision = Decision(kept=every, survivors=every)

    def ranked(live: list[int], steps: int, name: str) -> Array:
        raw = reference.propagate(shown.attention, start, steps, live)
        if options.head_filter:
            decision.margins[name] = reference.filter_margin(raw, live)
        return reference.join(raw, live, **how)

    def similar(scores: Array, live: list[int]) -> list[int]:
        found, margins = s_stage(shown, options, scores, live, prefix=prefix, drop=similarity_drop, half=half)
        decision.margins |= margins
        return found

    def important(scores: Array, live: list[int], count: int) -> list[int]:
        found, decision.margins["importance"] = reference.i_stage(scores, live, prefix, count)
        return found

    if options.order == "importance-first":
        scores = ranked(every, iterations, "heads")
        left = important(scores, every, keep + similarity_drop)
        decision.kept = similar(scores, left) if similarity_drop else left
        return decision
    survivors = similar(ranked(every, 1, "rank heads"), every) if similarity_drop else every
    decision.kept = survivors
    if len(survivors) > keep:
        decision.kept = important(ranked(survivors, iterations, "heads"), survivors, keep)
    return decision
