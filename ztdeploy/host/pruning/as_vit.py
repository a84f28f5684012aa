"""AS-ViT (IJCAI 2023, arXiv 2209.13802): keep the tokens that the class token attends to most, heads weighed by token.

For each token, a head counts by the length of what its attention gives that token, as a share of all heads' lengths.
The paper learns a threshold for each layer; where several images are run at once, it keeps as many of the best tokens
as pass it on average. Here the schedule says how many.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ztdeploy.core.options import DEFAULT_OPTIONS, MethodOptions
from ztdeploy.core.plan import LayerPlan
from ztdeploy.host.pruning.layer import BlockTaps, DroppingLayer, KeepTopTokens, Recorder

_EPSILON = 1e-8


def weighted_class_attention(attention: Tensor, values: Tensor) -> Tensor:
    """`A[0, j] |(A V)_j|`, where lengths sum to 1 over the heads: `[B, H, N, N]` and `[B, H, N, d]` to `[B, N]`."""
    length: Tensor = torch.linalg.vector_norm(attention @ values, dim=-1)
    return (attention[:, :, 0] * length).sum(1) / (length.sum(1) + _EPSILON)


class AdaptiveSparse(DroppingLayer):
    """Scores are scaled to mean 1."""

    needs_attention = needs_values = True

    def __init__(self, plan: LayerPlan, options: MethodOptions = DEFAULT_OPTIONS) -> None:
        super().__init__(plan, options)
        self.select = KeepTopTokens(plan)

    def decide(self, x: Tensor, taps: BlockTaps, record: Recorder | None = None) -> Tensor:
        assert taps.attention is not None
        assert taps.values is not None
        scores = weighted_class_attention(taps.attention, taps.values) * x.shape[1]
        kept: Tensor = self.select(scores, None, record)
        return kept
