"""ToMe, bipartite soft matching: "Token Merging: Your ViT But Faster" (ICLR 2023, arXiv 2210.09461).

Written from the paper's text. The tokens are cut into two groups by position, alternately. Each token of A is
matched with the token of B whose key is the most similar; of the `r` most similar pairs, the token of A is merged
into that of B. Prefix tokens are in neither group. The layer stands between attention and MLP.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ztdeploy.core.options import DEFAULT_OPTIONS, MethodOptions
from ztdeploy.core.plan import LayerPlan
from ztdeploy.host.pruning.features import comparable, similarities, source_of, vectors
from ztdeploy.host.pruning.layer import BlockTaps, Choice, Recorder
from ztdeploy.host.pruning.merging import Joined, MergingLayer, partner_gap, slot_of
from ztdeploy.host.pruning.selection import ascending, complement, cut_gap, top_indices


def group_starts(prefix_tokens: int) -> tuple[int, int]:
    """The first tokens of the groups of even and of odd positions, without prefix tokens."""
    return prefix_tokens + prefix_tokens % 2, prefix_tokens + 1 - prefix_tokens % 2


class ToMe(MergingLayer):
    """Group A has the even positions, group B the odd ones; tokens keep their order."""

    def __init__(self, plan: LayerPlan, options: MethodOptions = DEFAULT_OPTIONS) -> None:
        super().__init__(plan, options)
        self.proportional = options.proportional
        self.will_compare(options.feature)
        self.start_a, self.start_b = group_starts(plan.prefix_tokens)
        self.merge = plan.tokens_in - plan.tokens_out
        self.pairs = PairsByPosition(self.start_a, self.start_b)

    def choose(self, x: Tensor, taps: BlockTaps, record: Recorder | None = None) -> Joined:
        metric, source = self.options.metric, source_of(self.options.feature, x, taps)
        feature = comparable(vectors(self.options.feature, source), metric)
        similarity = similarities(feature[:, self.start_a :: 2], feature[:, self.start_b :: 2], metric)
        best = similarity.amax(-1)
        pairs = ascending(top_indices(best, self.merge))
        gone = self.start_a + 2 * pairs
        partner = self.start_b + 2 * similarity.argmax(-1).gather(1, pairs)
        choice = Choice(complement(gone, feature.shape[1]), slot_of(partner, gone))
        if record is not None:
            record.gap("similarity", cut_gap, best, self.merge)
            if not self.plan.drops:
                record.gap("partner", partner_gap, similarity, pairs)
            group, nearest = self.pairs(similarity)
            record.note(group=group, partner=nearest, similarity=best)
        return Joined(choice, gone)


class PairsByPosition(nn.Module):
    """Notes of pairs between even and odd positions: from similarities `[B, A, A']` to `group` and `partner`."""

    def __init__(self, start_a: int, start_b: int) -> None:
        super().__init__()
        self.start_a, self.start_b = start_a, start_b

    def forward(self, similarity: Tensor) -> tuple[Tensor, Tensor]:
        group = self.start_a + 2 * torch.arange(similarity.shape[1], device=similarity.device)
        return group.expand(similarity.shape[0], -1), self.start_b + 2 * similarity.argmax(-1)
