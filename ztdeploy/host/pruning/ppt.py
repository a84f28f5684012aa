"""PPT (arXiv 2310.01812): drop tokens of images whose scores differ much, and merge those of all other images.

Written from the paper's text. A token's score is the class token's attention to it times the length of its value,
scaled to sum 1 over the patch tokens. Where the variance of the scores is at least a threshold, the tokens with the
lowest scores are dropped; otherwise similar tokens are merged as by ToMe. Either way the same number goes, so that
shapes are static; a graph computes both choices. The threshold is the paper's for DeiT-S without training.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ztdeploy.core.options import DEFAULT_OPTIONS, MethodOptions
from ztdeploy.core.plan import LayerPlan
from ztdeploy.host.pruning.features import lengths_of, vectors
from ztdeploy.host.pruning.layer import BlockTaps, Choice, KeepTopTokens, Recorder
from ztdeploy.host.pruning.merging import Joined
from ztdeploy.host.pruning.selection import complement
from ztdeploy.host.pruning.tome import ToMe

_THRESHOLD = 7e-5


class Ppt(ToMe):
    """Stands between attention and MLP."""

    needs_attention = needs_values = True

    def __init__(self, plan: LayerPlan, options: MethodOptions = DEFAULT_OPTIONS) -> None:
        super().__init__(plan, options)
        self.may_drop, self.select = True, KeepTopTokens(plan)
        self.least = _THRESHOLD * (plan.tokens_in - plan.prefix_tokens) ** 2

    def choose(self, x: Tensor, taps: BlockTaps, record: Recorder | None = None) -> Joined:
        assert taps.attention is not None
        assert taps.values is not None
        pooled, prefix = super().choose(x, taps, record), self.plan.prefix_tokens
        assert pooled.choice.into is not None
        scores = taps.attention[:, :, 0].sum(1) * lengths_of(vectors("all-keys", taps.values)).squeeze(-1)
        mean = scores[:, prefix:].mean(-1, keepdim=True)
        scores = scores / mean.clamp_min(torch.finfo(scores.dtype).tiny)
        variance = (scores[:, prefix:] - 1).square().mean(-1, keepdim=True)
        drops = variance >= self.least
        kept = self.select(scores, None, record)
        if record is not None:
            record.gap("variance", lambda: (variance - self.least).abs().squeeze(-1))
        kept = torch.where(drops, kept, pooled.choice.kept)
        into = torch.where(drops, -1, pooled.choice.into)
        return Joined(Choice(kept, into), complement(kept, x.shape[1]))
