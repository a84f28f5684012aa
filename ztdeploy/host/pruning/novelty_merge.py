"""Merge the tokens with the lowest novelty into the most similar token that stays.

This method is ours, found by measurement (docs/explanation/method.md). Instead of one stage for similarity and
one for importance, one number per token says how much is lost when a more important token stands for it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ztdeploy.core.options import DEFAULT_OPTIONS, MethodOptions
from ztdeploy.core.plan import LayerPlan, compared_width
from ztdeploy.host.pruning.features import folded, held, mean_token
from ztdeploy.host.pruning.layer import BlockTaps, KeepTopTokens, Recorder
from ztdeploy.host.pruning.merging import Joined, PartnerMerging, powered
from ztdeploy.host.pruning.selection import gather_tokens, seeded_permutation, top_indices
from ztdeploy.host.pruning.wpr import WeightedPageRank, on_mean_scale

#: How many tokens are compared with all more important ones in one product.
_BAND = 256
#: Least weight: a slot of tokens without any importance still needs an average.
_LEAST_WEIGHT = 1e-4


class Novelty(nn.Module):
    """Novelty of a token: its importance, times its size, times its squared distance to the nearest patch token that is
    more important; an option sets the power of each factor. The most important token has infinite novelty.

    Importance is the square root of the joined shares after one iteration of weighted page rank that starts with the
    class token's entry times N, so that the class token has half of the votes. Heads are not filtered, because this
    start makes all of them peaked. Where importance has no power at all, the larger token counts as the more important
    one, and of tokens of one size the one that a fixed draw names; attention is not read then.
    """

    not_before: Tensor
    draw: Tensor

    def __init__(self, plan: LayerPlan, options: MethodOptions = DEFAULT_OPTIONS) -> None:
        super().__init__()
        self.options, self.prefix = options, plan.prefix_tokens
        self.importance: nn.Module | None = None
        if options.importance_power or options.average_power:
            self.importance = WeightedPageRank(
                plan.tokens_in,
                plan.tokens_in,
                1,
                class_token=plan.class_token,
                options=MethodOptions(head_filter=False),
                boost=float(plan.tokens_in),
            )
        else:
            drawn = seeded_permutation(plan.tokens_in, plan.block).to(torch.float32) / plan.tokens_in
            self.register_buffer("draw", drawn.unsqueeze(0), persistent=False)
        self.patches = plan.tokens_in - plan.prefix_tokens
        side = min(self.patches, _BAND)
        self.register_buffer("not_before", torch.full((1, side, side), -torch.inf).triu(), persistent=False)

    def forward(
        self, x: Tensor, attention: Tensor | None, size: Tensor | None, record: Recorder | None = None
    ) -> tuple[Tensor, Tensor]:
        """Novelty and joined shares (the squares of importance), `[B, N]` each. Novelties of prefix tokens are 0.

        Args:
            x: `[B, N, D]`.
            attention: `[B, H, N, N]`, where importance counts.
            size: `[B, N, 1]`; None is 1 for all.
        """
        importance = self._importance(x, attention, size)
        order = top_indices(importance[:, self.prefix :], self.patches) + self.prefix
        compared = folded(held(x), compared_width(*x.shape[1:]))
        tokens = gather_tokens(compared, order)
        tokens = tokens - mean_token(tokens)  # so squared distances lose fewer digits
        squares = (tokens * tokens).sum(-1)
        lost = self._lost(
            importance.gather(1, order),
            None if size is None else gather_tokens(size, order),
            squares - self._nearest(tokens, squares),
        )
        if record is not None and self.importance is not None:  # sizes and draws are the same everywhere
            record.gap("order", _order_gap, compared, importance, self.prefix)
        return torch.zeros_like(importance).to(lost.dtype).scatter(1, order, lost), importance

    def _importance(self, x: Tensor, attention: Tensor | None, size: Tensor | None) -> Tensor:
        if self.importance is not None:
            shares: Tensor = self.importance(attention)  # squares of importance
            return shares
        return self.draw.expand(x.shape[0], -1) if size is None else self.draw + size.squeeze(-1)

    def _nearest(self, tokens: Tensor, squares: Tensor) -> Tensor:
        """The largest likeness of each token to one that is more important, `[B, P]`: -inf for the most important.

        Likeness is what of a squared distance depends on both tokens: |a - b|^2 = |a|^2 - (2 a b - |b|^2). Tokens come
        in bands, because each is compared with those before it only.

        Args:
            tokens: `[B, P, f]`, the most important first.
            squares: `[B, P]`, of their lengths.
        """
        bands = []
        for start in range(0, self.patches, _BAND):
            band = slice(start, min(start + _BAND, self.patches))
            own, length = tokens[:, band], band.stop - start
            best = (_likeness(own, own, squares[:, band]) + self.not_before[:, :length, :length]).amax(-1)
            if start:
                best = torch.maximum(best, _likeness(own, tokens[:, :start], squares[:, :start]).amax(-1))
            bands.append(best)
        return torch.cat(bands, 1) if len(bands) > 1 else bands[0]

    def _lost(self, importance: Tensor, size: Tensor | None, squared: Tensor) -> Tensor:
        """Novelty `[B, N]` from squared distances, which are infinite for the most important token."""
        options = self.options
        power = options.importance_power / 2
        missed = torch.ones_like(importance) if power == 0 else powered(importance, power)
        if size is not None and options.size_power:
            missed = missed * powered(size.squeeze(-1), options.size_power)
        # Rounding may make a squared distance of 0 negative, which has no power.
        far = squared if options.distance_power == 2 else powered(squared.clamp_min(0.0), options.distance_power / 2)
        return far * missed


def _of_mean_1(lost: Tensor) -> Tensor:
    """Novelties `[B, N]` on a scale on which their mean is 1; infinite ones stay infinite."""
    finite = lost.where(lost.isfinite(), 0.0)
    return lost / finite.mean(-1, keepdim=True).clamp_min(torch.finfo(lost.dtype).tiny)


def _likeness(one: Tensor, other: Tensor, squares: Tensor) -> Tensor:
    """`2 a b - |b|^2` for each a of `[B, m, D]` and b of `[B, n, D]` with squared lengths `[B, n]`: `[B, m, n]`."""
    return 2 * (one @ other.transpose(1, 2)) - squares.unsqueeze(1)


def _order_gap(x: Tensor, importance: Tensor, prefix: int) -> Tensor:
    """The smallest difference in importance of two patch tokens of `x [B, N, f]` whose order matters: `[B]`.

    Order matters where a token's nearest more important token could become less important, or a token at least as near
    could become more important.
    """
    patches, importance = x[:, prefix:] - x.mean(1, keepdim=True), importance[:, prefix:]
    likeness = _likeness(patches, patches, (patches * patches).sum(-1))
    more_important = importance.unsqueeze(1) > importance.unsqueeze(2)
    nearest = likeness.masked_fill(~more_important, -torch.inf).amax(-1)
    matters = likeness >= nearest.unsqueeze(2)
    matters &= ~torch.eye(importance.shape[1], dtype=torch.bool, device=importance.device)
    score = on_mean_scale(importance, DEFAULT_OPTIONS)
    apart = (score.unsqueeze(1) - score.unsqueeze(2)).abs()
    return apart.masked_fill(~matters, torch.inf).amin((1, 2))


class NoveltyMerge(PartnerMerging):
    """Has one stage with one iteration, so similarity shares and numbers of iterations in a schedule do not apply."""

    def __init__(self, plan: LayerPlan, options: MethodOptions = DEFAULT_OPTIONS) -> None:
        super().__init__(plan, options)
        self.novelty = Novelty(plan, options)
        self.needs_attention = self.novelty.importance is not None
        self.select = KeepTopTokens(plan, _of_mean_1)

    def choose(self, x: Tensor, taps: BlockTaps, record: Recorder | None = None) -> Joined:
        lost, importance = self.novelty(x, taps.attention, taps.size, record)
        kept, gone = self.select.both(lost, record)
        choice, similarity = self.partners(x, taps, kept, gone, record)
        if record is not None:
            assert choice.into is not None
            into = kept.gather(1, choice.into.clamp_min(0))
            stays = torch.zeros_like(lost).scatter(1, kept, 1.0)
            record.note(importance=importance, survivors=stays, group=gone, partner=into, similarity=similarity)
        weight = None
        if power := self.options.average_power / 2:  # of the squares
            weight = powered(importance, power).clamp_min(_LEAST_WEIGHT).unsqueeze(-1)
            weight = weight if taps.size is None else weight * taps.size
        return Joined(choice, gone, weight)
