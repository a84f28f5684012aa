"""Features for every place of the grid, though tokens were pruned: each place has those of what stands for it.

A token that goes is stood for by the patch token that stays whose keys, averaged over heads, are the most alike; one
that is merged, by what it is merged into.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ztdeploy.host.pruning.layer import Choice
from ztdeploy.host.pruning.merging import to_kept
from ztdeploy.host.pruning.selection import complement, gather_tokens


class StandIns(nn.Module):
    """Which of the tokens that stay stands for each that entered a pruning layer."""

    def __init__(self, prefix_tokens: int) -> None:
        super().__init__()
        self.prefix_tokens = prefix_tokens

    def forward(self, keys: Tensor, choice: Choice) -> Tensor:
        """
        Args:
            keys: `[B, H, N, d]`.
            choice: of `[B, k]`; what was applied.

        Returns:
            `[B, N]` int64: slots, from 0 to k - 1.
        """
        kept, tokens = choice.kept, keys.shape[2]
        gone = complement(kept, tokens)
        into = to_kept(keys.mean(1), gone, kept, self.prefix_tokens).argmax(-1) + self.prefix_tokens
        if choice.into is not None:
            into = torch.where(choice.into >= 0, choice.into, into)
        own = torch.arange(kept.shape[1], device=kept.device).expand_as(kept)
        slots = torch.zeros_like(kept[:, :1]).expand(-1, tokens)
        return slots.scatter(1, kept, own).scatter(1, gone, into)


def restored(tokens: Tensor, slots: Tensor | None, prefix_tokens: int) -> Tensor:
    """Tokens `[B, k, D]` to features of all patches `[B, P, D]`, row by row of the grid.

    Args:
        slots: `[B, N]`, for each of the image's tokens the one that stands for it; None: all are there.
    """
    return tokens[:, prefix_tokens:] if slots is None else gather_tokens(tokens, slots[:, prefix_tokens:])
