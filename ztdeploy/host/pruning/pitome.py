"""PiToMe (NeurIPS 2024, arXiv 2405.16148): protect tokens that are unlike the others, and merge the rest in pairs.

Written from the paper's text. A token's *energy* is the mean over all patch tokens of `f(cosine of keys)`, with
`f(c) = c - m` above a margin `m` and `exp(c - m) - 1` below, so a token that has many others like it has a high energy.
The margin falls with the depth, from 0.9 to 0. Of the `2 r` tokens with the highest energy, ordered by it, every other
one is merged into the most similar of those between them. The paper's text has `f(c) = c` above the margin, which
jumps there; its authors measure with the form that is here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ztdeploy.core.options import DEFAULT_OPTIONS, MethodOptions
from ztdeploy.core.plan import LayerPlan
from ztdeploy.host.pruning.features import source_of, unit_length, vectors
from ztdeploy.host.pruning.layer import BlockTaps, Recorder
from ztdeploy.host.pruning.merging import Joined, MergingLayer, merged_into, partner_gap
from ztdeploy.host.pruning.selection import ascending, gather_tokens, top_indices

_LARGEST_MARGIN = 0.9


def energies(similarity: Tensor, margin: float) -> Tensor:
    """Similarities `[B, P, P]` to energies `[B, P]`."""
    return torch.nn.functional.elu(similarity - margin).mean(-1)


class PiToMe(MergingLayer):
    """Stands between attention and MLP. Prefix tokens have no energy and are not merged."""

    needs_keys = True

    def __init__(self, plan: LayerPlan, options: MethodOptions = DEFAULT_OPTIONS) -> None:
        super().__init__(plan, options)
        self.margin, self.merge = _LARGEST_MARGIN * (1 - plan.position), plan.tokens_in - plan.tokens_out

    def choose(self, x: Tensor, taps: BlockTaps, record: Recorder | None = None) -> Joined:
        prefix, tokens = self.plan.prefix_tokens, self.plan.tokens_in
        feature = unit_length(vectors("keys", source_of("keys", x, taps)))[:, prefix:]
        energy = energies(feature @ feature.transpose(1, 2), self.margin)
        order = top_indices(energy, 2 * self.merge)
        one, other = order[:, 0::2], order[:, 1::2]
        similarity = gather_tokens(feature, one) @ gather_tokens(feature, other).transpose(1, 2)
        partner = prefix + other.gather(1, similarity.argmax(-1))
        target = torch.arange(tokens, device=x.device).expand(x.shape[0], -1).scatter(1, prefix + one, partner)
        gone = ascending(prefix + one)
        if record is not None:
            record.gap("energy", order_gap, energy, 2 * self.merge)
            record.gap("partner", partner_gap, similarity)
            record.note(group=prefix + one, partner=partner, similarity=similarity.amax(-1))
        return Joined(merged_into(target, gone), gone)


def order_gap(scores: Tensor, count: int) -> Tensor:
    """The smallest difference between neighbours among the `count` best scores and the next one: `[B, P]` to `[B]`."""
    ordered = torch.sort(scores, dim=-1, descending=True).values[:, : count + 1]
    return (ordered[:, :-1] - ordered[:, 1:]).amin(-1)
