"""DynamicViT (NeurIPS 2021, arXiv 2106.02034): a trained predictor ranks tokens, and the best stay.

While training, the paper samples which tokens stay. At inference it keeps the tokens with the highest probability of
staying, as many as the ratio says, which is static as it is.
"""

from __future__ import annotations

from torch import Tensor, nn

from ztdeploy.core.options import MethodOptions
from ztdeploy.core.plan import LayerPlan
from ztdeploy.host.pruning.layer import BlockTaps, DroppingLayer, KeepTopTokens, Recorder
from ztdeploy.host.pruning.token_predictor import TokenPredictor, above_worst


class DynamicViT(DroppingLayer):
    """Reads nothing but the tokens."""

    def __init__(self, plan: LayerPlan, options: MethodOptions, predictor: nn.Module) -> None:
        super().__init__(plan, options)
        self.predictor, self.select = predictor, KeepTopTokens(plan)

    @staticmethod
    def untrained(width: int, _heads: int) -> nn.Module:
        return TokenPredictor(width)

    def decide(self, x: Tensor, taps: BlockTaps, record: Recorder | None = None) -> Tensor:
        prefix = self.plan.prefix_tokens
        kept: Tensor = self.select(above_worst(self.predictor(x[:, prefix:]), prefix), None, record)
        return kept
