"""Keep the first tokens, without looking at them: the least that any pruning layer can cost."""

from __future__ import annotations

import torch
from torch import Tensor

from ztdeploy.host.pruning.layer import BlockTaps, DroppingLayer, Recorder


class SliceFirst(DroppingLayer):
    """No scoring at all; the overhead of every other method is measured against this one."""

    def decide(self, x: Tensor, taps: BlockTaps, record: Recorder | None = None) -> Tensor:
        return torch.arange(self.plan.tokens_out, device=x.device).expand(x.shape[0], -1)

    def reduce(self, x: Tensor, kept: Tensor) -> Tensor:
        return x[:, : self.plan.tokens_out]
