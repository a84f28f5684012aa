"""Merging tokens: those that go are averaged into slots that stay, with static shapes and without a scatter reduction.

After "Token Merging: Your ViT But Faster" (ICLR 2023, arXiv 2210.09461): averages are weighted by size, and later
attention pays each token the attention of all that it stands for: `softmax(q k^T / sqrt(d) + log size)`.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from ztdeploy.pruning.layer import BlockTaps, Choice, PruningLayer, Recorder, Reduction
from ztdeploy.pruning.selection import complement, gather_tokens


def merge_tokens(x: Tensor, choice: Choice, gone: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """Each slot's weighted average, and its total weight.

    Args:
        x: `[B, N, D]`.
        choice: what stays, and what goes into which slot; a slot of -1 is none: that token is dropped.
        gone: the tokens that do not stay, ascending, `[B, N - k]`.
        weight: `[B, N]`, positive; None is 1 for all.

    Returns:
        `[B, k, D]` and `[B, k]`. A slot that nothing is merged into holds its token unchanged, bit by bit.
    """
    assert choice.into is not None
    kept = choice.kept
    slots = torch.arange(kept.shape[1], device=x.device)
    member = (choice.into.unsqueeze(-1) == slots).to(x.dtype)  # [B, N - k, k]
    if weight is None:
        weight = x.new_ones(x.shape[:2])
    of_kept, of_gone = weight.gather(1, kept), weight.gather(1, gone)
    total = of_kept + (of_gone.unsqueeze(1) @ member).squeeze(1)
    # Shares of a slot sum to 1, so that no sum leaves the range of its tokens: half precision might not hold it.
    share = member * of_gone.unsqueeze(-1) / total.unsqueeze(1)
    own = gather_tokens(x, kept) * (of_kept / total).unsqueeze(-1)
    return own + share.transpose(1, 2) @ gather_tokens(x, gone), total


def slot_of(token: Tensor, gone: Tensor) -> Tensor:
    """The slots of tokens that stay, `[B, m]`, where the tokens `gone [B, r]` leave: how many that stay are before."""
    before = gone.unsqueeze(1) < token.unsqueeze(2)
    return token - before.to(torch.float32).sum(-1).to(token.dtype)  # exact; not every runtime sums integers


class MergingLayer(PruningLayer):
    """A method whose tokens go into others."""

    proportional = True  #: later attention must know how much each token stands for

    @abstractmethod
    def choose(self, x: Tensor, taps: BlockTaps, record: Recorder | None = None) -> tuple[Choice, Tensor]:
        """What stays, prefix tokens first, and what goes where; and the tokens that go, ascending, `[B, N - k]`."""

    def forward(
        self, x: Tensor, taps: BlockTaps, record: Recorder | None = None, forced: Choice | None = None
    ) -> Reduction:
        choice, gone = self.choose(x, taps, record)
        applied = choice
        if forced is not None:
            applied, gone = forced, complement(forced.kept, x.shape[1])
        tokens, size = merge_tokens(x, applied, gone, self.weights(taps))
        if not self.proportional:
            return Reduction(tokens, choice)
        return Reduction(tokens, choice, size, size.log()[:, None, None, :])

    def weights(self, taps: BlockTaps) -> Tensor | None:
        """What each token weighs in an average: by default its size, `[B, N]`; None is 1 for all."""
        return taps.size
