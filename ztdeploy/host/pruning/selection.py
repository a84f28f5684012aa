"""Choosing and gathering tokens with static shapes and one tie rule: the lower index wins."""

from __future__ import annotations

import torch
from torch import Tensor

_SEED = 2305_17328


def top_indices(scores: Tensor, k: int) -> Tensor:
    """Indices of the `k` largest scores, best first; ties go to the lower index.

    Args:
        scores: `[B, N]`.
        k: a static count, at most N.

    Returns:
        `[B, k]` int64.
    """
    if torch.compiler.is_exporting():
        # ONNX's TopK guarantees the tie rule; torch.topk does not, so eager mode sorts stably instead.
        return torch.topk(scores, k, dim=-1, largest=True, sorted=True).indices
    return torch.sort(scores, dim=-1, descending=True, stable=True).indices[:, :k]


def ascending(indices: Tensor) -> Tensor:
    """Sort indices `[B, k]`, so that kept tokens keep their original order."""
    if torch.compiler.is_exporting():
        return torch.topk(indices, indices.shape[-1], dim=-1, largest=False, sorted=True).values
    return torch.sort(indices, dim=-1).values


def complement(indices: Tensor, tokens: int) -> Tensor:
    """The indices from 0 to `tokens - 1` that are not in `[B, m]`, ascending: `[B, tokens - m]` int64."""
    # Distinct numbers, because not every runtime's TopK breaks ties by the index.
    order = torch.arange(tokens, 0, -1, dtype=torch.float32, device=indices.device)
    left = order.expand(indices.shape[0], -1).scatter(1, indices, 0.0)
    return top_indices(left, tokens - indices.shape[1])


def gather_tokens(x: Tensor, indices: Tensor) -> Tensor:
    """Rows of `x [B, N, D]` at `indices [B, k]`, as `[B, k, D]`.

    Exported as GatherElements over an expanded index, which the graph pass `gather_rows` turns into one GatherND.
    """
    return torch.gather(x, 1, indices.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def cut_gap(scores: Tensor, k: int) -> Tensor:
    """Difference between the last kept and the first dropped score: `[B]`, infinite where nothing is dropped.

    Two correct implementations may choose differently where it is within rounding.
    """
    if not 0 < k < scores.shape[-1]:
        return scores.new_full(scores.shape[:1], torch.inf)
    ordered = torch.sort(scores, dim=-1, descending=True).values
    return ordered[:, k - 1] - ordered[:, k]


def seeded_permutation(count: int, place: int) -> Tensor:
    """`[count]` int64, always the same for a layer; the global random state is not used."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(_SEED + place))
