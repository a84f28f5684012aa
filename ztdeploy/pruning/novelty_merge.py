"""Who would be missed least is folded into the most similar token that stays.

Ours, from measurements (docs/method.md): instead of two stages that ask about likeness and importance one after the
other, one number per token says what is lost where a more important one stands for it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ztdeploy.options import DEFAULT_OPTIONS, MethodOptions
from ztdeploy.pruning.features import comparable, similarities
from ztdeploy.pruning.layer import BlockTaps, Choice, KeepTopTokens, Recorder
from ztdeploy.pruning.partners import PartnerMerging
from ztdeploy.pruning.wpr import WeightedPageRank
from ztdeploy.schedule import LayerPlan


class Novelty(nn.Module):
    """What is lost with each token: its importance, times its size, times its squared distance to the nearest patch
    token that is more important. The most important one is never lost.

    Importance is one iteration of weighted page rank with the class token's entry times N, so that half of the votes
    are its own. No head is filtered, for that makes all of them peaked.
    """

    patch: Tensor

    def __init__(self, plan: LayerPlan) -> None:
        super().__init__()
        tokens, options = plan.tokens_in, MethodOptions(head_filter=False)
        self.importance = WeightedPageRank(
            tokens, tokens, 1, class_token=plan.class_token, options=options, boost=float(tokens)
        )
        patch = torch.ones(1, 1, tokens)
        patch[:, :, : plan.prefix_tokens] = 0.0
        self.register_buffer("patch", patch, persistent=False)

    def forward(
        self, x: Tensor, attention: Tensor, size: Tensor | None, record: Recorder | None = None
    ) -> tuple[Tensor, Tensor]:
        """Novelty and importance, `[B, N]` each.

        Args:
            x: `[B, N, D]`.
            attention: `[B, H, N, N]`.
            size: `[B, N]`; None is 1 for all.
        """
        importance: Tensor = self.importance(attention)
        # What tokens have in common does not tell them apart; without it, squares of distances lose fewer digits.
        apart = comparable(x - x.mean(1, keepdim=True), "euclidean")
        likeness = similarities(apart, apart, "euclidean")
        more_important = importance.unsqueeze(1) * self.patch > importance.unsqueeze(2)
        nearest = likeness.masked_fill(~more_important, -torch.inf).amax(-1)
        if record is not None:
            record.gap("order", _order_gap, importance, likeness, nearest, self.patch > 0)
        missed = importance.sqrt() if torch.compiler.is_exporting() else importance  # `ranking_of` has squares
        lost = -nearest * (missed if size is None else missed * size)
        return lost, importance


def _order_gap(importance: Tensor, likeness: Tensor, nearest: Tensor, patch: Tensor) -> Tensor:
    """How close any two tokens are in importance whose order matters: `[B]`.

    It does where a token's nearest more important one might be less important, or one at least as near might be more.
    """
    matters = (likeness >= nearest.unsqueeze(2)) & patch & patch.transpose(1, 2)
    matters &= ~torch.eye(importance.shape[1], dtype=torch.bool)
    apart = (importance.unsqueeze(1) - importance.unsqueeze(2)).abs()
    return apart.masked_fill(~matters, torch.inf).amin((1, 2))


class NoveltyMerge(PartnerMerging):
    """Neither similarity shares nor iterations say anything here: there is one stage, of one iteration."""

    needs_attention = True

    def __init__(self, plan: LayerPlan, options: MethodOptions = DEFAULT_OPTIONS) -> None:
        super().__init__(plan, options)
        self.novelty, self.select = Novelty(plan), KeepTopTokens(plan)

    def choose(self, x: Tensor, taps: BlockTaps, record: Recorder | None = None) -> tuple[Choice, Tensor]:
        assert taps.attention is not None
        lost, importance = self.novelty(x, taps.attention, taps.size, record)
        kept = self.select(lost, None, record)
        choice, gone, similarity = self.partners(x, taps, kept, record)
        if record is not None:
            assert choice.into is not None
            into = kept.gather(1, choice.into.clamp_min(0))
            stays = torch.zeros_like(lost).scatter(1, kept, 1.0)
            record.note(importance=importance, survivors=stays, group=gone, partner=into, similarity=similarity)
        return choice, gone
