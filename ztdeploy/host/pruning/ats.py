"""ATS (ECCV 2022, arXiv 2111.15667): adaptive token sampling, with a number of tokens that is fixed.

A token's score is the class token's attention to it, times the norm of its value, summed over heads. The scores'
cumulative distribution is sampled at `K` even points, `(i - 1/2) / K`. The paper keeps the tokens that are hit, which
are fewer than `K` where some are hit twice. Here they stay as well, and the best-scored others fill the free places.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ztdeploy.core.options import DEFAULT_OPTIONS, MethodOptions
from ztdeploy.core.plan import LayerPlan
from ztdeploy.host.pruning.layer import BlockTaps, DroppingLayer, KeepTopTokens, Recorder


def value_scores(attention: Tensor, values: Tensor) -> Tensor:
    """`A[0, j] |V_j|`, summed over heads: `[B, H, N, N]` and `[B, H, N, d]` to `[B, N]`."""
    length: Tensor = torch.linalg.vector_norm(values, dim=-1)
    return (attention[:, :, 0] * length).sum(1)


def sampled(cumulative: Tensor, samples: int) -> Tensor:
    """Which tokens the samples hit: those at which the number of sample points below the distribution grows.

    Args:
        cumulative: `[B, P]`, ascending to 1.
        samples: how many points.

    Returns:
        `[B, P]` of truth values, at most `samples` of them true.
    """
    below = (cumulative * samples + 0.5).floor()
    before = torch.nn.functional.pad(below[:, :-1], (1, 0))
    return below > before


class AdaptiveSampling(DroppingLayer):
    """Takes as many samples as patch tokens shall stay."""

    needs_attention = True
    needs_values = True

    def __init__(self, plan: LayerPlan, options: MethodOptions = DEFAULT_OPTIONS) -> None:
        super().__init__(plan, options)
        self.select = KeepTopTokens(plan)

    def decide(self, x: Tensor, taps: BlockTaps, record: Recorder | None = None) -> Tensor:
        assert taps.attention is not None
        assert taps.values is not None
        prefix, samples = self.plan.prefix_tokens, self.plan.tokens_out - self.plan.prefix_tokens
        scores = value_scores(taps.attention, taps.values)
        patches = scores[:, prefix:]
        share = patches / patches.sum(-1, keepdim=True).clamp_min(torch.finfo(scores.dtype).tiny)
        cumulative = share.cumsum(-1)
        if record is not None:
            record.gap("samples", sample_gap, cumulative, samples)
        ranked = torch.where(sampled(cumulative, samples), torch.inf, share * share.shape[1])
        kept: Tensor = self.select(torch.nn.functional.pad(ranked, (prefix, 0)), None, record)
        if record is not None:
            record.note(importance=scores)  # without the infinite scores of sampled tokens
        return kept


def sample_gap(cumulative: Tensor, samples: int) -> Tensor:
    """How close the distribution comes to a sample point at the end of a token: `[B, P]` to `[B]`."""
    if cumulative.shape[1] < 2:
        return cumulative.new_full(cumulative.shape[:1], torch.inf)
    position = cumulative[:, :-1] * samples + 0.5
    return (position - position.round()).abs().amin(-1) / samples
