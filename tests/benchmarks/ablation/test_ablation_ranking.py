"""Convergence of a ranking, against definitions written out."""

from __future__ import annotations

import numpy as np
import torch
from helpers.models import random_attention

from benchmarks.ablation.ranking import ITERATIONS, overlaps, rank_correlations, rankings


def written_out(attention: np.ndarray, iterations: int) -> np.ndarray:
    """One image: fp64 `[H, N, N]` to `[N]`, formulas one by one."""
    heads, tokens, _ = attention.shape
    joined, passing = [], []
    for head in range(heads):
        score = np.full(tokens, 1 / tokens)
        score[0] *= np.sqrt(tokens)
        for _ in range(iterations):
            score = attention[head].T @ score
        score = score / score.mean()
        joined.append(score)
        passing.append(0.01 <= score.var() <= 0.7)
    chosen = [score for score, passes in zip(joined, passing, strict=True) if passes or not any(passing)]
    return np.sqrt(np.mean(np.square(chosen), axis=0))


def test_rankings_after_each_number_of_iterations() -> None:
    attention = random_attention(np.random.default_rng(1), 3, 4, 20)
    scores = rankings(torch.from_numpy(attention), class_token=True)
    assert scores.shape == (len(ITERATIONS), 3, 20)
    for turn, iterations in enumerate(ITERATIONS):
        for image in range(3):
            found, wanted = scores[turn, image].numpy(), written_out(attention[image], iterations) ** 2
            np.testing.assert_allclose(found / found.max(), wanted / wanted.max(), rtol=1e-5)


def test_overlap_and_correlation() -> None:
    generator = np.random.default_rng(2)
    scores = torch.from_numpy(generator.normal(size=(3, 4, 15)))
    overlap, correlation = overlaps(scores, 6), rank_correlations(scores)
    for turn in range(3):
        for image in range(4):
            own, last = scores[turn, image].numpy(), scores[-1, image].numpy()
            both = set(np.argsort(-own)[:6].tolist()) & set(np.argsort(-last)[:6].tolist())
            assert overlap[turn, image] == np.float32(len(both) / 6)
            ranks = np.argsort(np.argsort(own)), np.argsort(np.argsort(last))
            np.testing.assert_allclose(correlation[turn, image], np.corrcoef(*ranks)[0, 1], rtol=1e-9)
    assert torch.equal(overlap[-1], torch.ones(4))
    torch.testing.assert_close(correlation[-1], torch.ones(4, dtype=torch.float64))
