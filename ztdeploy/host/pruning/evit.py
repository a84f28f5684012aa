"""EViT (ICLR 2022, arXiv 2202.07800): keep the tokens that the class token attends to most, and fuse the others.

The last of the `k` slots holds the fused token: the average, weighted by attention, of the `k`-th best token and all
worse ones. Here the weights sum to 1, so that the fused token has the scale of a token without training. The paper,
which trains, adds the tokens up.
"""

from __future__ import annotations

from torch import Tensor

from ztdeploy.core.options import DEFAULT_OPTIONS, MethodOptions
from ztdeploy.core.plan import LayerPlan
from ztdeploy.host.pruning.layer import BlockTaps, ProtectPrefix, Recorder
from ztdeploy.host.pruning.merging import Joined, MergingLayer, fuse_rest

_EPSILON = 1e-6


def class_attention(attention: Tensor) -> Tensor:
    """Attention of the class token (index 0) to each token, mean over heads, scaled to mean 1: `[B, N]`."""
    return attention[:, :, 0].mean(1) * attention.shape[-1]


class EVit(MergingLayer):
    """Averages are weighted by attention; later attention does not know how many tokens the fused one stands for."""

    needs_attention = True
    proportional = False

    def __init__(self, plan: LayerPlan, options: MethodOptions = DEFAULT_OPTIONS) -> None:
        super().__init__(plan, options)
        self.protect = ProtectPrefix(plan)

    def choose(self, x: Tensor, taps: BlockTaps, record: Recorder | None = None) -> Joined:
        assert taps.attention is not None
        scores = class_attention(taps.attention)
        return Joined(
            *fuse_rest(self.protect(scores), scores, self.plan.tokens_out, record),
            scores.clamp_min(_EPSILON).unsqueeze(-1),
        )
