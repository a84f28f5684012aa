"""DiffRate, PiToMe, MCTF, ToFu and PPT once more, in NumPy and fp64, from the texts of their papers alone.

For one image at a time and with loops, nothing shared with the package. `A[h, i, j]` is what query `i` pays to key `j`;
groups by position and ties are read as in `reference_merging`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from helpers.reference import Array, cosine, gap, key_features
from helpers.reference_merging import Merge, merged, tome


@dataclass
class Fused:
    """What a layer makes of one image: who stays, the slots of the others (-1: dropped), tokens, sizes."""

    kept: list[int]
    into: list[int]
    margin: float
    tokens: Array
    sizes: Array


def fused(x: Array, size: Array, weight: Array, merge: Merge, counts: Array | None = None) -> Fused:
    """Averages `[k, D]` weighted by `weight [N]`, and sums of what each token counts."""
    tokens, _ = merged(x, weight, merge.kept, merge.into)
    _, sizes = merged(x, size if counts is None else counts, merge.kept, merge.into)
    return Fused(merge.kept, merge.into, merge.margin, tokens, sizes)


def best_of(scores: dict[int, float], count: int) -> list[int]:
    """The keys with the largest scores, best first; ties go to the lower key."""
    return sorted(scores, key=lambda key: (-scores[key], key))[:count]


def pitome(x: Array, keys: Array, size: Array, *, prefix: int, count: int, margin: float) -> Fused:
    feature = key_features(keys)
    patches = range(prefix, len(feature))
    near = {i: {j: cosine(feature[i], feature[j]) for j in patches} for i in patches}

    def term(c: float) -> float:
        return c - margin if c > margin else float(np.exp(c - margin)) - 1

    energy = {i: float(np.mean([term(c) for c in near[i].values()])) for i in patches}
    order = best_of(energy, 2 * count)
    one, other = order[0::2], order[1::2]
    partner = {a: other[int(np.argmax([near[a][b] for b in other]))] for a in one}
    ranked = sorted(energy.values(), reverse=True)[: 2 * count + 1]
    apart = [ranked[i] - ranked[i + 1] for i in range(len(ranked) - 1)]
    closest = min([gap([near[a][b] for b in other], 1) for a in one])
    kept = [token for token in range(len(feature)) if token not in partner]
    return fused(x, size, size, Merge(kept, partner, {"energy": min(apart), "partner": closest}))


def mctf(x: Array, attention: Array, size: Array, *, prefix: int, count: int) -> Fused:
    tokens = range(len(x))
    received = np.array([np.mean([[head[i, j] for i in tokens] for head in attention]) for j in tokens])
    shares = received * len(x)

    def attraction(i: int, j: int) -> float:
        alike = (1 + cosine(x[i], x[j])) / 2
        return alike / (shares[i] * shares[j]) ** (1 / 20) / (size[i] * size[j]) ** (1 / 40)

    group_a = [token for token in tokens if token >= prefix and token % 2 == 0]
    group_b = [token for token in tokens if token >= prefix and token % 2 == 1]
    target, margins = {}, [np.inf]
    for source, goal, many in ((group_a, group_b, count // 2), (group_b, group_a, count - count // 2)):
        left = [token for token in goal if token not in target]
        strength = {i: max(attraction(i, j) for j in left) for i in source}
        chosen = best_of(strength, many)
        if many:
            margins.append(gap(list(strength.values()), many))
        for i in chosen:
            pulls = [attraction(i, j) for j in left]
            target[i] = left[int(np.argmax(pulls))]
            margins.append(gap(pulls, 1))
    end = {i: target.get(j, j) for i, j in target.items()}
    largest = max(float(shares[i] ** -(1 / 20) * size[i] ** -(1 / 40)) for i in tokens) ** 2
    merge = Merge([token for token in tokens if token not in end], end, {"all": min(margins) / largest})
    return fused(x, size, received * size, merge)


def tofu(x: Array, keys: Array, size: Array, *, prefix: int, count: int, drops: bool) -> Fused:
    merge = tome(keys, prefix=prefix, count=count)
    if drops:
        return Fused(merge.kept, [-1] * count, merge.margins["similarity"], x[merge.kept], size[merge.kept])
    found = fused(x, size, size, merge)
    for slot, token in enumerate(merge.kept):
        members = [token, *(other for other, into in merge.partner.items() if into == token)]
        longest = max(np.linalg.norm(x[member]) for member in members)
        found.tokens[slot] *= longest / np.linalg.norm(found.tokens[slot])
    return found


def ppt(
    x: Array, attention: Array, keys: Array, values: Array, size: Array, *, prefix: int, count: int, threshold: float
) -> Fused:
    tokens = range(len(x))
    scores = np.array(
        [sum(head[0, j] for head in attention) * np.linalg.norm([head[j] for head in values]) for j in tokens]
    )
    patches = scores[prefix:] / scores[prefix:].sum()
    beyond = abs(float(np.var(patches)) - threshold) * len(patches) ** 2
    if np.var(patches) < threshold:
        found = fused(x, size, size, tome(keys, prefix=prefix, count=count))
        found.margin = min(found.margin, beyond)
        return found
    stay = best_of({prefix + i: float(value) for i, value in enumerate(patches)}, len(patches) - count)
    kept = [*range(prefix), *sorted(stay)]
    margin = min(beyond, gap(list(patches * len(patches)), len(patches) - count))
    return Fused(kept, [-1] * count, margin, x[kept], size[kept])


def diffrate(x: Array, attention: Array, size: Array, *, prefix: int, keep: int, merges: int) -> Fused:
    """`keep` counts prefix tokens; the `merges` tokens behind those that stay are merged."""
    tokens = range(len(x))
    scores = {j: float(np.mean([head[0, j] for head in attention])) * len(x) for j in tokens[prefix:]}
    order = best_of(scores, len(scores))
    stay, join = sorted(order[: keep - prefix]), order[keep - prefix :][:merges]
    kept, counts, into, margins = [*range(prefix), *stay], size.copy(), list[int](), [np.inf]
    for token in tokens:
        if token in kept:
            continue
        near = [cosine(x[token], x[other]) for other in stay]
        into.append(prefix + int(np.argmax(near)) if token in join else -1)
        if token in join:
            margins.append(gap(near, 1))
            counts[token] *= max(0.0, max(near))
    margins += [gap(list(scores.values()), keep - prefix), gap(list(scores.values()), keep - prefix + merges)]
    averages, _ = merged(x, np.ones(len(x)), kept, into)
    return Fused(kept, into, min(margins), averages, merged(x, counts, kept, into)[1])
