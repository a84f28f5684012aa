"""Who would be missed least is folded into the most similar token that stays.

Ours, from measurements (docs/explanation/method.md): instead of two stages that ask about likeness and importance one
after the other, one number per token says what is lost where a more important one stands for it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ztdeploy.core.options import DEFAULT_OPTIONS, MethodOptions
from ztdeploy.core.plan import LayerPlan
from ztdeploy.host.pruning.features import comparable, similarities
from ztdeploy.host.pruning.layer import BlockTaps, KeepTopTokens, Recorder
from ztdeploy.host.pruning.merging import Joined, PartnerMerging, powered, sizes
from ztdeploy.host.pruning.wpr import WeightedPageRank, on_mean_scale

#: What matters nothing still has a share in the average of a slot of its like.
_LEAST_WEIGHT = 1e-4


class Novelty(nn.Module):
    """What is lost with each token: its importance, times its size, times its squared distance to the nearest patch
    token that is more important; each to a power that is an option. The most important one is never lost.

    Importance is the root of the joined shares of one iteration of weighted page rank with the class token's entry
    times N, so that half of the votes are its own. No head is filtered, for that makes all of them peaked.
    """

    patch: Tensor

    def __init__(self, plan: LayerPlan, options: MethodOptions = DEFAULT_OPTIONS) -> None:
        super().__init__()
        self.options, tokens = options, plan.tokens_in
        self.importance = WeightedPageRank(
            tokens,
            tokens,
            1,
            class_token=plan.class_token,
            options=MethodOptions(head_filter=False),
            boost=float(tokens),
        )
        patch = torch.ones(1, 1, tokens)
        patch[:, :, : plan.prefix_tokens] = 0.0
        self.register_buffer("patch", patch, persistent=False)

    def forward(
        self, x: Tensor, attention: Tensor, size: Tensor | None, record: Recorder | None = None
    ) -> tuple[Tensor, Tensor]:
        """Novelty, and joined shares, which are squares of importance: `[B, N]` each.

        Args:
            x: `[B, N, D]`.
            attention: `[B, H, N, N]`.
            size: `[B, N]`; None is 1 for all.
        """
        importance: Tensor = self.importance(attention)  # squared
        # What tokens have in common does not tell them apart; without it, squares of distances lose fewer digits.
        apart = comparable(x - x.mean(1, keepdim=True), "euclidean")
        likeness = similarities(apart, apart, "euclidean")
        more_important = importance.unsqueeze(1) * self.patch > importance.unsqueeze(2)
        nearest = likeness.masked_fill(~more_important, -torch.inf).amax(-1)
        if record is not None:
            record.gap("order", _order_gap, importance, likeness, nearest, self.patch > 0)
        return self._lost(importance, size, -nearest), importance

    def _lost(self, importance: Tensor, size: Tensor | None, squared: Tensor) -> Tensor:
        """`[B, N]`, from squared distances, which are infinite for the most important token."""
        options = self.options
        power = options.importance_power / 2
        missed = torch.ones_like(importance) if power == 0 else powered(importance, power)
        if size is not None and options.size_power:
            missed = missed * powered(size, options.size_power)
        # Rounding may take the square of nothing below 0, where it has no power.
        far = squared if options.distance_power == 2 else powered(squared.clamp_min(0.0), options.distance_power / 2)
        return far * missed


def _order_gap(importance: Tensor, likeness: Tensor, nearest: Tensor, patch: Tensor) -> Tensor:
    """How close any two tokens are in importance whose order matters: `[B]`.

    It does where a token's nearest more important one might be less important, or one at least as near might be more.
    """
    matters = (likeness >= nearest.unsqueeze(2)) & patch & patch.transpose(1, 2)
    matters &= ~torch.eye(importance.shape[1], dtype=torch.bool, device=importance.device)
    score = on_mean_scale(importance, DEFAULT_OPTIONS)
    apart = (score.unsqueeze(1) - score.unsqueeze(2)).abs()
    return apart.masked_fill(~matters, torch.inf).amin((1, 2))


class NoveltyMerge(PartnerMerging):
    """Neither similarity shares nor iterations say anything here: there is one stage, of one iteration."""

    needs_attention = True

    def __init__(self, plan: LayerPlan, options: MethodOptions = DEFAULT_OPTIONS) -> None:
        super().__init__(plan, options)
        self.novelty = Novelty(plan, options)
        unit = float(plan.tokens_in) ** options.importance_power  # shares are this much smaller than scores of mean 1
        self.select = KeepTopTokens(plan, lambda lost: lost * unit)

    def choose(self, x: Tensor, taps: BlockTaps, record: Recorder | None = None) -> Joined:
        assert taps.attention is not None
        lost, importance = self.novelty(x, taps.attention, taps.size, record)
        kept = self.select(lost, None, record)
        choice, gone, similarity = self.partners(x, taps, kept, record)
        if record is not None:
            assert choice.into is not None
            into = kept.gather(1, choice.into.clamp_min(0))
            stays = torch.zeros_like(lost).scatter(1, kept, 1.0)
            record.note(importance=importance, survivors=stays, group=gone, partner=into, similarity=similarity)
        weight = None
        if power := self.options.average_power / 2:  # of the squares
            weight = sizes(taps, importance) * powered(importance, power).clamp_min(_LEAST_WEIGHT)
        return Joined(choice, gone, weight)
