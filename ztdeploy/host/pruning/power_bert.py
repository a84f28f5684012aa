"""PoWER-BERT (ICML 2020, arXiv 2001.08950), made for text: keep the tokens that all others attend to most.

Attention that a token receives is summed over all heads and all tokens, of this block alone.
"""

from __future__ import annotations

from torch import Tensor

from ztdeploy.core.options import DEFAULT_OPTIONS, MethodOptions
from ztdeploy.core.plan import LayerPlan
from ztdeploy.host.pruning.features import held
from ztdeploy.host.pruning.layer import BlockTaps, DroppingLayer, KeepTopTokens, Recorder


def received_attention(attention: Tensor) -> Tensor:
    """What each token gets from all, mean over heads, scaled to mean 1: `[B, H, N, N]` to `[B, N]`."""
    every = attention.new_ones(1, 1, 1, attention.shape[-1])
    return held(every @ attention).mean(1).squeeze(1)


class PowerBert(DroppingLayer):
    """Tokens rank by the attention that they receive in the layer's block."""

    needs_attention = True

    def __init__(self, plan: LayerPlan, options: MethodOptions = DEFAULT_OPTIONS) -> None:
        super().__init__(plan, options)
        self.select = KeepTopTokens(plan)

    def decide(self, x: Tensor, taps: BlockTaps, record: Recorder | None = None) -> Tensor:
        assert taps.attention is not None
        kept: Tensor = self.select(received_attention(taps.attention), None, record)
        return kept
