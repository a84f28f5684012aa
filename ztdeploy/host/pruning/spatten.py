"""SpAtten (HPCA 2021, arXiv 2012.09852), made for text: keep the tokens that all others have attended to most so far.

Attention that a token receives is summed over all heads and tokens, and added up over all pruning layers so far. With a
layer behind every block, as in the paper, these are all blocks.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ztdeploy.core.options import DEFAULT_OPTIONS, MethodOptions
from ztdeploy.core.plan import LayerPlan
from ztdeploy.host.pruning.layer import BlockTaps, DroppingLayer, KeepTopTokens, Recorder
from ztdeploy.host.pruning.power_bert import received_attention

_SCORE = "importance"


class SpAtten(DroppingLayer):
    """Tokens rank by the attention that they have received at this pruning layer and all before it."""

    needs_attention = True

    def __init__(self, plan: LayerPlan, options: MethodOptions = DEFAULT_OPTIONS) -> None:
        super().__init__(plan, options)
        self.select = KeepTopTokens(plan)

    def carry(self, x: Tensor, taps: BlockTaps) -> Mapping[str, Tensor]:
        assert taps.attention is not None
        score, before = received_attention(taps.attention).unsqueeze(-1), taps.carried.get(_SCORE)
        return {_SCORE: score if before is None else score + before}

    def decide(self, x: Tensor, taps: BlockTaps, record: Recorder | None = None) -> Tensor:
        kept: Tensor = self.select(taps.carried[_SCORE].squeeze(-1), None, record)
        return kept
