"""Zero-TPrune decides who goes; who goes is folded into the most similar token that stays, weighted by size.

Ours: the ranking of CVPR 2024 (arXiv 2305.17328), the averages and the proportional attention of ICLR 2023 (arXiv
2210.09461). Nothing is ever folded into a prefix token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ztdeploy.pruning.layer import BlockTaps, Choice, Recorder
from ztdeploy.pruning.merging import MergingLayer
from ztdeploy.pruning.selection import complement, gather_tokens
from ztdeploy.pruning.similarity import key_feature, unit_length
from ztdeploy.pruning.tome import partner_gap
from ztdeploy.pruning.wpr import WprOptions
from ztdeploy.pruning.zero_tprune import ZeroTPrune
from ztdeploy.schedule import LayerPlan


@dataclass(frozen=True)
class MergeOptions:
    """How a partner is found. Cosine similarity throughout."""

    feature: Literal["keys", "all-keys", "tokens"] = "tokens"  #: x itself; or keys averaged over heads, or concatenated
    least: float | None = None  #: a token that is less similar to its partner is dropped; None: all are merged
    proportional: bool = True  #: later attention adds log(size)


class ZeroTPruneMerge(MergingLayer, ZeroTPrune):
    """The scoring is Zero-TPrune's own, node by node."""

    def __init__(
        self,
        plan: LayerPlan,
        wpr: WprOptions = WprOptions(),  # noqa: B008 - frozen
        options: MergeOptions = MergeOptions(),
    ) -> None:
        super().__init__(plan, wpr)
        self.options, self.proportional = options, options.proportional
        self.needs_keys = self.needs_keys or options.feature != "tokens"

    def choose(self, x: Tensor, taps: BlockTaps, record: Recorder | None = None) -> tuple[Choice, Tensor]:
        kept = self.decide(x, taps, record)
        gone = complement(kept, x.shape[1])
        feature, prefix = self._feature(x, taps), self.plan.prefix_tokens
        similarity = gather_tokens(feature, gone) @ gather_tokens(feature, kept[:, prefix:]).transpose(1, 2)
        into = similarity.argmax(-1) + prefix
        if self.options.least is not None:
            into = torch.where(similarity.amax(-1) >= self.options.least, into, -1)
        if record is not None:
            record.gap("partner", partner_gap(similarity, torch.arange(gone.shape[1]).expand_as(gone)))
        return Choice(kept, into), gone

    def _feature(self, x: Tensor, taps: BlockTaps) -> Tensor:
        """`[B, N, f]` at unit length."""
        if self.options.feature == "tokens":
            return unit_length(x)
        assert taps.keys is not None
        if self.options.feature == "keys":
            return key_feature(taps.keys)
        return unit_length(taps.keys.transpose(1, 2).flatten(2))
