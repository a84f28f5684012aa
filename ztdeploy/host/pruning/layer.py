"""The base of all pruning layers: modules that decide which tokens stay, with counts fixed at trace time."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from ztdeploy.core.options import DEFAULT_OPTIONS, Feature, MethodOptions
from ztdeploy.core.plan import LayerPlan
from ztdeploy.host.pruning.selection import ascending, cut_gap, gather_tokens, top_indices


@dataclass
class BlockTaps:
    """Tensors that a block hands to its pruning layer while it runs."""

    attention: Tensor | None = None  #: `[B, H, N, N]` after softmax
    keys: Tensor | None = None  #: `[B, H, N, d]`
    values: Tensor | None = None  #: `[B, H, N, d]`
    size: Tensor | None = None  #: `[B, N, 1]`: tokens of the image that each stands for; None: 1
    queries: Tensor | None = None  #: `[B, H, N, d]`
    coherence: Tensor | None = None  #: `[B, N, 1]`: length as a share of the parts' mean length; None: 1
    #: What the pruning layer before told of these tokens, `[B, N, ...]`, and whatever else it told.
    carried: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Choice:
    """The decision of a pruning layer, for each image."""

    kept: Tensor  #: `[B, k]` int64, ascending: the tokens that stay, one per slot
    into: Tensor | None = None  #: `[B, N - k]` int64: for each other token in order, the slot that it is merged into

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.kept,) if self.into is None else (self.kept, self.into)


@dataclass(frozen=True)
class Reduction:
    """The result of a pruning layer, for the blocks behind it."""

    tokens: Tensor  #: `[B, k, D]`
    choice: Choice  #: the layer's own choice, even where another one was forced
    size: Tensor | None = None  #: `[B, k, 1]`, where later layers and attention need it
    bias: Tensor | None = None  #: `[B, 1, 1, k]`: log(size), which later attention adds to its logits
    coherence: Tensor | None = None  #: `[B, k, 1]`
    scale: Tensor | None = None  #: `[B, k, 1]`, a factor for the normalised input of later attention
    update: Tensor | None = None  #: `[B, k, 1]`, a factor for what later blocks add to tokens
    carried: Mapping[str, Tensor] = field(default_factory=dict)  #: what the method's next layer is told


@dataclass
class Recorder:
    """Collects a layer's reasons (notes), and outside of export how close its decisions were (gaps)."""

    gaps: dict[str, Tensor] = field(default_factory=dict)
    notes: dict[str, Tensor] = field(default_factory=dict)  #: see `note`

    @property
    def scores(self) -> Tensor | None:
        """Note the scores `[B, N]` that ranked the tokens which stay."""
        return self.notes.get("importance")

    def gap(self, stage: str, measure: Callable[..., Tensor], *given: Any) -> None:
        """Record the gap of a stage, `measure(*given) [B]`; of two reports of a stage the smaller one counts.

        Nothing is measured during export: nobody could read it there, and every traced node takes time.
        """
        if torch.compiler.is_exporting():
            return
        values = measure(*given)
        self.gaps[stage] = torch.minimum(self.gaps[stage], values) if stage in self.gaps else values

    def note(self, **values: Tensor) -> None:
        """Note a tensor that explains a decision, for `show`. A layer can note, of the tokens that entered it:

        - `importance`: `[B, N]`, the scores that ranked the tokens which stay; not negative, of any scale
        - `rank`: `[B, N]`, scores of the same kind that decided which tokens may go by similarity
        - `survivors`: `[B, N]`, 0 for the tokens that go by similarity, and for no others
        - `group`, `partner`, `similarity`: `[B, A]` each; tokens that could have gone by similarity, the most similar
          token of each, and the similarity

        `PrunedModel` adds `DISTANCE`, `[B]`, of a model of embeddings or features, see `closeness.py`.
        """
        self.notes |= values

    def smallest_gap(self, images: int) -> Tensor:
        """`[B]`: the smallest gap of all stages; infinite for a method that compares nothing."""
        if not self.gaps:
            return torch.full((images,), torch.inf)
        return torch.stack(list(self.gaps.values())).amin(0)


