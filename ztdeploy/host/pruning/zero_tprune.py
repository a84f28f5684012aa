"""Zero-TPrune (CVPR 2024, arXiv 2305.17328): rank (I'), drop near-duplicates (S), keep the important (I)."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from ztdeploy.core.options import DEFAULT_OPTIONS, MethodOptions
from ztdeploy.core.plan import LayerPlan
from ztdeploy.host.pruning.features import source_of
from ztdeploy.host.pruning.layer import BlockTaps, DroppingLayer, KeepTopTokens, Recorder
from ztdeploy.host.pruning.similarity import SimilarityDrop
from ztdeploy.host.pruning.wpr import WeightedPageRank, on_mean_scale


class ZeroTPrune(DroppingLayer):
    """The three stages in the paper's order; with the I-stage first, unimportant tokens would vote for themselves.

    Stages that drop nothing, and rankings that nobody reads, are left out.
    """

    def __init__(self, plan: LayerPlan, options: MethodOptions = DEFAULT_OPTIONS) -> None:
        super().__init__(plan, options)
        by_similarity, self.rank, self.wpr = plan.similarity_drop > 0, None, None
        by_rank = by_similarity and options.partition != "random"
        self.importance_first = by_similarity and options.order == "importance-first"
        entering = plan.tokens_in - (plan.importance_drop if self.importance_first else 0)
        left = plan.model_copy(update={"tokens_in": entering})
        if by_rank and not self.importance_first:
            self.rank = self._page_rank(plan.tokens_in, 1)
        if plan.importance_drop or (by_rank and self.importance_first):
            live = plan.tokens_in - (0 if self.importance_first else plan.similarity_drop)
            self.wpr = self._page_rank(live, plan.iterations)
        scale = partial(on_mean_scale, options=options)
        if plan.importance_drop and self.importance_first:
            self.important = KeepTopTokens(plan.model_copy(update={"tokens_out": entering}), scale)
        if by_similarity:
            self.will_compare(options.feature)
            self.similarity = SimilarityDrop(left, options, scale)
        self.select = KeepTopTokens(left, scale)
        self.needs_attention = self.rank is not None or self.wpr is not None

    def _page_rank(self, live_tokens: int, iterations: int) -> WeightedPageRank:
        tokens, class_token = self.plan.tokens_in, self.plan.class_token
        return WeightedPageRank(tokens, live_tokens, iterations, class_token=class_token, options=self.options)

    def decide(self, x: Tensor, taps: BlockTaps, record: Recorder | None = None) -> Tensor:
        if self.importance_first:
            return self._importance_first(x, taps, record)
        survivors: Tensor | None = None
        if self.plan.similarity_drop:
            scores = self._scores(self.rank, taps, None, record)
            survivors = self.similarity(scores, source_of(self.options.feature, x, taps), record)
            if record is not None and scores is not None:
                record.note(rank=scores)
            if not self.plan.importance_drop:
                kept: Tensor = self.select(survivors)
                return kept
        kept = self.select(self._scores(self.wpr, taps, survivors, record), survivors, record)
        return kept

    def _importance_first(self, x: Tensor, taps: BlockTaps, record: Recorder | None) -> Tensor:
        """The I-stage drops its part; its scores rank the remaining tokens for the S-stage."""
        scores, left = self._scores(self.wpr, taps, None, record), None
        if self.plan.importance_drop:
            assert scores is not None
            left = self.important(scores, None, record)
            scores = scores.gather(1, left)
        survivors = self.similarity(scores, source_of(self.options.feature, x, taps), record, left)
        kept: Tensor = self.select(survivors)
        return kept if left is None else left.gather(1, kept)

    def _scores(
        self, ranking: WeightedPageRank | None, taps: BlockTaps, survivors: Tensor | None, record: Recorder | None
    ) -> Tensor | None:
        """Scores `[B, N]`; None where no ranking is needed."""
        if ranking is None:
            return None
        assert taps.attention is not None
        scores: Tensor = ranking(taps.attention, survivors, record)
        return scores
