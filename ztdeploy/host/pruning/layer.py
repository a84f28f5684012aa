"""What every pruning layer is: a module that decides which tokens stay, with counts fixed at trace time."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ztdeploy.core.options import DEFAULT_OPTIONS, Feature, MethodOptions
from ztdeploy.core.plan import LayerPlan
from ztdeploy.host.pruning.selection import ascending, cut_gap, gather_tokens, top_indices


@dataclass
class BlockTaps:
    """What a block shows to the pruning layer behind it, or between its attention and its MLP; filled as it runs."""

    attention: Tensor | None = None  #: `[B, H, N, N]` after softmax
    keys: Tensor | None = None  #: `[B, H, N, d]`
    values: Tensor | None = None  #: `[B, H, N, d]`
    size: Tensor | None = None  #: `[B, N]`: how many tokens of the image each stands for; None: each for itself
    queries: Tensor | None = None  #: `[B, H, N, d]`
    coherence: Tensor | None = None  #: `[B, N]`: its length, as a share of the mean of its parts'; None: 1 for each


@dataclass(frozen=True)
class Choice:
    """What a pruning layer decides for each image."""

    kept: Tensor  #: `[B, k]` int64, ascending: the tokens that stay, each in a slot of its own
    into: Tensor | None = None  #: `[B, N - k]` int64: the slots that the others are merged into, in their order

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.kept,) if self.into is None else (self.kept, self.into)


@dataclass(frozen=True)
class Reduction:
    """What a pruning layer hands on."""

    tokens: Tensor  #: `[B, k, D]`
    choice: Choice  #: the layer's own, also where another one was forced
    size: Tensor | None = None  #: `[B, k]`, where later layers and attention must know it
    bias: Tensor | None = None  #: `[B, 1, 1, k]`: log(size), which all later attention adds to its logits
    coherence: Tensor | None = None  #: `[B, k]`
    scale: Tensor | None = None  #: `[B, k, 1]`, which the normalised input of all later attention is multiplied with
    update: Tensor | None = None  #: `[B, k, 1]`, which what later blocks add to tokens is multiplied with


@dataclass
class Recorder:
    """Collects what a layer decided by, and outside any exported graph how clear-cut that was."""

    gaps: dict[str, Tensor] = field(default_factory=dict)
    notes: dict[str, Tensor] = field(default_factory=dict)  #: see `note`

    @property
    def scores(self) -> Tensor | None:
        """What the tokens that stay were ranked by, `[B, N]`."""
        return self.notes.get("importance")

    def gap(self, stage: str, measure: Callable[..., Tensor], *given: Any) -> None:
        """Note the gap of a stage, `measure(*given) [B]`; the smaller one where a stage reports twice.

        While a graph is exported nothing is measured: nobody could read it there, and tracing takes its time per node.
        """
        if torch.compiler.is_exporting():
            return
        values = measure(*given)
        self.gaps[stage] = torch.minimum(self.gaps[stage], values) if stage in self.gaps else values

    def note(self, **values: Tensor) -> None:
        """Note what a decision rests on, to be shown. What a layer can note, all of tokens that entered it:

        - `importance`: `[B, N]`, what the tokens that stay were ranked by; not negative, of any scale
        - `rank`: `[B, N]`, likewise, what decided who may go by similarity
        - `survivors`: `[B, N]`, 0 for the tokens that go by similarity, and for no others
        - `group`, `partner`, `similarity`: `[B, A]` each; tokens that might have gone by similarity, the token that
          each is the most similar to, and how similar
        """
        self.notes |= values

    def smallest_gap(self, images: int) -> Tensor:
        """`[B]`: the closest call among the stages; infinite for a method that compares nothing."""
        if not self.gaps:
            return torch.full((images,), torch.inf)
        return torch.stack(list(self.gaps.values())).amin(0)


class PruningLayer(nn.Module):
    """Base of the methods in this folder: one method per file, one line in `ztdeploy.core.methods`."""

    needs_attention = needs_keys = needs_values = needs_queries = False

    def __init__(self, plan: LayerPlan, options: MethodOptions = DEFAULT_OPTIONS) -> None:
        super().__init__()
        self.plan, self.options = plan, options

    def will_compare(self, feature: Feature) -> None:
        """Ask for what a feature is made of."""
        self.needs_keys = self.needs_keys or feature in ("keys", "all-keys")
        self.needs_queries = self.needs_queries or feature == "queries"
        self.needs_values = self.needs_values or feature == "values"

    @abstractmethod
    def forward(
        self, x: Tensor, taps: BlockTaps, record: Recorder | None = None, forced: Choice | None = None
    ) -> Reduction:
        """Decide, and reduce `x [B, N, D]` to `[B, k, D]`.

        Args:
            x: the block's tokens behind its MLP, or between attention and MLP.
            taps: what the layer asked for with `needs_attention`, `needs_keys`, `needs_values`, `needs_queries`.
            record: where to leave the gaps at the cuts, if anybody wants them.
            forced: a choice to apply in place of the layer's own, which is made and told all the same: so another
                implementation's choices can be replayed, and each layer be compared on identical input.
        """


class DroppingLayer(PruningLayer):
    """A method whose tokens stay as they are, or go without a trace."""

    @abstractmethod
    def decide(self, x: Tensor, taps: BlockTaps, record: Recorder | None = None) -> Tensor:
        """Which tokens stay: `[B, k]` int64, ascending, the prefix tokens first."""

    def forward(
        self, x: Tensor, taps: BlockTaps, record: Recorder | None = None, forced: Choice | None = None
    ) -> Reduction:
        kept = self.decide(x, taps, record)
        tokens = self.reduce(x, kept) if forced is None else gather_tokens(x, forced.kept)
        return Reduction(tokens, Choice(kept))

    def reduce(self, x: Tensor, kept: Tensor) -> Tensor:
        """`[B, N, D]` to `[B, k, D]`."""
        return gather_tokens(x, kept)


class ProtectPrefix(nn.Module):
    """Gives the prefix tokens a score above all others, so that every ranking puts them first."""

    floor: Tensor

    def __init__(self, plan: LayerPlan) -> None:
        super().__init__()
        floor = torch.zeros(1, plan.tokens_in)
        floor[:, : plan.prefix_tokens] = torch.inf
        self.register_buffer("floor", floor, persistent=False)
        self.prefix_tokens = plan.prefix_tokens

    def forward(self, scores: Tensor) -> Tensor:
        """`[B, N]` to `[B, N]`; scores are never negative."""
        return torch.maximum(scores, self.floor.to(scores.dtype)) if self.prefix_tokens else scores


def as_they_are(scores: Tensor) -> Tensor:
    return scores


class KeepTopTokens(nn.Module):
    """Scores `[B, N]` to the kept indices `[B, k]`: the prefix tokens and the best-scored survivors."""

    def __init__(self, plan: LayerPlan, scale: Callable[[Tensor], Tensor] = as_they_are) -> None:
        """
        Args:
            scale: brings scores to the scale on which gaps are measured, where they have about mean 1.
        """
        super().__init__()
        self.keep, self.protect, self.scale = plan.tokens_out, ProtectPrefix(plan), scale

    def forward(self, scores: Tensor, survivors: Tensor | None = None, record: Recorder | None = None) -> Tensor:
        ranked = self.protect(scores)
        if survivors is not None:
            # A live token's score may underflow to the 0 of a dropped one; it must still outrank it.
            ranked = torch.where(survivors > 0, ranked, -1.0)
        if record is not None:
            record.note(importance=scores)
            record.gap("importance", lambda: cut_gap(self.scale(ranked), self.keep))
        return ascending(top_indices(ranked, self.keep))
