"""HeatViT (HPCA 2023, arXiv 2211.08110): SPViT's selector and package, ranked by the probability that a token stays.

The probability is the heads' weighted mean. The paper's polynomials in place of GELU, softmax and sigmoid are made for
its circuits; here the functions themselves are computed.
"""

from __future__ import annotations

from torch import Tensor

from ztdeploy.host.pruning.sp_vit import SPViT


class HeatViT(SPViT):
    """Differs from SPViT only where heads disagree strongly."""

    def values(self, odds: Tensor, weights: Tensor, chance: Tensor) -> Tensor:
        return 4 * chance  # whose slope is that of log-odds where odds are even, so that gaps are as wide
