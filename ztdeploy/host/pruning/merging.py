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
from ztdeploy.host.pruning.features import held, lengths_of, source_of, vectors
from ztdeploy.host.pruning.layer import BlockTaps, Choice, PruningLayer, Recorder, Reduction
from ztdeploy.host.pruning.selection import ascending, complement, cut_gap, gather_tokens, top_indices

_EPSILON = 1e-12
#: Opposites average to nothing; what is left of them still has a direction.
_LEAST_COHERENCE = 0.05


class Averages:
    """Weighted averages over the tokens of each slot; `total [B, k, 1]` is the sum of a slot's weights.

    Args:
        like: a tensor `[B, N, ...]` of the tokens' type and device.
        choice: which tokens stay, and which go into which slot; a token with slot -1 is dropped.
        gone: the tokens that do not stay, ascending, `[B, N - k]`.
        weight: `[B, N, 1]`, positive; None is 1 for all.
    """

    def __init__(self, like: Tensor, choice: Choice, gone: Tensor, weight: Tensor | None) -> None:
        assert choice.into is not None
        self.kept, self.gone = choice.kept, gone
        slots = torch.arange(self.kept.shape[1], device=like.device).unsqueeze(-1)
        self.member = (slots == choice.into.unsqueeze(1)).to(like.dtype)  # [B, k, N - k]
        if weight is None:
            weight = like.new_ones(*like.shape[:2], 1)
        of_kept, of_gone = gather_tokens(weight, self.kept), gather_tokens(weight, gone)
        self.total = of_kept + self.member @ of_gone
        # Shares of a slot sum to 1, so sums stay in the range of the tokens, which half precision can hold.
        self.share = self.member * of_gone.transpose(1, 2) / self.total
        self.own_share = of_kept / self.total

    def of(self, values: Tensor) -> Tensor:
        """Averages `[B, N, D]` to `[B, k, D]`. A slot that nothing is merged into holds its token bit for bit."""
        own = gather_tokens(values, self.kept) * self.own_share
        average: Tensor = own + self.share @ gather_tokens(values, self.gone)
        return average

    def sums(self, values: Tensor) -> Tensor:
        """Sums without weights: `[B, N, D]` to `[B, k, D]`."""
        total: Tensor = gather_tokens(values, self.kept) + self.member @ gather_tokens(values, self.gone)
        return total


def coherence_of(x: Tensor, before: Tensor | None, tokens: Tensor, averages: Averages) -> Tensor:
    """The length of each slot's average as a share of the mean length of all tokens merged into it: `[B, k, 1]`.

    Args:
        x: `[B, N, D]`, the tokens before they were averaged to `tokens [B, k, D]`.
        before: the coherence of `x`, `[B, N, 1]`; None is 1 for all.
    """
    lengths: Tensor = lengths_of(x)
    parts = averages.of(lengths if before is None else lengths / before)
    return (lengths_of(tokens) / parts.clamp_min(_EPSILON)).clamp(_LEAST_COHERENCE, 1.0)


def slot_of(token: Tensor, gone: Tensor) -> Tensor:
    """Slots `[B, m]` of tokens that stay, where the tokens `gone [B, r]` leave: the number of kept tokens before."""
    before = gone.unsqueeze(1) < token.unsqueeze(2)
    return token - before.to(torch.float32).sum(-1).to(token.dtype)  # exact; not every runtime sums integers


@dataclass(frozen=True)
class Joined:
    """The decision of a merging layer, and the weights of its averages."""

    choice: Choice  #: which tokens stay, prefix tokens first, and into which slots the others go
    gone: Tensor  #: `[B, N - k]`, ascending
    weight: Tensor | None = None  #: `[B, N, 1]`, positive: weight of each token in an average; None: its size
    counts: Tensor | None = None  #: `[B, N, 1]`: what each adds to the size of its slot; None: its size


def fuse_rest(ranked: Tensor, scores: Tensor, keep: int, record: Recorder | None) -> tuple[Choice, Tensor]:
    """The choice that fuses the worst of the best tokens with all worse ones, and those that go, `[B, N - k]`.

    Args:
        ranked: `[B, N]`, the scores, of which prefix tokens have the highest.
        scores: `[B, N]`, to be noted.
        keep: k.
    """
    kept = ascending(top_indices(ranked, keep))
    gone = complement(kept, ranked.shape[1])
    fused = ranked.gather(1, kept).argmin(-1, keepdim=True)
    if record is not None:
        record.note(importance=scores)
        record.gap("importance", cut_gap, ranked, keep)
        record.gap("fused", cut_gap, ranked, keep - 1)
    return Choice(kept, fused.expand(-1, gone.shape[1])), gone


