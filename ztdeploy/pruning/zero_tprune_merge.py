"""Zero-TPrune decides who goes; who goes is folded into the most similar token that stays, weighted by size.

Ours: the ranking of CVPR 2024 (arXiv 2305.17328), the averages and the proportional attention of ICLR 2023 (arXiv
2210.09461). Nothing is ever folded into a prefix token.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ztdeploy.options import DEFAULT_OPTIONS, MethodOptions
from ztdeploy.pruning.features import source_of, unit_length, vectors
from ztdeploy.pruning.layer import BlockTaps, Choice, Recorder
from ztdeploy.pruning.merging import MergingLayer
from ztdeploy.pruning.selection import complement, gather_tokens
from ztdeploy.pruning.tome import partner_gap
from ztdeploy.pruning.zero_tprune import ZeroTPrune
from ztdeploy.schedule import LayerPlan


class ZeroTPruneMerge(MergingLayer, ZeroTPrune):
    """The scoring is Zero-TPrune's own, node by node."""

    def __init__(self, plan: LayerPlan, options: MethodOptions = DEFAULT_OPTIONS) -> None:
        super().__init__(plan, options)
        self.proportional = options.proportional
        self.will_compare(options.partner)

    def choose(self, x: Tensor, taps: BlockTaps, record: Recorder | None = None) -> tuple[Choice, Tensor]:
        kept = self.decide(x, taps, record)
        gone = complement(kept, x.shape[1])
        partner, prefix = self.options.partner, self.plan.prefix_tokens
        feature = unit_length(vectors(partner, source_of(partner, x, taps)))
        similarity = gather_tokens(feature, gone) @ gather_tokens(feature, kept[:, prefix:]).transpose(1, 2)
        into = similarity.argmax(-1) + prefix
        least = self.options.least_similarity
        if least is not None:
            into = torch.where(similarity.amax(-1) >= least, into, -1)
        if record is not None:
            record.gap("partner", partner_gap(similarity, torch.arange(gone.shape[1]).expand_as(gone)))
            if least is not None:
                record.gap("least similarity", (similarity.amax(-1) - least).abs().amin(-1))
        return Choice(kept, into), gone
