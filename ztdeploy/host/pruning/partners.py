"""Tokens that go, folded into the most similar patch token that stays: what our merging methods have in common."""

from __future__ import annotations

import torch
from torch import Tensor

from ztdeploy.core.options import DEFAULT_OPTIONS, MethodOptions
from ztdeploy.core.plan import LayerPlan
from ztdeploy.host.pruning.features import source_of, unit_length, vectors
from ztdeploy.host.pruning.layer import BlockTaps, Choice, Recorder
from ztdeploy.host.pruning.merging import MergingLayer
from ztdeploy.host.pruning.selection import complement, gather_tokens
from ztdeploy.host.pruning.tome import partner_gap


class PartnerMerging(MergingLayer):
    """Cosine similarity of `MethodOptions.partner`. Nothing is ever folded into a prefix token."""

    def __init__(self, plan: LayerPlan, options: MethodOptions = DEFAULT_OPTIONS) -> None:
        super().__init__(plan, options)
        self.proportional, self.coherent = options.proportional, options.coherent
        self.will_compare(options.partner)

    def partners(
        self, x: Tensor, taps: BlockTaps, kept: Tensor, record: Recorder | None
    ) -> tuple[Choice, Tensor, Tensor]:
        """What goes where, the tokens that go, and how similar each is to its partner: `[B, N - k]`."""
        gone = complement(kept, x.shape[1])
        partner, prefix = self.options.partner, self.plan.prefix_tokens
        feature = unit_length(vectors(partner, source_of(partner, x, taps)))
        similarity = gather_tokens(feature, gone) @ gather_tokens(feature, kept[:, prefix:]).transpose(1, 2)
        into, best = similarity.argmax(-1) + prefix, similarity.amax(-1)
        least = self.options.least_similarity
        if least is not None:
            into = torch.where(best >= least, into, -1)
        if record is not None:
            record.gap(
                "partner", partner_gap, similarity, torch.arange(gone.shape[1], device=gone.device).expand_as(gone)
            )
            if least is not None:
                record.gap("least similarity", lambda: (best - least).abs().amin(-1))
        return Choice(kept, into), gone, best
