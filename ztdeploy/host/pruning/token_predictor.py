"""The network of DynamicViT (NeurIPS 2021, arXiv 2106.02034) that says of each token whether it should stay.

Each token is seen beside the mean of all tokens. Modules are named as in published checkpoints.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class TokenPredictor(nn.Module):
    """From tokens `[B, P, D]` to logits `[B, P, 2]`: that a token stays, and that it goes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half, quarter = width // 2, width // 4
        self.local = half
        self.in_conv = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU())
        narrowing = (nn.Linear(width, half), nn.GELU(), nn.Linear(half, quarter), nn.GELU(), nn.Linear(quarter, 2))
        self.out_conv = nn.Sequential(*narrowing)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.in_conv(tokens)
        own, others = hidden[..., : self.local], hidden[..., self.local :].mean(1, keepdim=True)
        logits: Tensor = self.out_conv(torch.cat([own, others.expand(-1, tokens.shape[1], -1)], -1))
        return logits


def scores_of(logits: Tensor, prefix_tokens: int) -> Tensor:
    """How far the odds of staying are above those of the image's worst token, on a logarithmic scale.

    Tokens rank as by the probability of staying, which rounds to 1 for several of them.

    Args:
        logits: `[B, P, 2]` of patch tokens.

    Returns:
        `[B, N]`, not negative; 0 for prefix tokens.
    """
    odds = logits[..., 0] - logits[..., 1]
    return torch.nn.functional.pad(odds - odds.amin(-1, keepdim=True), (prefix_tokens, 0))
