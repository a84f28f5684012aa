"""MCTF (CVPR 2024, arXiv 2403.10030): fuse tokens that are alike, get little attention and stand for few patches.

Written from the paper's text. The attraction of two tokens is `(1 + cosine) / 2`, divided by the product of the
attention that both get to the power of 1/20 and by the product of their sizes to the power of 1/40. Patch tokens are
cut into two groups by position, alternately. Of the first group, the most attracted half of those that go are fused
into tokens of the second; the other half are tokens of the second group, which are fused into what is left of the
first. Averages are weighted by attention times size.

The paper reads the attention of the block ahead, and gives that block the fused matrix. The layer stands between
attention and MLP, so that this attention has been computed, and nothing is fused twice.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ztdeploy.core.options import DEFAULT_OPTIONS, MethodOptions
from ztdeploy.core.plan import LayerPlan
from ztdeploy.host.pruning.features import held, unit_length
from ztdeploy.host.pruning.layer import BlockTaps, Recorder
from ztdeploy.host.pruning.merging import Joined, MergingLayer, merged_into, partner_gap, sizes
from ztdeploy.host.pruning.power_bert import received_attention
from ztdeploy.host.pruning.selection import ascending, cut_gap, top_indices
from ztdeploy.host.pruning.tome import group_starts

_ATTENTION_POWER, _SIZE_POWER = 1 / 20, 1 / 40
_EPSILON = 1e-6


class Mctf(MergingLayer):
    """Prefix tokens are in neither group."""

    needs_attention = True

    def __init__(self, plan: LayerPlan, options: MethodOptions = DEFAULT_OPTIONS) -> None:
        super().__init__(plan, options)
        self.start_a, self.start_b = group_starts(plan.prefix_tokens)
        gone = plan.tokens_in - plan.tokens_out
        self.first, self.second = gone // 2, gone - gone // 2

    def choose(self, x: Tensor, taps: BlockTaps, record: Recorder | None = None) -> Joined:
        assert taps.attention is not None
        received = received_attention(taps.attention).clamp_min(_EPSILON).unsqueeze(-1)
        size = sizes(taps, received)
        attraction = self._attraction(x, received**-_ATTENTION_POWER * size**-_SIZE_POWER)
        gone, target = self._first(attraction, x, record)
        back = attraction
        if self.first:
            left = torch.ones_like(attraction[..., 0]).scatter(1, gone, 0.0)
            back = torch.where(left.unsqueeze(-1) > 0, attraction, -1.0)  # attractions are never negative
        back = back.transpose(1, 2)
        best, partner = back.amax(-1), back.argmax(-1)
        chosen = top_indices(best, self.second)
        target = target.scatter(1, self.start_b + 2 * chosen, self.start_a + 2 * partner.gather(1, chosen))
        if record is not None:
            record.gap("attraction back", cut_gap, best, self.second)
            record.gap("partner back", partner_gap, back, chosen)
            group = self.start_b + 2 * torch.arange(best.shape[1], device=x.device).expand_as(partner)
            record.note(group=group, partner=self.start_a + 2 * partner, similarity=best)
        every = self.start_b + 2 * chosen
        every = torch.cat([self.start_a + 2 * gone, every], 1) if self.first else every
        # What went into a token that goes itself ends where that one does.
        return Joined(merged_into(target.gather(1, target), ascending(every)), ascending(every), received * size)

    def _attraction(self, x: Tensor, factor: Tensor) -> Tensor:
        """Of the first group to the second, `[B, A, A']`, on the scale of the largest factor `[B, N, 1]`."""
        unit, factor = unit_length(held(x)), factor / factor.amax(1, keepdim=True)
        (one, own), (other, theirs) = (
            (unit[:, start::2], factor[:, start::2]) for start in (self.start_a, self.start_b)
        )
        alike = ((one @ other.transpose(1, 2) + 1) / 2).clamp_min(0.0)
        return alike * own * theirs.transpose(1, 2)

    def _first(self, attraction: Tensor, x: Tensor, record: Recorder | None) -> tuple[Tensor, Tensor]:
        """Which of the first group go, `[B, r // 2]`, and into which token each one goes, or itself: `[B, N]`."""
        target = torch.arange(x.shape[1], device=x.device).expand(x.shape[0], -1)
        best, partner = attraction.amax(-1), attraction.argmax(-1)
        gone = top_indices(best, self.first) if self.first else target[:, :0]
        if not self.first:
            return gone, target
        if record is not None:
            record.gap("attraction", cut_gap, best, self.first)
            record.gap("partner", partner_gap, attraction, gone)
        return gone, target.scatter(1, self.start_a + 2 * gone, self.start_b + 2 * partner.gather(1, gone))
