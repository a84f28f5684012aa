"""Features for every position of the grid of a pruned model: each position gets those of the token that stands for it.

For a dropped token stands the kept patch token with the most similar keys, averaged over heads; for a merged token, the
token that it is merged into.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ztdeploy.host.pruning.layer import Choice
from ztdeploy.host.pruning.merging import to_kept
from ztdeploy.host.pruning.selection import complement, gather_tokens


class StandIns(nn.Module):
    """For each token that enters a pruning layer, finds the kept token that stands for it."""

    def __init__(self, prefix_tokens: int) -> None:
        super().__init__()
        self.prefix_tokens = prefix_tokens

    def forward(self, keys: Tensor, choice: Choice) -> Tensor:
        """
        Args:
            keys: `[B, H, N, d]`.
            choice: the applied choice, `[B, k]`.

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


def restored_grid(tokens: Tensor, slots: Tensor | None, prefix_tokens: int) -> Tensor:
    """The same with the prefix tokens ahead of the patches: from `[B, k, D]` to `[B, N, D]`, as without pruning."""
    if slots is None:
        return tokens
    patches = restored(tokens, slots, prefix_tokens)
    return torch.cat([tokens[:, :prefix_tokens], patches], 1) if prefix_tokens else patches


def restored(tokens: Tensor, slots: Tensor | None, prefix_tokens: int) -> Tensor:
    """From tokens `[B, k, D]` to features of all patches `[B, P, D]`, in row-major order.

    Args:
        slots: `[B, N]`, for each token of the image, the slot of the token that stands for it; None: all are there.
    """
    return tokens[:, prefix_tokens:] if slots is None else gather_tokens(tokens, slots[:, prefix_tokens:])
