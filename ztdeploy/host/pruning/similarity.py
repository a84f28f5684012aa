"""The S-stage of Zero-TPrune (arXiv 2305.17328): drop near-duplicates among the less important tokens.

Tokens are ordered by their scores and divided into two groups: A is the less important half of the prunable tokens, B
all others (`MethodOptions.partition` has other divisions). Each token of A is paired with the most similar token of B,
and the tokens of A in the `r` most similar pairs are dropped. Only the A x B part of the similarities is computed.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ztdeploy.core.options import DEFAULT_OPTIONS, MethodOptions, Partition
from ztdeploy.core.plan import LayerPlan
from ztdeploy.host.pruning.features import comparable, similarities, vectors
from ztdeploy.host.pruning.layer import ProtectPrefix, Recorder, as_they_are
from ztdeploy.host.pruning.selection import cut_gap, gather_tokens, seeded_permutation, top_indices


def survivors_of(order: Tensor, group_a: Tensor, best_similarity: Tensor, drop: int) -> Tensor:
    """1 for every token but the `drop` tokens of group A with the highest similarity: `[B, N]`.

    Args:
        order: `[B, N]`, all tokens.
        group_a: `[B, |A|]`, some of them.
        best_similarity: `[B, |A|]`, in the same order.
    """
    dropped = group_a.gather(1, top_indices(best_similarity, drop))
    return torch.ones_like(order, dtype=best_similarity.dtype).scatter(1, dropped, 0.0)


def group_positions(partition: Partition, plan: LayerPlan) -> tuple[Tensor, Tensor]:
    """Positions of groups A and B, ascending: in the order of importance; for "random", in the original order.

    Prefix tokens, which always come first, belong to B.
    """
    every, patches = torch.arange(plan.tokens_in), torch.arange(plan.prefix_tokens, plan.tokens_in)
    half = len(patches) // 2
    match partition:
        case "full":
            return patches[1:], every[:-1]
        case "sequential":
            group_a = patches[len(patches) - half :]
        case "important":
            group_a = patches[:half]
        case "alternate":
            group_a = patches[1::2]
        case "random":
            group_a = patches[seeded_permutation(len(patches), plan.block)[:half].sort().values]
    return group_a, every[~torch.isin(every, group_a)]


def as_slice(positions: Tensor, tokens: int) -> slice | None:
    """The positions as a slice if they are adjacent; it has no end if they reach the last token."""
    first, last = int(positions[0]), int(positions[-1])
    neighbours = last - first + 1 == len(positions)
    return slice(first, None if last == tokens - 1 else last + 1) if neighbours else None


def _taken(values: Tensor, positions: slice | None, indices: Tensor) -> Tensor:
    """The tokens of a group among all ordered tokens `[B, N, ...]`, by its slice or otherwise by its indices."""
    return values.index_select(1, indices) if positions is None else values[:, positions]


class Pairs(nn.Module):
    """Finds the most similar pairs. It is a module, so that nodes that only serve notes have a scope of their own."""

    def forward(
        self, group: Tensor, others: Tensor, similarity: Tensor, survivors: Tensor, left: Tensor | None, tokens: int
    ) -> dict[str, Tensor]:
        """Notes, see `Recorder.note`, of the `tokens` that entered the layer.

        Args:
            group, others: `[B, A]` and `[B, A']`, with the similarities `[B, A, A']` between them.
            survivors: `[B, N]`, of the tokens `left [B, N]` that the stage chose among; None: all.
        """
        partner, similarity = others.gather(1, similarity.argmax(-1)), similarity.amax(-1)
        if left is not None:
            group, partner = left.gather(1, group), left.gather(1, partner)
            survivors = survivors.new_ones(survivors.shape[0], tokens).scatter(1, left, survivors)
        return {"survivors": survivors, "group": group, "partner": partner, "similarity": similarity}


class SimilarityDrop(nn.Module):
    """From scores `[B, N]` and the tensor of the feature to survivors `[B, N]` (1 stays, 0 goes)."""

    indices_a: Tensor
    indices_b: Tensor
    earlier: Tensor

    def __init__(
        self,
        plan: LayerPlan,
        options: MethodOptions = DEFAULT_OPTIONS,
        scale: Callable[[Tensor], Tensor] = as_they_are,
    ) -> None:
        """
        Args:
            plan: `tokens_in` is the number of tokens that the stage chooses among.
            scale: of scores, see `KeepTopTokens`.
        """
        super().__init__()
        self.options, self.drop, self.protect, self.scale = options, plan.similarity_drop, ProtectPrefix(plan), scale
        self.pairs = Pairs()
        group_a, group_b = group_positions(options.partition, plan)
        self.size_a = len(group_a)
        self.slice_a, self.slice_b = (as_slice(group, plan.tokens_in) for group in (group_a, group_b))
        self.register_buffer("indices_a", group_a if self.slice_a is None else None, persistent=False)
        self.register_buffer("indices_b", group_b if self.slice_b is None else None, persistent=False)
        if options.partition == "full":
            self.register_buffer("earlier", group_b < group_a.unsqueeze(1), persistent=False)

    def forward(
        self, scores: Tensor | None, source: Tensor, record: Recorder | None = None, left: Tensor | None = None
    ) -> Tensor:
        """
        Args:
            scores: they order the tokens; None where the partition needs no order.
            source: `[B, H, M, d]` or `[B, M, D]`, see `features.source_of`.
            left: `[B, N]` int64, ascending: which of the M tokens these are; None: all.
        """
        order = self._order(scores, source, record, left)
        feature = comparable(vectors(self.options.feature, source), self.options.metric)
        if self.options.partition != "random":
            feature = gather_tokens(feature, order if left is None else left.gather(1, order))
        elif left is not None:
            feature = gather_tokens(feature, left)
        one, other = _taken(feature, self.slice_a, self.indices_a), _taken(feature, self.slice_b, self.indices_b)
        similarity = similarities(one, other, self.options.metric)
        if self.options.partition == "full":
            similarity = similarity.masked_fill(~self.earlier, -torch.inf)
        best = similarity.amax(-1)
        in_front = self.options.partition not in ("sequential", "full")
        group_a = _taken(order, self.slice_a, self.indices_a) if in_front else order[:, -self.size_a :]
        survivors = survivors_of(order, group_a, best, self.drop)
        if record is not None:
            record.gap("similarity", cut_gap, best, self.drop)
            group_b = _taken(order, self.slice_b, self.indices_b)
            record.note(**self.pairs(group_a, group_b, similarity, survivors, left, source.shape[-2]))
        return survivors

    def _order(self, scores: Tensor | None, source: Tensor, record: Recorder | None, left: Tensor | None) -> Tensor:
        """All tokens `[B, N]`: prefix tokens first, then by importance; in the original order for random partitions."""
        if self.options.partition == "random":
            tokens = source.shape[-2] if left is None else left.shape[1]
            return torch.arange(tokens, device=source.device).expand(source.shape[0], -1)
        assert scores is not None
        ranked = self.protect(scores)
        if record is not None:
            record.gap("rank", lambda: self._rank_gap(self.scale(ranked)))
        return top_indices(ranked, scores.shape[1])

    def _rank_gap(self, ranked: Tensor) -> Tensor:
        """The smallest difference of scores that decides a token's group, or its order where that matters."""
        tokens, prefix = ranked.shape[1], self.protect.prefix_tokens
        half = (tokens - prefix) // 2
        if self.options.partition in ("sequential", "important"):
            return cut_gap(ranked, tokens - half if self.options.partition == "sequential" else prefix + half)
        ordered = torch.sort(ranked[:, prefix:], dim=-1, descending=True).values
        return (ordered[:, :-1] - ordered[:, 1:]).amin(-1)
