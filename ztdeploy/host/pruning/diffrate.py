"""DiffRate (ICCV 2023, arXiv 2305.17997): drop the tokens that the class token attends to least, and merge the next.

Written from the paper's text. Tokens are sorted by class attention. The last ones are dropped; of the others, the last
ones are each merged into the most similar of those in front of them (cosine of tokens; never into a prefix token). How
many are dropped and merged in each block is what the paper trains; schedules hold its counts, `similarity_drop` that
of merged tokens. Averages are not weighted, and in later attention a merged token counts by its similarity to its
partner, both as the paper's authors measure it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ztdeploy.core.options import DEFAULT_OPTIONS, MethodOptions
from ztdeploy.core.plan import LayerPlan
from ztdeploy.host.pruning.evit import class_attention
from ztdeploy.host.pruning.layer import BlockTaps, Choice, KeepTopTokens, ProtectPrefix, Recorder
from ztdeploy.host.pruning.merging import Joined, PartnerMerging, sizes
from ztdeploy.host.pruning.selection import cut_gap, top_indices


class DiffRate(PartnerMerging):
    """Stands between attention and MLP."""

    needs_attention = True
    coherent = False

    def __init__(self, plan: LayerPlan, options: MethodOptions = DEFAULT_OPTIONS) -> None:
        super().__init__(plan, options)
        self.coherent, self.may_drop = False, plan.importance_drop > 0
        self.select, self.protect = KeepTopTokens(plan), ProtectPrefix(plan)

    def choose(self, x: Tensor, taps: BlockTaps, record: Recorder | None = None) -> Joined:
        assert taps.attention is not None
        scores = class_attention(taps.attention)
        kept, gone = self.select.both(scores, record)
        if self.plan.drops:
            return Joined(Choice(kept, torch.full_like(gone, -1)), gone)
        choice, similarity = self.partners(x, taps, kept, gone, record)
        into = choice.into
        assert into is not None
        if self.plan.importance_drop:
            ranked, alive = self.protect(scores), self.plan.tokens_out + self.plan.similarity_drop
            survives = torch.zeros_like(scores).scatter(1, top_indices(ranked, alive), 1.0)
            into = torch.where(survives.gather(1, gone) > 0, into, -1)
            if record is not None:
                record.gap("dropped", cut_gap, ranked, alive)
        size = sizes(taps, scores.unsqueeze(-1))
        share = torch.ones_like(scores).scatter(1, gone, similarity.clamp(0.0, 1.0).to(scores.dtype))
        return Joined(Choice(kept, into), gone, torch.ones_like(size), size * share.unsqueeze(-1))
