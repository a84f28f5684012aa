"""The network of DynamicViT (NeurIPS 2021, arXiv 2106.02034) that says of each token whether it should stay.

Each token is seen beside the mean of all tokens. Modules are named as in published checkpoints.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class TokenPredictor(nn.Module):
    """From tokens `[B, P, D]` to the log-odds that each stays, `[B, P]`.

    They rank like the probability, which rounds to 1 for several tokens.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        half, quarter = width // 2, width // 4
        self.in_conv = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU())
        narrowing = (nn.Linear(width, half), nn.GELU(), nn.Linear(half, quarter), nn.GELU(), nn.Linear(quarter, 2))
        self.out_conv = nn.Sequential(*narrowing)

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.out_conv(with_mean(self.in_conv(tokens)))
        return logits[..., 0] - logits[..., 1]


def with_mean(hidden: Tensor) -> Tensor:
    """`[B, P, D]` whose second half, of each token, is the mean of all tokens."""
    half = hidden.shape[-1] // 2
    everybody = hidden[..., half:].mean(1, keepdim=True)
    return torch.cat([hidden[..., :half], everybody.expand(-1, hidden.shape[1], -1)], -1)


def above_worst(values: Tensor, prefix_tokens: int) -> Tensor:
    """Scores that rank as values of any sign do: `[B, P]` of patch tokens to `[B, N]`; 0 for prefix tokens."""
    return torch.nn.functional.pad(values - values.amin(-1, keepdim=True), (prefix_tokens, 0))
