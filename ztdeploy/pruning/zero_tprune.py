"""Zero-TPrune (CVPR 2024, arXiv 2305.17328): rank (I'), drop near-duplicates (S), keep the important (I)."""

from __future__ import annotations

from torch import Tensor

from ztdeploy.pruning.layer import BlockTaps, DroppingLayer, KeepTopTokens, Recorder
from ztdeploy.pruning.similarity import SimilarityDrop
from ztdeploy.pruning.wpr import WeightedPageRank, WprOptions
from ztdeploy.schedule import LayerPlan


class ZeroTPrune(DroppingLayer):
    """The three stages in the paper's order; with I before S, unimportant tokens would vote for themselves.

    A stage that has nothing to drop is not built.
    """

    needs_attention = True

    def __init__(self, plan: LayerPlan, options: WprOptions = WprOptions()) -> None:  # noqa: B008 - frozen
        super().__init__(plan)
        tokens, live = plan.tokens_in, plan.tokens_in - plan.similarity_drop
        self.needs_keys = plan.similarity_drop > 0
        if plan.similarity_drop:
            self.rank = WeightedPageRank(tokens, tokens, 1, class_token=plan.class_token, options=options)
            self.similarity = SimilarityDrop(plan)
        if plan.importance_drop:
            self.wpr = WeightedPageRank(tokens, live, plan.iterations, class_token=plan.class_token, options=options)
        self.select = KeepTopTokens(plan)

    def decide(self, x: Tensor, taps: BlockTaps, record: Recorder | None = None) -> Tensor:
        assert taps.attention is not None
        survivors: Tensor | None = None
        if self.plan.similarity_drop:
            assert taps.keys is not None
            rank = self.rank(taps.attention, None, record)
            survivors = self.similarity(rank, taps.keys, record)
            if record is not None:
                record.note(rank=rank)
            if not self.plan.importance_drop:
                kept: Tensor = self.select(survivors)
                return kept
        scores = self.wpr(taps.attention, survivors, record)
        kept = self.select(scores, survivors, record)
        return kept
