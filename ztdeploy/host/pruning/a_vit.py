"""A-ViT (CVPR 2022, arXiv 2112.07658): a token's first number says how likely it halts; those that halted most go.

After each block a token halts by `h = sigmoid(scale * x[0] - center)`, which adds up over the blocks. The paper drops
a token as soon as the sum reaches 1. Here those with the largest sums go, as many as the schedule says. The head reads
the class token as it was behind all blocks, weighed by `h` until the sum reaches 1, and by what is then left of 1. With
a layer behind every block, as in the paper, these are all blocks.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ztdeploy.core.options import DEFAULT_OPTIONS, MethodOptions
from ztdeploy.core.plan import LayerPlan
from ztdeploy.host.pruning.layer import BlockTaps, Choice, KeepTopTokens, PruningLayer, Recorder, Reduction
from ztdeploy.host.pruning.selection import gather_tokens

#: What layers tell one another: logarithms of the sums of all tokens, `[B, N, 1]`; of prefix tokens what is left of 1,
#: `[B, P, 1]`, and the weighted sum of their states so far, `[B, P, D]`.
_SUM, _LEFT, _ANSWER = "sum", "left", "answer"
#: A sum this near to 1 has reached it, as in the published code.
_MARGIN = 0.01


class AViT(PruningLayer):
    """Has no weights of its own: training makes tokens halt by what the blocks write into their first number."""

    def __init__(self, plan: LayerPlan, options: MethodOptions = DEFAULT_OPTIONS) -> None:
        super().__init__(plan, options)
        self.select = KeepTopTokens(plan)

    def forward(
        self, x: Tensor, taps: BlockTaps, record: Recorder | None = None, forced: Choice | None = None
    ) -> Reduction:
        halts = log_sigmoid(x[..., :1] * self.options.halting_scale - self.options.halting_center)
        total = log_of_sum(halts, taps.carried[_SUM]) if taps.carried else halts
        falling = total.squeeze(-1)
        choice = Choice(self.select(falling.amax(-1, keepdim=True) - falling, None, record))
        kept = choice.kept if forced is None else forced.kept
        first = slice(self.plan.prefix_tokens)
        carried = {_SUM: gather_tokens(total, kept)}
        carried |= _weighed(x[:, first], halts[:, first].exp(), total[:, first].exp(), taps.carried)
        return Reduction(gather_tokens(x, kept), choice, carried=carried)

    def finish(self, x: Tensor, carried: Mapping[str, Tensor]) -> Tensor:
        prefix = self.plan.prefix_tokens
        return torch.cat([carried[_ANSWER] + carried[_LEFT] * x[:, :prefix], x[:, prefix:]], 1)


def log_sigmoid(z: Tensor) -> Tensor:
    """log(sigmoid(z)). Most tokens hardly halt, and runtimes round a sigmoid of less than -18 to a constant."""
    return z.clamp_max(0) - (1 + (-z.abs()).exp()).log()


def log_of_sum(one: Tensor, other: Tensor) -> Tensor:
    """log(exp(one) + exp(other))."""
    return torch.maximum(one, other) + (1 + (-(one - other).abs()).exp()).log()


def _weighed(x: Tensor, halts: Tensor, total: Tensor, before: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weighted sum of prefix tokens with this block's `x [B, P, D]` in it, and what is left of 1."""
    left = before[_LEFT] if before else torch.ones_like(halts)
    share = torch.where(total > 1 - _MARGIN, left, halts)
    answer = share * x
    return {_LEFT: left - share, _ANSWER: answer + before[_ANSWER] if before else answer}
