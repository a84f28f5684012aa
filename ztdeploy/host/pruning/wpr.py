"""Weighted page rank over the attention graph: stages I' and I of Zero-TPrune (arXiv 2305.17328).

The attention matrix is the adjacency matrix of a directed graph. Applied as a graph shift operator,
`s <- A^T s`, it lets tokens vote for the tokens they attend to. Heads with a misleading score distribution
are filtered by variance (VHF), the others joined so that informative regions stand out (EIR).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ztdeploy.core.options import VARIANCE_MAX, VARIANCE_MIN, MethodOptions
from ztdeploy.host.pruning.layer import Recorder

#: Votes for dropped tokens are lost in every iteration; a head with few left must not run out of fp32's range. Between
#: two rescalings a head may lose all but 1/4000 of its votes each time.
RESCALE_EVERY = 10
#: What a filtered head counts in `ranking_of`: nothing beside one that passes, all where none does.
FILTERED = 1e-20


def start_vector(tokens: int, *, boost_class_token: bool, boost: float | None = None) -> Tensor:
    """The start of the iteration, `[N]` fp32: uniform, the class token's entry (index 0) times sqrt(N), or `boost`.

    Scaled to 1, not to 1/N: the ranking is free of scale, and small numbers would underflow in half precision.
    """
    start = torch.ones(tokens)
    if boost_class_token:
        start[0] = tokens**0.5 if boost is None else boost
    return start


def propagate(attention: Tensor, start: Tensor, iterations: int, survivors: Tensor | None = None) -> Tensor:
    """`s <- m * (A^T (m * s))`, per head, without touching `A`.

    Args:
        attention: `[B, H, N, N]`, rows sum to 1.
        start: `[N]`.
        iterations: at least 1; unrolled in the graph.
        survivors: `[B, N]` of 0 and 1, or None for all tokens.

    Returns:
        `[B, H, N]` unscaled scores; 0 for tokens that did not survive.
    """
    return _propagate(attention, start, iterations, survivors).squeeze(2)


def _propagate(attention: Tensor, start: Tensor, iterations: int, survivors: Tensor | None) -> Tensor:
    """`[B, H, 1, N]`: a row vector from the left, s^T A, is A^T s without a transpose."""
    scores = start.to(attention.dtype).view(1, 1, 1, -1)
    if survivors is None:
        for _ in range(iterations):
            scores = scores @ attention
        return scores
    mask = survivors[:, None, None, :]
    scores = scores * mask
    for step in range(1, iterations + 1):
        scores = (scores @ attention) * mask
        if step % RESCALE_EVERY == 0 and step < iterations:
            scores = scores / scores.amax(-1, keepdim=True).clamp_min(torch.finfo(scores.dtype).tiny)
    return scores


def head_filter(variance: Tensor) -> Tensor:
    """VHF: 1 for the heads that count, `[B, H]`. Where no head of an image passes, all count."""
    passes = ((variance >= VARIANCE_MIN) & (variance <= VARIANCE_MAX)).to(variance.dtype)
    return torch.where(passes.sum(-1, keepdim=True) > 0, passes, 1.0)


def filter_gap(variance: Tensor) -> Tensor:
    """How far the closest head of each image is from being filtered otherwise: `[B, H]` to `[B]`."""
    return torch.minimum((variance - VARIANCE_MIN).abs(), (variance - VARIANCE_MAX).abs()).amin(-1)


def join_heads(scores: Tensor, live_tokens: int, options: MethodOptions, record: Recorder | None = None) -> Tensor:
    """VHF and EIR: `[B, H, N]` raw scores to one score per token, `[B, N]`, on the mean-1 scale.

    Args:
        scores: non-negative; 0 for tokens that are not live.
        live_tokens: how many tokens are live, the same for every image.
        record: where to leave how close the heads' variances are to the filter's limits.
    """
    scaled = scores / (scores.sum(-1, keepdim=True) / live_tokens).clamp_min(torch.finfo(scores.dtype).tiny)
    squared = scaled * scaled
    if options.head_filter:
        # The mean over the live tokens is 1 by scaling, so the variance is the mean square less 1.
        variance = squared.sum(-1) / live_tokens - 1
        weights = head_filter(variance)
        if record is not None:
            record.gap("heads", filter_gap, variance)
    else:
        weights = torch.ones_like(scores[..., 0])
    # sum_h eta_h v_h / sum_h eta_h, as one row-vector product per image.
    joined = (weights.unsqueeze(1) @ (squared if options.join == "rms" else scaled)).squeeze(1)
    joined = joined / weights.sum(-1, keepdim=True)
    return joined.sqrt() if options.join == "rms" else joined


def ranking_of(scores: Tensor, live_tokens: int, options: MethodOptions) -> Tensor:
    """What ranks tokens as `join_heads` does, with half as many operators: `[B, H, 1, N]` raw scores to `[B, N]`.

    What all tokens of an image have in common changes no ranking: the mean, the number of heads, the square root.
    On vectors as short as these, an operator costs more than what it computes.
    """
    shares = scores / scores.sum(-1, keepdim=True).clamp_min(torch.finfo(scores.dtype).tiny)
    squared = shares * shares
    joined = squared if options.join == "rms" else shares
    if options.head_filter:
        # Shares sum to 1 over the live tokens, so the sum of their squares is (1 + Var) / live.
        low, high = ((1 + bound) / live_tokens for bound in (VARIANCE_MIN, VARIANCE_MAX))
        energy = squared.sum(-1, keepdim=True)
        passes = (energy.clamp(low, high) == energy).to(scores.dtype)
        joined = joined * passes.clamp_min(FILTERED)
    return joined.sum((1, 2))


class WeightedPageRank(nn.Module):
    """`[B, H, N, N]` attention (and `[B, N]` survivors) to `[B, N]` token scores; in a graph, to what ranks alike."""

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
        scores = _propagate(attention, self.start, self.iterations, survivors)
        if torch.compiler.is_exporting():
            return ranking_of(scores, self.live_tokens, self.options)
        return join_heads(scores.squeeze(2), self.live_tokens, self.options, record)
