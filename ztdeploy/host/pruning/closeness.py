"""How far the tokens that go are from those that stay, which tells how much a pruning layer loses of an image.

Of what has been tried, it ranks images best by the true error of embeddings and features
(docs/explanation/confidence.md). It needs no scores, so it serves every method.
"""

from __future__ import annotations

from torch import Tensor, nn

from ztdeploy.core.plan import LayerPlan
from ztdeploy.host.pruning.features import source_of, unit_length, vectors
from ztdeploy.host.pruning.layer import BlockTaps
from ztdeploy.host.pruning.merging import to_kept
from ztdeploy.host.pruning.selection import complement


class Distance(nn.Module):
    """Mean over the tokens that go of 1 - cosine to the nearest patch token that stays.

    Tokens are compared behind their block. Where a layer decides without these tokens and drops them, graphs leave out
    the MLP of tokens that go; there the keys are compared.

    It is a module, so that nodes that only serve notes have a scope of their own.
    """

    def __init__(self, plan: LayerPlan) -> None:
        super().__init__()
        self.prefix_tokens, self.needs_keys = plan.prefix_tokens, not plan.reads_gone

    def forward(self, x: Tensor, taps: BlockTaps, kept: Tensor) -> Tensor:
        """
        Args:
            x: the tokens that enter the layer, `[B, N, D]`.
            kept: `[B, k]` int64, the prefix tokens first, with at least one patch token and without one.

        Returns:
            `[B]`, from 0 to 2.
        """
        feature = vectors("keys", source_of("keys", x, taps)) if self.needs_keys else x
        gone = complement(kept, x.shape[1])
        cosines = to_kept(unit_length(feature), gone, kept, self.prefix_tokens)
        return 1 - cosines.amax(-1).mean(-1)