class PruningLayer(nn.Module):
    """Base of the methods in this folder: one method per file, one line in `ztdeploy.core.methods`."""

    needs_attention = needs_keys = needs_values = needs_queries = False
    may_drop = True  #: tokens can go without being merged into another one

    def __init__(self, plan: LayerPlan, options: MethodOptions = DEFAULT_OPTIONS) -> None:
        super().__init__()
        self.plan, self.options = plan, options

    def will_compare(self, feature: Feature) -> None:
        """Request the tensor that a feature is made from."""
        self.needs_keys = self.needs_keys or feature in ("keys", "all-keys")
        self.needs_queries = self.needs_queries or feature == "queries"
        self.needs_values = self.needs_values or feature == "values"

    @abstractmethod
    def forward(
        self, x: Tensor, taps: BlockTaps, record: Recorder | None = None, forced: Choice | None = None
    ) -> Reduction:
        """Decide which tokens of `x [B, N, D]` stay, and reduce it to `[B, k, D]`.

        Args:
            x: the block's tokens behind its MLP, or between attention and MLP. taps: the tensors that the layer
            requests with `needs_attention`, `needs_keys`, `needs_values`, `needs_queries`. record: takes gaps and
            notes, if anybody wants them. forced: a choice to apply instead of the layer's own, which is made and
            returned all the same. So choices of
                another implementation can be replayed, and every layer be compared on identical input.
        """

    def finish(self, x: Tensor, carried: Mapping[str, Tensor]) -> Tensor:
        """Change what the last block hands on, `[B, N, D]`; only the last layer is asked, where `Method.reads_blocks`.

        Args:
            carried: what the last layer told, see `Reduction.carried`.
        """
        return x


class DroppingLayer(PruningLayer):
    """A method that keeps tokens unchanged or drops them."""

    @abstractmethod
    def decide(self, x: Tensor, taps: BlockTaps, record: Recorder | None = None) -> Tensor:
        """Which tokens stay: `[B, k]` int64, ascending, the prefix tokens first."""

    def forward(
        self, x: Tensor, taps: BlockTaps, record: Recorder | None = None, forced: Choice | None = None
    ) -> Reduction:
        carried = self.carry(x, taps)
        kept = self.decide(x, replace(taps, carried=carried), record)
        tokens = self.reduce(x, kept) if forced is None else gather_tokens(x, forced.kept)
        applied = kept if forced is None else forced.kept
        carried = {name: gather_tokens(values, applied) for name, values in carried.items()}
        return Reduction(tokens, Choice(kept), carried=carried)

    def carry(self, x: Tensor, taps: BlockTaps) -> Mapping[str, Tensor]:
        """What `decide` and the method's next layer are told of the tokens of `x`: `[B, N, c]` each, by any name."""
        return {}

    def reduce(self, x: Tensor, kept: Tensor) -> Tensor:
        """`[B, N, D]` to `[B, k, D]`."""
        return gather_tokens(x, kept)


class ProtectPrefix(nn.Module):
    """Gives prefix tokens the highest score, so that every ranking puts them first."""

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
    """From scores `[B, N]` to kept indices `[B, k]`: the prefix tokens and the survivors with the highest scores."""

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
            # The score of a live token may underflow to 0, which dropped tokens have; it must still outrank them.
            ranked = torch.where(survivors > 0, ranked, -1.0)
        self._note(scores, ranked, record)
        return ascending(top_indices(ranked, self.keep))

    def both(self, scores: Tensor, record: Recorder | None = None) -> tuple[Tensor, Tensor]:
        """The kept indices `[B, k]`, and those of all other tokens, `[B, N - k]`, both ascending."""
        ranked = self.protect(scores)
        self._note(scores, ranked, record)
        order = top_indices(ranked, ranked.shape[1])
        return ascending(order[:, : self.keep]), ascending(order[:, self.keep :])

    def _note(self, scores: Tensor, ranked: Tensor, record: Recorder | None) -> None:
        if record is not None:
            record.note(importance=scores)
            record.gap("importance", lambda: cut_gap(self.scale(ranked), self.keep))
