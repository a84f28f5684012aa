"""The two plugin operators in NumPy, from the contract in `plugins/README.md`."""

from __future__ import annotations

from typing import Any

import numpy as np


def page_rank(attributes: dict[str, Any], attention: Any, survivors: Any = None) -> Any:
    """Attention `[B, H, N, N]` and survivors `[B, N]` to scores `[B, N]`."""
    attention = attention.astype(np.float32)
    batch, heads, tokens, _ = attention.shape
    alive = (np.ones((batch, tokens), np.float32) if survivors is None else survivors)[:, None]
    start = np.ones(tokens, np.float32)
    start[0] = tokens ** (attributes["boost"] / 2)
    scores = np.broadcast_to(alive * start, (batch, heads, tokens))
    for _ in range(attributes["iterations"]):
        scores = alive * (scores[:, :, None] @ attention)[:, :, 0]
        scores = scores / np.maximum(scores.max(-1, keepdims=True), 1e-30)
    live, total = alive.sum(-1, keepdims=True), scores.sum(-1, keepdims=True)
    scores = np.where(total > 0, scores * live / np.where(total > 0, total, 1), 0)
    variance = (scores**2).sum(-1) / live[:, :, 0] - 1
    counts = (variance >= attributes["variance_min"]) & (variance <= attributes["variance_max"])
    counts = counts | ~counts.any(1, keepdims=True) | (not attributes["filter_heads"])
    weights = counts[:, :, None].astype(np.float32)
    power = 2 if attributes["root_mean_square"] else 1
    joined = (weights * scores**power).sum(1) / weights.sum(1)
    return (joined ** (1 / power)).astype(np.float32)


def similarity_prune(attributes: dict[str, Any], scores: Any, keys: Any) -> Any:
    """Scores `[B, N]` and keys `[B, H, N, d]` to survivors `[B, N]`."""
    prefix, (batch, tokens) = attributes["prefix_tokens"], scores.shape
    survivors = np.ones((batch, tokens), np.float32)
    for image in range(batch):
        feature = keys[image].astype(np.float32).mean(0)
        feature = feature / np.maximum(np.linalg.norm(feature, axis=-1, keepdims=True), 1e-12)
        ranked = scores[image].copy()
        ranked[:prefix] = np.inf
        order = np.argsort(-ranked, kind="stable")
        cut = tokens - (tokens - prefix) // 2
        best = (feature[order[cut:]] @ feature[order[:cut]].T).max(-1)
        survivors[image, order[cut:][np.argsort(-best, kind="stable")[: attributes["drop"]]]] = 0
    return survivors


OPERATORS = {"ZtWeightedPageRank": page_rank, "ZtSimilarityPrune": similarity_prune}