class MergingLayer(PruningLayer):
    """A method that merges tokens into others."""

    proportional = True  #: later attention must know how many tokens each token stands for
    #: Later attention must know how alike these tokens were. The average of different tokens is shorter than they are,
    #: but attention normalises it to full length. Its *coherence* is its length as a share of the mean length of its
    #: parts. The normalised input of attention is multiplied by the square root of it: the coherence itself would be
    #: right in the next block, but with each block an average becomes more of a token of its own
    #: (docs/explanation/method.md). Options set other powers, also for what attention and MLP add to an average.
    coherent = False

    def __init__(self, plan: LayerPlan, options: MethodOptions = DEFAULT_OPTIONS) -> None:
        super().__init__(plan, options)
        self.may_drop = plan.drops

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
        if self.plan.drops:
            return self._dropped(x, taps, applied, joined.choice)
        averages = Averages(x, applied, gone, taps.size if joined.weight is None else joined.weight)
        reduction = Reduction(self.joined_tokens(x, averages), joined.choice)
        if self.proportional:
            size = averages.total
            if joined.weight is not None or joined.counts is not None:
                size = averages.sums(sizes(taps, x[..., :1]) if joined.counts is None else joined.counts)
            reduction = replace(reduction, size=size, bias=_bias_of(size))
        if self.coherent:
            coherence = coherence_of(x, taps.coherence, reduction.tokens, averages)
            powers = (self.options.coherence_power, self.options.update_power)
            scale, update = (raised(coherence, power) for power in powers)
            reduction = replace(reduction, coherence=coherence, scale=scale, update=update)
        return reduction

    def joined_tokens(self, x: Tensor, averages: Averages) -> Tensor:
        """What stands for the tokens of each slot: `[B, N, D]` to `[B, k, D]`."""
        return averages.of(x)

    def _dropped(self, x: Tensor, taps: BlockTaps, applied: Choice, own: Choice) -> Reduction:
        """Where all tokens that go are dropped, those that stay keep their sizes."""
        reduction = Reduction(gather_tokens(x, applied.kept), own)
        if taps.size is None or not self.proportional:
            return reduction
        size = gather_tokens(taps.size, applied.kept)
        return replace(reduction, size=size, bias=_bias_of(size))


def _bias_of(size: Tensor) -> Tensor:
    """Sizes `[B, k, 1]` to what attention adds to its logits, `[B, 1, 1, k]`."""
    return size.log().transpose(1, 2).unsqueeze(1)


def merged_into(target: Tensor, gone: Tensor) -> Choice:
    """The choice by which the tokens `gone [B, r]`, ascending, go into `target [B, N]`, where every other is itself."""
    into = target.gather(1, gone)
    return Choice(complement(gone, target.shape[1]), slot_of(into, gone))


def sizes(taps: BlockTaps, like: Tensor) -> Tensor:
    """Sizes `[B, N, 1]`, of the type of `like [B, N, 1]`."""
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
    """Cosines of tokens that go and patch tokens that stay, times the length of the token that goes.

    Its length changes nothing about which partner is the most similar one. `[B, N, f]` to `[B, N - k, k - prefix]`.
    """
    lengths = gather_tokens(lengths_of(feature).clamp_min(_EPSILON), kept).transpose(1, 2)
    products = gather_tokens(feature, gone) @ gather_tokens(feature, kept).transpose(1, 2)
    return (products / lengths)[:, :, prefix:]


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
        self.may_drop = options.least_similarity is not None
        self.will_compare(options.partner)

    def partners(
        self, x: Tensor, taps: BlockTaps, kept: Tensor, gone: Tensor, record: Recorder | None
    ) -> tuple[Choice, Tensor]:
        """The choice, and the similarity of each token that goes to its partner: `[B, N - k]`."""
        prefix, least, partner = self.plan.prefix_tokens, self.options.least_similarity, self.options.partner
        feature = held(vectors(partner, source_of(partner, x, taps)))
        scaled = to_kept(feature, gone, kept, prefix)
        into, best = scaled.argmax(-1) + prefix, scaled.amax(-1)
        own = gather_tokens(lengths_of(feature).clamp_min(_EPSILON), gone)
        best = best / own.squeeze(-1)
        if least is not None:
            into = torch.where(best >= least, into, -1)
        if record is not None:
            record.gap("partner", lambda: partner_gap(scaled / own))
            if least is not None:
                record.gap("least similarity", lambda: (best - least).abs().amin(-1))
        return Choice(kept, into), best
