"""The S-stage of Zero-TPrune (arXiv 2305.17328): drop near-duplicates among the less important tokens.

Tokens are ordered by their I' scores and cut into two groups: A, the less important half of the prunable
tokens, and B, everything else. For each token of A the most similar token of B is found; of the `r` most
similar pairs, the token of A is dropped. Only the A x B half of the similarities is ever computed.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ztdeploy.pruning.layer import ProtectPrefix, Recorder
from ztdeploy.pruning.selection import cut_gap, gather_tokens, top_indices
from ztdeploy.schedule import LayerPlan

_EPSILON = 1e-12


def key_feature(keys: Tensor) -> Tensor:
    """The key vector averaged over heads, at unit length: `[B, H, N, d]` to `[B, N, d]`."""
    return unit_length(keys.mean(1))


def unit_length(feature: Tensor) -> Tensor:
    """Each vector along the last axis at length 1; a zero vector stays one."""
    length: Tensor = torch.linalg.vector_norm(feature, dim=-1, keepdim=True)
    return feature / length.clamp_min(_EPSILON)


def survivors_of(order: Tensor, best_similarity: Tensor, drop: int) -> Tensor:
    """1 for every token but the `drop` tokens of group A with the highest similarity: `[B, N]`.

    Args:
        order: `[B, N]`, tokens by importance; its tail is group A.
        best_similarity: `[B, |A|]`, in the order of that tail.
    """
    group_a = order[:, -best_similarity.shape[-1] :]
    dropped = group_a.gather(1, top_indices(best_similarity, drop))
    return torch.ones_like(order, dtype=best_similarity.dtype).scatter(1, dropped, 0.0)


class Pairs(nn.Module):
    """Who is the most similar to whom. A module, so that what is computed for notes alone has a scope of its own."""

    def forward(self, group: Tensor, others: Tensor, similarity: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens `[B, A]` and `[B, A']`, and their similarities `[B, A, A']`, to `group` and `partner` of a note."""
        return group, others.gather(1, similarity.argmax(-1))


class SimilarityDrop(nn.Module):
    """I' scores `[B, N]` and keys `[B, H, N, d]` to survivors `[B, N]` (1 stays, 0 goes)."""

    def __init__(self, plan: LayerPlan) -> None:
        super().__init__()
        self.group_a = (plan.tokens_in - plan.prefix_tokens) // 2
        self.drop, self.protect, self.pairs = plan.similarity_drop, ProtectPrefix(plan), Pairs()

    def forward(self, scores: Tensor, keys: Tensor, record: Recorder | None = None) -> Tensor:
        tokens = scores.shape[1]
        ranked = self.protect(scores)
        order = top_indices(ranked, tokens)
        feature = gather_tokens(key_feature(keys), order)
        group_b = tokens - self.group_a
        similarity = feature[:, group_b:] @ feature[:, :group_b].transpose(1, 2)
        best = similarity.amax(-1)
        survivors = survivors_of(order, best, self.drop)
        if record is not None:
            record.gap("rank", cut_gap(ranked, group_b))
            record.gap("similarity", cut_gap(best, self.drop))
            group, nearest = self.pairs(order[:, group_b:], order[:, :group_b], similarity)
            record.note(survivors=survivors, group=group, partner=nearest, similarity=best)
        return survivors
