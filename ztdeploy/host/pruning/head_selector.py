"""The token selector of SPViT and HeatViT: a small predictor for each head's share of the tokens, and a weight for it.

Modules are named as in SPViT's published checkpoints.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ztdeploy.host.pruning.token_predictor import TokenPredictor, with_mean


class HeadSelector(nn.Module):
    """From tokens `[B, P, D]` to the log-odds that each token stays as each head sees it, and the head's weight.

    Both are `[B, P, H]`; weights sum to 1 over the heads.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.senet = nn.Sequential(nn.Linear(heads, heads // 2), nn.GELU(), nn.Linear(heads // 2, heads), nn.Sigmoid())
        predictors = [TokenPredictor(width // heads) for _ in range(heads)]
        self.in_conv = nn.ModuleList(one.in_conv for one in predictors)
        self.out_conv = nn.ModuleList(one.out_conv for one in predictors)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        shares = tokens.reshape(*tokens.shape[:2], self.heads, -1)
        weights = self.senet(shares.mean(-1))
        odds = []
        for head, (inwards, outwards) in enumerate(zip(self.in_conv, self.out_conv, strict=True)):
            logits = outwards(with_mean(inwards(shares[:, :, head])))
            odds.append(logits[..., 0] - logits[..., 1])
        return torch.stack(odds, -1), weights / weights.sum(-1, keepdim=True)
