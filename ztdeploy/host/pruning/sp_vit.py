"""SPViT (ECCV 2022, arXiv 2112.13890): tokens that go are packed into one token, an average by their scores.

A selector looks at each head's share of a token, and weighs the heads by the token itself. Each layer adds a package,
which stands in the slot of the best token packed into it; later layers keep it. The paper lets the selector decide how
many tokens stay; here the best stay.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from ztdeploy.core.options import MethodOptions
from ztdeploy.core.plan import LayerPlan
from ztdeploy.host.pruning.head_selector import HeadSelector
from ztdeploy.host.pruning.layer import BlockTaps, Choice, ProtectPrefix, Recorder, Reduction
from ztdeploy.host.pruning.merging import Joined, MergingLayer, fuse_rest
from ztdeploy.host.pruning.selection import gather_tokens
from ztdeploy.host.pruning.token_predictor import above_worst

_PACKAGE, _EPSILON = "package", 1e-12


class SPViT(MergingLayer):
    """Ranks by the heads' mean log-odds, packs by their mean probability of staying."""

    proportional = False

    def __init__(self, plan: LayerPlan, options: MethodOptions, selector: nn.Module) -> None:
        super().__init__(plan, options)
        self.selector, self.protect = selector, ProtectPrefix(plan)

    @staticmethod
    def untrained(width: int, heads: int) -> nn.Module:
        return HeadSelector(width, heads)

    def values(self, odds: Tensor, weights: Tensor, _chance: Tensor) -> Tensor:
        """What patch tokens rank by, of any sign: `[B, P, H]` twice and `[B, P]` to `[B, P]`."""
        return (odds * weights).sum(-1)

    def choose(self, x: Tensor, taps: BlockTaps, record: Recorder | None = None) -> Joined:
        prefix = self.plan.prefix_tokens
        odds, weights = self.selector(x[:, prefix:])
        chance = (odds.sigmoid() * weights).sum(-1)
        scores = above_worst(self.values(odds, weights, chance), prefix)
        if _PACKAGE in taps.carried:
            best = scores.amax(-1, keepdim=True) + 1
            scores = torch.where(taps.carried[_PACKAGE].squeeze(-1) > 0, best, scores)
        weight = torch.nn.functional.pad(chance.clamp_min(_EPSILON), (prefix, 0), value=1.0).unsqueeze(-1)
        return Joined(*fuse_rest(self.protect(scores), scores, self.plan.tokens_out, record), weight)

    def forward(
        self, x: Tensor, taps: BlockTaps, record: Recorder | None = None, forced: Choice | None = None
    ) -> Reduction:
        reduction = super().forward(x, taps, record, forced)
        applied = reduction.choice if forced is None else forced
        assert applied.into is not None
        before = taps.carried.get(_PACKAGE)
        marks = torch.zeros_like(reduction.tokens[..., :1]) if before is None else gather_tokens(before, applied.kept)
        return replace(reduction, carried={_PACKAGE: marks.scatter(1, applied.into[:, :1].unsqueeze(-1), 1.0)})
