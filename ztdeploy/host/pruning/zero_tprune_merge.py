"""Zero-TPrune selects the tokens that go, and each is merged into the most similar token that stays, weighted by size.

Ours: the ranking of CVPR 2024 (arXiv 2305.17328), the averages and the proportional attention of ICLR 2023 (arXiv
2210.09461).
"""

from __future__ import annotations

from torch import Tensor

from ztdeploy.host.pruning.layer import BlockTaps, Recorder
from ztdeploy.host.pruning.merging import Joined, PartnerMerging
from ztdeploy.host.pruning.selection import complement
from ztdeploy.host.pruning.zero_tprune import ZeroTPrune


class ZeroTPruneMerge(PartnerMerging, ZeroTPrune):
    """Computes the scores of Zero-TPrune, with the same nodes."""

    def choose(self, x: Tensor, taps: BlockTaps, record: Recorder | None = None) -> Joined:
        kept = self.decide(x, taps, record)
        gone = complement(kept, x.shape[1])
        choice, _ = self.partners(x, taps, kept, gone, record)
        return Joined(choice, gone)
