"""TPS (CVPR 2023, arXiv 2304.10716): tokens that go are squeezed into the most similar tokens that stay.

Of each token that goes, the nearest patch token that stays is found by the cosine of the tokens. A token that stays
becomes an average: its own weight is e, that of each token squeezed into it is e to the power of their cosine. Later
attention does not know how many tokens an average stands for.
"""

from __future__ import annotations

import math
from abc import abstractmethod

from torch import Tensor, nn

from ztdeploy.core.options import DEFAULT_OPTIONS, MethodOptions
from ztdeploy.core.plan import LayerPlan
from ztdeploy.host.pruning.evit import class_attention
from ztdeploy.host.pruning.layer import BlockTaps, KeepTopTokens, Recorder
from ztdeploy.host.pruning.merging import Joined, PartnerMerging
from ztdeploy.host.pruning.token_predictor import TokenPredictor, above_worst


class Squeezing(PartnerMerging):
    """The best-ranked tokens stay, and the others are squeezed into them."""

    def __init__(self, plan: LayerPlan, options: MethodOptions = DEFAULT_OPTIONS) -> None:
        super().__init__(plan, options)
        self.proportional = self.coherent = False
        self.select = KeepTopTokens(plan)

    @abstractmethod
    def scores(self, x: Tensor, taps: BlockTaps) -> Tensor:
        """What tokens of `x [B, N, D]` rank by: `[B, N]`, not negative."""

    def choose(self, x: Tensor, taps: BlockTaps, record: Recorder | None = None) -> Joined:
        kept, gone = self.select.both(self.scores(x, taps), record)
        choice, cosine = self.partners(x, taps, kept, gone, record)
        weight = x.new_full((*x.shape[:2], 1), math.e).scatter(1, gone.unsqueeze(-1), cosine.exp().unsqueeze(-1))
        return Joined(choice, gone, weight)


class PredictedSqueezing(Squeezing):
    """dTPS: behind a block; DynamicViT's predictor ranks tokens."""

    def __init__(self, plan: LayerPlan, options: MethodOptions, predictor: nn.Module) -> None:
        super().__init__(plan, options)
        self.predictor = predictor

    @staticmethod
    def untrained(width: int, _heads: int) -> nn.Module:
        return TokenPredictor(width)

    def scores(self, x: Tensor, taps: BlockTaps) -> Tensor:
        prefix = self.plan.prefix_tokens
        return above_worst(self.predictor(x[:, prefix:]), prefix)


class AttendedSqueezing(Squeezing):
    """eTPS: between attention and MLP; the class token's attention ranks tokens."""

    needs_attention = True

    def scores(self, x: Tensor, taps: BlockTaps) -> Tensor:
        assert taps.attention is not None
        return class_attention(taps.attention)
