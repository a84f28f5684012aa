"""How a ranking by weighted page rank settles from iteration to iteration. Pure."""

from __future__ import annotations

import torch
from torch import Tensor

from ztdeploy.core.options import DEFAULT_OPTIONS
from ztdeploy.host.pruning.selection import top_indices
from ztdeploy.host.pruning.wpr import joined_shares, start_vector

#: After which iterations a ranking is compared with the one after the last of them.
ITERATIONS = (1, 2, 3, 5, 10, 20, 30, 50)


def rankings(attention: Tensor, *, class_token: bool) -> Tensor:
    """Joined shares after each of `ITERATIONS`, of all tokens and by default options: `[B, H, N, N]` to `[T, B, N]`.

    The recurrence `s <- A^T s` runs once. Nothing is scaled on the way: rows of `A` sum to 1, so the sum of `s` stays.
    """
    tokens = attention.shape[-1]
    scores = start_vector(tokens, boost_class_token=class_token).to(attention).expand(*attention.shape[:2], 1, tokens)
    joined = []
    for iteration in range(1, ITERATIONS[-1] + 1):
        scores = scores @ attention
        if iteration in ITERATIONS:
            joined.append(joined_shares(scores, tokens, DEFAULT_OPTIONS))
    return torch.stack(joined)


def overlaps(scores: Tensor, kept: int) -> Tensor:
    """The share of the best-scored `kept` that are among the last ranking's as well: `[T, B, P]` to `[T, B]`."""
    turns, images, patches = scores.shape
    best = top_indices(scores.reshape(-1, patches), kept)
    chosen = torch.zeros(turns * images, patches).scatter(1, best, 1.0).view(turns, images, patches)
    return (chosen * chosen[-1]).sum(-1) / kept


def rank_correlations(scores: Tensor) -> Tensor:
    """Spearman's rank correlation with the last ranking: `[T, B, P]` to `[T, B]`, P at least 2. Ties by index."""
    order = torch.sort(scores, dim=-1, stable=True).indices
    ranks = torch.sort(order, dim=-1).indices.to(torch.float64)
    centred = ranks - ranks.mean(-1, keepdim=True)
    return (centred * centred[-1]).sum(-1) / centred.square().sum(-1)
