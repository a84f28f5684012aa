"""Tokens for every position of the grid of a pruned model.

Each position gets the token that stands for it. For a dropped token stands the kept patch token with the most similar
keys, averaged over heads; for a merged token, the token that it is merged into. Where tokens are merged, each position
also keeps what set it apart from its stand-in when it left: it is its own last state plus what its stand-in has been
given since. Dropped tokens do not, since graphs leave out what blocks compute for them (`host/graph/live_rows.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ztdeploy.host.pruning.layer import Choice
from ztdeploy.host.pruning.merging import to_kept
from ztdeploy.host.pruning.selection import complement, gather_tokens


class StandIns(nn.Module):
    """For each token that enters a pruning layer, finds the kept token that stands for it."""

    def __init__(self, prefix_tokens: int, *, may_drop: bool) -> None:
        """
        Args:
            may_drop: whether the layer drops tokens: for them the keys find one that stands for them.
        """
        super().__init__()
        self.prefix_tokens, self.needs_keys = prefix_tokens, may_drop

    def forward(self, keys: Tensor | None, choice: Choice, tokens: int) -> Tensor:
        """
        Args:
            keys: `[B, H, N, d]`, where they are needed.
            choice: the applied choice, `[B, k]`.
            tokens: N.

        Returns:
            `[B, N]` int64: slots, from 0 to k - 1.
        """
        kept, into = choice.kept, choice.into
        gone = complement(kept, tokens)
        if self.needs_keys:
            assert keys is not None
            nearest = to_kept(keys.mean(1), gone, kept, self.prefix_tokens).argmax(-1) + self.prefix_tokens
            into = nearest if into is None else torch.where(into >= 0, into, nearest)
        assert into is not None
        own = torch.arange(kept.shape[1], device=kept.device).expand_as(kept)
        slots = torch.zeros_like(kept[:, :1]).expand(-1, tokens)
        return slots.scatter(1, kept, own).scatter(1, gone, into)


@dataclass(frozen=True)
class WholeGrid:
    """How tokens `[B, k, D]` become those of all positions, `[B, N, D]`, prefix tokens first."""

    slots: Tensor  #: `[B, N]` int64: the slot of the token that stands for each
    apart: Tensor | None = None  #: `[B, N, D]`, added to it

    def restored(self, tokens: Tensor) -> Tensor:
        """`[B, k, D]` to `[B, N, D]`."""
        stand_ins = gather_tokens(tokens, self.slots)
        return stand_ins if self.apart is None else stand_ins + self.apart


def grid_behind(before: WholeGrid | None, x: Tensor, slots: Tensor, tokens: Tensor, *, merges: bool) -> WholeGrid:
    """The grid behind a pruning layer that made `tokens [B, k, D]` of `x [B, N, D]`.

    Args:
        before: the grid of `x`; None: all tokens are there.
        slots: `[B, N]`, of `StandIns`.
        merges: whether the layer averages tokens.
    """
    joined = slots if before is None else slots.gather(1, before.slots)
    if not merges:
        return WholeGrid(joined)
    whole = x if before is None else before.restored(x)
    return WholeGrid(joined, whole - gather_tokens(tokens, joined))
