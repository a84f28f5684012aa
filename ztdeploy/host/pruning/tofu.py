"""ToFu (WACV 2024, arXiv 2312.01026): drop similar tokens in early blocks, and merge them at full length in later ones.

Written from the paper's text. Tokens are matched as by ToMe. Where a model's response to a mixture of two inputs is far
from the mixture of its responses, which is so in early blocks, tokens of the most similar pairs are dropped. In later
blocks each becomes part of its partner: the direction of the average with the length of the longest part (MLERP). The
paper chooses the first block that merges by that response; here the first half of the blocks drops.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ztdeploy.host.pruning.features import lengths_of
from ztdeploy.host.pruning.layer import BlockTaps, Choice, Recorder
from ztdeploy.host.pruning.merging import Averages, Joined
from ztdeploy.host.pruning.selection import gather_tokens
from ztdeploy.host.pruning.tome import ToMe

_EPSILON = 1e-12


class ToFu(ToMe):
    """Averages are weighted by size, and later attention is proportional to it, as with ToMe."""

    def choose(self, x: Tensor, taps: BlockTaps, record: Recorder | None = None) -> Joined:
        joined = super().choose(x, taps, record)
        if not self.plan.drops:
            return joined
        kept, gone = joined.choice.kept, joined.gone
        return Joined(Choice(kept, torch.full_like(gone, -1)), gone)

    def joined_tokens(self, x: Tensor, averages: Averages) -> Tensor:
        """MLERP. A token that nothing is merged into stays as it is, bit for bit."""
        lengths, mean = lengths_of(x), averages.of(x)
        of_gone = (averages.member * gather_tokens(lengths, averages.gone).transpose(1, 2)).amax(-1, keepdim=True)
        longest = torch.maximum(gather_tokens(lengths, averages.kept), of_gone)
        return mean * (longest / lengths_of(mean).clamp_min(_EPSILON))
