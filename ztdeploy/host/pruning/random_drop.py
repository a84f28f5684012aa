"""Keep a random choice of tokens, the same for every image: every ranking must beat it."""

from __future__ import annotations

import torch
from torch import Tensor

from ztdeploy.core.options import DEFAULT_OPTIONS, MethodOptions
from ztdeploy.core.plan import LayerPlan
from ztdeploy.host.pruning.layer import BlockTaps, DroppingLayer, Recorder
from ztdeploy.host.pruning.selection import seeded_permutation


class RandomDrop(DroppingLayer):
    """The layer's block is the seed, so that two builds of a schedule drop the same tokens."""

    choice: Tensor

    def __init__(self, plan: LayerPlan, options: MethodOptions = DEFAULT_OPTIONS) -> None:
        super().__init__(plan, options)
        patches = plan.tokens_in - plan.prefix_tokens
        shuffled = plan.prefix_tokens + seeded_permutation(patches, plan.block)
        kept = torch.cat([torch.arange(plan.prefix_tokens), shuffled[: plan.tokens_out - plan.prefix_tokens]])
        self.register_buffer("choice", kept.sort().values, persistent=False)

    def decide(self, x: Tensor, taps: BlockTaps, record: Recorder | None = None) -> Tensor:
        return self.choice.expand(x.shape[0], -1)

    def reduce(self, x: Tensor, kept: Tensor) -> Tensor:
        return x.index_select(1, self.choice)
