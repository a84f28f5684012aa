"""What the TensorRT plugins' operators compute, in NumPy and fp64 after plugins/README.md, and inputs for tests."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .cpu_kernels import CpuKernels

#: How far a variance must be from a limit of the head filter before fp32 and fp64 must agree on the head.
CLEAR = 1e-4


def head_scores(attention, survivors, iterations, boost):
    """Scores of each head at mean 1, `[B, H, N]`, and their variances."""
    tokens = attention.shape[-1]
    attention = attention.astype(np.float64)
    alive = survivors.astype(np.float64)[:, None, :]
    start = np.ones(tokens)
    start[0] = tokens ** (boost / 2)
    scores = np.broadcast_to(alive * start, attention.shape[:3])
    for _ in range(iterations):
        scores = alive * np.matmul(scores[:, :, None, :], attention)[:, :, 0, :]
        top = scores.max(-1, keepdims=True)
        scores = np.divide(scores, top, out=np.zeros_like(scores), where=top > 0)
    live = alive.sum(-1, keepdims=True)
    total = scores.sum(-1, keepdims=True)
    scaled = np.divide(scores * live, total, out=np.zeros_like(scores), where=total > 0)
    variance = np.divide((scaled**2).sum(-1), live[..., 0], out=np.zeros(scores.shape[:2]), where=live[..., 0] > 0) - 1
    return scaled, variance


def page_rank(attention, survivors, *, iterations, boost=1, filter_heads=True, limits=(0.01, 0.7), rms=True):
    scaled, variance = head_scores(attention, survivors, iterations, boost)
    passes = (variance >= limits[0]) & (variance <= limits[1]) if filter_heads else np.ones_like(variance, bool)
    counts = np.where(passes.any(-1, keepdims=True), passes, True)
    values = scaled**2 if rms else scaled
    joined = (counts[..., None] * values).sum(1) / counts.sum(-1)[:, None]
    return np.sqrt(joined) if rms else joined


def prune(scores, keys, *, drop, prefix_tokens):
    """Survivors `[B, N]`, and by how much each image could have been decided otherwise."""
    feature = keys.astype(np.float64).mean(1)
    feature /= np.maximum(np.linalg.norm(feature, axis=-1, keepdims=True), 1e-12)
    batch, tokens = scores.shape
    group_a = (tokens - prefix_tokens) // 2
    survivors, gaps = np.ones((batch, tokens)), np.full(batch, np.inf)
    for image in range(batch):
        ranked = [
            (image_score if token >= prefix_tokens else np.inf) for token, image_score in enumerate(scores[image])
        ]
        order = sorted(range(tokens), key=lambda token: (-ranked[token], token))
        in_b, in_a = order[: tokens - group_a], order[tokens - group_a :]
        best = (feature[image, in_a] @ feature[image, in_b].T).max(-1)
        by_similarity = sorted(range(group_a), key=lambda place: (-best[place], place))
        survivors[image, [in_a[place] for place in by_similarity[:drop]]] = 0
        if drop < group_a:
            gaps[image] = best[by_similarity[drop - 1]] - best[by_similarity[drop]]
    return survivors, gaps


def attention_matrix(rng, batch, heads, tokens, dtype):
    """Softmax attention; heads differ in how much they prefer some tokens, so that the filter has work to do."""
    preference = np.linspace(0.1, 2.0, heads)[None, :, None, None]
    logits = rng.standard_normal((batch, heads, tokens, tokens)).astype(np.float32)
    logits += preference * rng.standard_normal((batch, heads, 1, tokens))
    weights = np.exp(logits)
    return (weights / weights.sum(-1, keepdims=True)).astype(dtype)


def some_survivors(rng, batch, tokens):
    alive = (rng.random((batch, tokens)) < 0.7).astype(np.float32)
    alive[:, 0] = 1
    return alive


def clear_case(seed, case) -> tuple[Any, Any]:
    """Attention and survivors for which no head is at the edge of the filter."""
    for attempt in range(20):
        rng = np.random.default_rng([seed, attempt])
        attention = attention_matrix(rng, case.batch, case.heads, case.tokens, case.dtype)
        alive = some_survivors(rng, case.batch, case.tokens)
        _, variance = head_scores(attention, alive, case.iterations, case.boost)
        if not case.survivors:
            _, variance = head_scores(attention, np.ones_like(alive), case.iterations, case.boost)
        if min(np.abs(variance - 0.01).min(), np.abs(variance - 0.7).min()) > CLEAR:
            return attention, alive if case.survivors else None
    raise AssertionError("no clear case in 20 attempts")


class Case(NamedTuple):
    def __str__(self) -> str:
        return "-".join(str(getattr(value, "__name__", value)) for value in self)

    tokens: int
    dtype: type
    path: str
    heads: int
    batch: int
    iterations: int
    survivors: bool
    filter_heads: bool
    rms: bool
    boost: int


AXES: dict[str, tuple[Any, ...]] = {
    "tokens": (5, 65, 197, 257, 577, 1025),
    "dtype": (np.float32, np.float16),
    "path": ("auto", "shared", "l2", "single"),
    "heads": (1, 3, 6, 12, 16),
    "batch": (1, 3),
    "iterations": (1, 5, 30),
    "survivors": (False, True),
    "filter_heads": (True, False),
    "rms": (True, False),
    "boost": (0, 1, 2),
}
#: Entries of A that one case may read in all its iterations: what keeps the tests short.
WORK = 2e7


def covering_cases() -> Iterator[Case]:
    """All of tokens x dtype x path; the other axes are drawn, and cut where a case would take too long.

    Then many iterations of large matrices, one head of them.
    """
    rng = np.random.default_rng(7)
    for number, (tokens, dtype, path) in enumerate(product(AXES["tokens"], AXES["dtype"], AXES["path"])):
        heads = AXES["heads"][number % 5]
        batch = AXES["batch"][number // 5 % 2] if heads * 3 * tokens**2 <= WORK / 4 else 1
        iterations = max(n for n in (1, 5, AXES["iterations"][number % 3]) if n == 1 or n * heads * tokens**2 <= WORK)
        if number % 3 == 0:
            iterations = 1
        yield Case(tokens, dtype, path, heads, batch, iterations, *map(bool, rng.integers(0, 2, 3)), number % 3)
    for tokens, path in product((577, 1025), ("shared", "l2", "single")):
        yield Case(tokens, np.float16, path, 1, 1, 30, True, True, True, 1)


CASES = list(covering_cases())
#: tokens, width, heads, batch
PRUNED = (
    (6, 1, 1, 3),
    (65, 48, 16, 1),
    (197, 64, 3, 3),
    (257, 128, 1, 1),
    (577, 64, 12, 1),
    (1025, 64, 6, 1),
    (1370, 128, 1, 1),
)


def tied_keys(rng, batch, heads, tokens, width, dtype):
    """Keys whose features and dot products are exact in fp16 and fp32, with many ties and duplicates.

    4 entries of +-1 have length 2; all heads are alike, so their mean is exact too.
    """
    keys = np.zeros((batch, 1, tokens, width))
    for image, token in product(range(batch), range(tokens)):
        places = rng.choice(min(width, 6), 4, replace=False)
        keys[image, 0, token, places] = rng.choice([-1.0, 1.0], 4)
    return np.repeat(keys, heads, 1).astype(dtype)


def check_page_rank(kernels: CpuKernels, case: Case) -> None:
    """Compare what the kernels say of a case with NumPy."""
    attention, alive = clear_case(CASES.index(case), case)
    how = {"iterations": case.iterations, "boost": case.boost, "filter_heads": case.filter_heads}
    got = kernels.weighted_page_rank(
        attention, alive, root_mean_square=case.rms, path=case.path, shared_limit=kernels.shared_limit, **how
    )
    everyone = np.ones((case.batch, case.tokens)) if alive is None else alive
    expected = page_rank(attention, everyone, rms=case.rms, **how)
    np.testing.assert_allclose(got, expected, rtol=2e-5, atol=1e-6)
    assert np.all(got[everyone == 0] == 0)


def check_prune(kernels: CpuKernels, shape: tuple[int, int, int, int], dtype: npt.DTypeLike, shared_limit: int) -> None:
    """Compare which tokens the kernels drop with NumPy."""
    tokens, width, heads, batch = shape
    rng = np.random.default_rng([tokens, width])
    keys = rng.standard_normal((batch, heads, tokens, width)).astype(dtype)
    scores = rng.random((batch, tokens)).astype(np.float32)
    drop = max(1, tokens // 5)
    got = kernels.similarity_prune(scores, keys, drop=drop, prefix_tokens=1, shared_limit=shared_limit)
    expected, gaps = prune(scores, keys, drop=drop, prefix_tokens=1)
    assert np.all(got.sum(-1) == tokens - drop)
    for image in range(batch):
        # Two similarities within rounding may trade places: at most one pair of tokens.
        allowed = 0 if gaps[image] > 1e-6 else 2
        assert np.sum(got[image] != expected[image]) <= allowed
