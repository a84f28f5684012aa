"""Keep the first tokens without looking at them: the lower bound of a pruning layer's cost."""

from __future__ import annotations

import torch
from torch import Tensor

from ztdeploy.host.pruning.layer import BlockTaps, DroppingLayer, Recorder


class SliceFirst(DroppingLayer):
    """Computes no scores; the overhead of other methods is measured against it."""

    def decide(self, x: Tensor, taps: BlockTaps, record: Recorder | None = None) -> Tensor:
        return torch.arange(self.plan.tokens_out, device=x.device).expand(x.shape[0], -1)

    def reduce(self, x: Tensor, kept: Tensor) -> Tensor:
        return x[:, : self.plan.tokens_out]
