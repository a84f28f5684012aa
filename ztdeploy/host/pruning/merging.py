"""Merging: tokens that go are averaged into tokens that stay, with static shapes and without a scatter reduction.

After "Token Merging: Your ViT But Faster" (ICLR 2023, arXiv 2210.09461): averages are weighted by size, and in later
attention a token counts as often as the number of tokens it stands for: `softmax(q k^T / sqrt(d) + log size)`.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ztdeploy.core.options import DEFAULT_OPTIONS, MethodOptions
from ztdeploy.core.plan import LayerPlan
from ztdeploy.host.pruning.features import source_of, unit_length, vectors
from ztdeploy.host.pruning.layer import BlockTaps, Choice, PruningLayer, Recorder, Reduction
from ztdeploy.host.pruning.selection import complement, gather_tokens

_EPSILON = 1e-12
#: Opposites average to nothing; what is left of them still has a direction.
_LEAST_COHERENCE = 0.05


class Averages:
    """Weighted averages over the tokens of each slot; `total [B, k]` is the sum of a slot's weights.

    Args:
        like: a tensor `[B, N, ...]` of the tokens' type and device.
        choice: which tokens stay, and which go into which slot; a token with slot -1 is dropped.
        gone: the tokens that do not stay, ascending, `[B, N - k]`.
        weight: `[B, N]`, positive; None is 1 for all.
    """

    def __init__(self, like: Tensor, choice: Choice, gone: Tensor, weight: Tensor | None) -> None:
        assert choice.into is not None
        self.kept, self.gone = choice.kept, gone
        slots = torch.arange(self.kept.shape[1], device=like.device)
        member = (choice.into.unsqueeze(-1) == slots).to(like.dtype)  # [B, N - k, k]
        if weight is None:
            weight = like.new_ones(like.shape[:2])
        self.member = member
        of_kept, of_gone = weight.gather(1, self.kept), weight.gather(1, gone)
        self.total = self.sums(weight)
        # Shares of a slot sum to 1, so sums stay in the range of the tokens, which half precision can hold.
        self.share = member * of_gone.unsqueeze(-1) / self.total.unsqueeze(1)
        self.own_share = of_kept / self.total

    def of_tokens(self, x: Tensor) -> Tensor:
        """`[B, N, D]` to `[B, k, D]`. A slot that nothing is merged into holds its token bit for bit."""
        own = gather_tokens(x, self.kept) * self.own_share.unsqueeze(-1)
        average: Tensor = own + self.share.transpose(1, 2) @ gather_tokens(x, self.gone)
        return average

    def sums(self, values: Tensor) -> Tensor:
        """Sums without weights over the tokens of each slot: `[B, N]` to `[B, k]`."""
        return values.gather(1, self.kept) + (values.gather(1, self.gone).unsqueeze(1) @ self.member).squeeze(1)

    def of_numbers(self, values: Tensor) -> Tensor:
        """Averages of one number per token: `[B, N]` to `[B, k]`."""
        own = values.gather(1, self.kept) * self.own_share
        return own + (values.gather(1, self.gone).unsqueeze(1) @ self.share).squeeze(1)


def coherence_of(x: Tensor, before: Tensor | None, tokens: Tensor, averages: Averages) -> Tensor:
    """The length of each slot's average as a share of the mean length of all tokens merged into it so far: `[B, k]`.

    Args:
        x: `[B, N, D]`, the tokens before they were averaged to `tokens [B, k, D]`.
        before: the coherence of `x`, `[B, N]`; None is 1 for all.
    """
    lengths: Tensor = torch.linalg.vector_norm(x, dim=-1)
    parts = averages.of_numbers(lengths if before is None else lengths / before)
    share: Tensor = torch.linalg.vector_norm(tokens, dim=-1) / parts.clamp_min(_EPSILON)
    return share.clamp(_LEAST_COHERENCE, 1.0)


def slot_of(token: Tensor, gone: Tensor) -> Tensor:
    """Slots `[B, m]` of tokens that stay, where the tokens `gone [B, r]` leave: the number of kept tokens before."""
    before = gone.unsqueeze(1) < token.unsqueeze(2)
    return token - before.to(torch.float32).sum(-1).to(token.dtype)  # exact; not every runtime sums integers


@dataclass(frozen=True)
class Joined:
    """The decision of a merging layer, and the weights of its averages."""

    choice: Choice  #: which tokens stay, prefix tokens first, and into which slots the others go
    gone: Tensor  #: `[B, N - k]`, ascending
    weight: Tensor | None = None  #: `[B, N]`, positive: weight of each token in an average; None: its size


class MergingLayer(PruningLayer):
    """A method that merges tokens into others."""

    proportional = True  #: later attention must know how many tokens each token stands for
    #: Later attention must know how alike these tokens were. The average of different tokens is shorter than they are,
    #: but attention normalises it to full length. Its *coherence* is its length as a share of the mean length of its
    #: parts. The normalised input of attention is multiplied by the square root of it: the coherence itself would be
    #: right in the next block, but with each block an average becomes more of a token of its own
    #: (docs/explanation/method.md). Options set other powers, also for what attention and MLP add to an average.
    coherent = False

    @abstractmethod
    def choose(self, x: Tensor, taps: BlockTaps, record: Recorder | None = None) -> Joined:
        """Decide what happens to each token of `x [B, N, D]`."""

    def forward(
        self, x: Tensor, taps: BlockTaps, record: Recorder | None = None, forced: Choice | None = None
    ) -> Reduction:
        joined = self.choose(x, taps, record)
        applied, gone = joined.choice, joined.gone
        if forced is not None:
            applied, gone = forced, complement(forced.kept, x.shape[1])
        averages = Averages(x, applied, gone, taps.size if joined.weight is None else joined.weight)
        reduction = Reduction(averages.of_tokens(x), joined.choice)
        if self.proportional:
            size = averages.total if joined.weight is None else averages.sums(sizes(taps, joined.weight))
            reduction = replace(reduction, size=size, bias=size.log()[:, None, None, :])
        if self.coherent:
            coherence = coherence_of(x, taps.coherence, reduction.tokens, averages)
            scale, update = (
                raised(coherence.unsqueeze(-1), power)
                for power in (self.options.coherence_power, self.options.update_power)
            )
            reduction = replace(reduction, coherence=coherence, scale=scale, update=update)
        return reduction


def sizes(taps: BlockTaps, like: Tensor) -> Tensor:
    """Sizes `[B, N]`, of the type of `like [B, N]`."""
    return torch.ones_like(like) if taps.size is None else taps.size


def partner_gap(similarity: Tensor, rows: Tensor | None = None) -> Tensor:
    """The smallest gap between the best and the second-best partner of any row: `[B, A, B']` and `[B, r]` to `[B]`.

    Args:
        rows: the rows that count; None: all.
    """
    if similarity.shape[-1] < 2:
        return similarity.new_full(similarity.shape[:1], torch.inf)
    first, second = similarity.topk(2, dim=-1).values.unbind(-1)
    apart = first - second
    return (apart if rows is None else apart.gather(1, rows)).amin(-1)


def to_kept(feature: Tensor, gone: Tensor, kept: Tensor, prefix: int) -> Tensor:
    """Cosine similarities of tokens that go and patch tokens that stay: `[B, N, f]` to `[B, N - k, k - prefix]`."""
    feature = unit_length(feature)
    return gather_tokens(feature, gone) @ gather_tokens(feature, kept[:, prefix:]).transpose(1, 2)


def raised(values: Tensor, power: float) -> Tensor | None:
    """`powered`, but None where all results are 1."""
    return None if power == 0 else powered(values, power)


def powered(values: Tensor, power: float) -> Tensor:
    """Non-negative values to a power; the values themselves where the power is 1."""
    if power == 1:
        return values
    return values.sqrt() if power == 0.5 else values**power


class PartnerMerging(MergingLayer):
    """Merges tokens that go into the most similar patch token that stays, never into a prefix token.

    Similarity is the cosine of the feature `MethodOptions.partner`.
    """

    def __init__(self, plan: LayerPlan, options: MethodOptions = DEFAULT_OPTIONS) -> None:
        super().__init__(plan, options)
        self.proportional, self.coherent = options.proportional, options.coherent
        self.will_compare(options.partner)

    def partners(
        self, x: Tensor, taps: BlockTaps, kept: Tensor, record: Recorder | None
    ) -> tuple[Choice, Tensor, Tensor]:
        """The choice, the tokens that go, and the similarity of each to its partner: `[B, N - k]`."""
        gone, prefix, least = complement(kept, x.shape[1]), self.plan.prefix_tokens, self.options.least_similarity
        partner = self.options.partner
        similarity = to_kept(vectors(partner, source_of(partner, x, taps)), gone, kept, prefix)
        into, best = similarity.argmax(-1) + prefix, similarity.amax(-1)
        if least is not None:
            into = torch.where(best >= least, into, -1)
        if record is not None:
            record.gap("partner", partner_gap, similarity)
            if least is not None:
                record.gap("least similarity", lambda: (best - least).abs().amin(-1))
        return Choice(kept, into), gone, best
