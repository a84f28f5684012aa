"""Weighted page rank over the attention graph: stages I' and I of Zero-TPrune (arXiv 2305.17328).

The attention matrix is the adjacency matrix of a directed graph. Applied as a graph shift operator, `s <- A^T s`, it
lets tokens vote for the tokens they attend to. Heads with a misleading score distribution are filtered by variance
(VHF), the others joined so that informative regions stand out (EIR).

The paper takes each head's scores to mean 1 and joins heads by their root mean square. Factors that all tokens of an
image share (the mean, the number of heads) and the square root do not change the ranking. So scores here are *joined
shares*, which rank tokens like the paper's scores with half as many operators; `on_mean_scale` converts them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ztdeploy.core.options import VARIANCE_MAX, VARIANCE_MIN, MethodOptions
from ztdeploy.host.pruning.layer import Recorder

#: Iterations between two rescalings. Votes for dropped tokens are lost in every iteration, and a head with few votes
#: left must stay in the range of fp32; it may lose all but 1/4000 of its votes each time.
RESCALE_EVERY = 10
#: Weight of a filtered head: negligible beside a head that passes, but all heads count where none passes.
FILTERED = 1e-20


def start_vector(tokens: int, *, boost_class_token: bool, boost: float | None = None) -> Tensor:
    """The start of the iteration, `[N]` fp32: uniform, the class token's entry (index 0) times sqrt(N), or `boost`.

    Entries are 1 and not 1/N: the ranking does not depend on scale, and small numbers would underflow in half
    precision.
    """
    start = torch.ones(tokens)
    if boost_class_token:
        start[0] = tokens**0.5 if boost is None else boost
    return start


def propagate(attention: Tensor, start: Tensor, iterations: int, survivors: Tensor | None = None) -> Tensor:
    """`s <- m * (A^T (m * s))`, per head, without touching `A`. A row vector from the left, s^T A, is A^T s.

    Args:
        attention: `[B, H, N, N]`, rows sum to 1.
        start: `[N]`.
        iterations: at least 1; unrolled in the graph.
        survivors: `[B, N]` of 0 and 1, or None for all tokens.

    Returns:
        `[B, H, 1, N]` votes, of any scale per head; 0 for tokens that did not survive.
    """
    votes = start.to(attention.dtype).view(1, 1, 1, -1)
    if survivors is None:
        for _ in range(iterations):
            votes = votes @ attention
        return votes
    mask = survivors[:, None, None, :]
    votes = votes * mask
    for step in range(1, iterations + 1):
        votes = (votes @ attention) * mask
        if step % RESCALE_EVERY == 0 and step < iterations:
            votes = votes / votes.amax(-1, keepdim=True).clamp_min(torch.finfo(votes.dtype).tiny)
    return votes


def joined_shares(votes: Tensor, live_tokens: int, options: MethodOptions) -> Tensor:
    """VHF and EIR: each head's votes become shares of their sum, are squared, and are summed over the heads.

    Args:
        votes: `[B, H, 1, N]`, not negative; 0 for tokens that are not live.
        live_tokens: number of live tokens, the same for every image.

    Returns:
        `[B, N]`.
    """
    shares = _shares(votes)
    squared = shares * shares
    joined = squared if options.join == "rms" else shares
    if options.head_filter:
        # Shares sum to 1 over the live tokens, so the sum of their squares is (1 + Var) / live.
        low, high = ((1 + bound) / live_tokens for bound in (VARIANCE_MIN, VARIANCE_MAX))
        energy = squared.sum(-1, keepdim=True)
        passes = (energy.clamp(low, high) == energy).to(shares.dtype)
        joined = joined * passes.clamp_min(FILTERED)
    return joined.sum((1, 2))


def _shares(votes: Tensor) -> Tensor:
    if votes.dtype in (torch.float16, torch.bfloat16):
        votes = votes.float()  # squares of shares exceed fp16's range
    return votes / votes.sum(-1, keepdim=True).clamp_min(torch.finfo(votes.dtype).tiny)


def filter_gap(votes: Tensor, live_tokens: int) -> Tensor:
    """Distance of the closest head's variance from a limit of VHF, per image: `[B, H, 1, N]` to `[B]`."""
    variance = _shares(votes).square().sum((2, 3)) * live_tokens - 1
    return torch.minimum((variance - VARIANCE_MIN).abs(), (variance - VARIANCE_MAX).abs()).amin(-1)


def on_mean_scale(joined: Tensor, options: MethodOptions) -> Tensor:
    """Scale joined shares `[B, N]` so that live tokens have mean 1; infinite and negative entries do not count."""
    counts = joined.isfinite() & (joined >= 0)
    roots = torch.where(counts, joined, 0).sqrt() if options.join == "rms" else torch.where(counts, joined, 0)
    mean = roots.sum(-1, keepdim=True) / counts.sum(-1, keepdim=True).clamp_min(1)
    return torch.where(counts, roots / mean.clamp_min(torch.finfo(joined.dtype).tiny), joined)


class WeightedPageRank(nn.Module):
    """`[B, H, N, N]` attention (and `[B, N]` survivors) to joined shares, `[B, N]`."""

    start: Tensor

    def __init__(
        self,
        tokens: int,
        live_tokens: int,
        iterations: int,
        *,
        class_token: bool,
        options: MethodOptions,
        boost: float | None = None,
    ) -> None:
        super().__init__()
        self.live_tokens, self.iterations, self.options = live_tokens, iterations, options
        boosted = class_token and options.start == "boosted"
        self.register_buffer("start", start_vector(tokens, boost_class_token=boosted, boost=boost), persistent=False)

    def forward(self, attention: Tensor, survivors: Tensor | None = None, record: Recorder | None = None) -> Tensor:
        votes = propagate(attention, self.start, self.iterations, survivors)
        if record is not None and self.options.head_filter:
            record.gap("heads", filter_gap, votes, self.live_tokens)
        return joined_shares(votes, self.live_tokens, self.options)
