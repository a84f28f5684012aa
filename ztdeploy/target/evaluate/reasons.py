"""Why patches went at a pruning layer: by similarity to which other one, or by importance, and how important all are.

It comes from the graph with notes, which is the engine's graph with more outputs. Both are run on the same image, and
what the graph notes counts only as far as the engine chose the very same tokens. Half precision, another device and
another way to fuse operators may all decide otherwise; then what the graph notes isn't why the engine did what it did.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ztdeploy.core.errors import ParityError
from ztdeploy.core.manifest import VariantRecord
from ztdeploy.core.methods import METHODS
from ztdeploy.core.names import pruning_output
from ztdeploy.core.plan import LayerPlan
from ztdeploy.target.evaluate.patches import GONE, LayerPatches
from ztdeploy.target.runtime.interface import Outputs

_BY_TOKEN, _BY_PAIR = ("importance", "rank", "survivors"), ("group", "partner", "similarity")
_Notes = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Pair:
    """A patch that went by similarity, and what it was the most similar to."""

    patch: int
    partner: int | None  #: None: a token that is no patch's, such as the class token
    similarity: float


@dataclass(frozen=True)
class LayerReasons:
    """What one pruning layer decided about one image, by patch."""

    by_similarity: tuple[int, ...]  #: patches whose tokens went, ascending
    by_importance: tuple[int, ...]
    importance: NDArray[np.float64]  #: `[patches]`, mean 1 over the tokens ranked; NaN: in no token that was
    pairs: tuple[Pair, ...]  #: one for each patch that went by similarity, the most similar first

    @property
    def has_importance(self) -> bool:
        return bool(np.isfinite(self.importance).any())


def agreed_layers(engine: Outputs, noted: Outputs, image: int) -> int:
    """How many pruning layers, from the first, chose the same for an image in both."""
    for layer, pair in enumerate(zip(engine.kept, noted.kept, strict=True)):
        choices = [pair, *([(engine.into[layer], noted.into[layer])] if layer < len(engine.into) else [])]
        if not all(np.array_equal(ours[image], theirs[image]) for ours, theirs in choices):
            return layer
    return len(engine.kept)


def reasons_of(
    variant: VariantRecord, layers: Sequence[LayerPatches], noted: Outputs, image: int, agreed: int
) -> tuple[LayerReasons | None, ...]:
    """One image's reasons, per pruning layer; None where the method notes nothing, or from `agreed` on.

    Args:
        layers: as `follow` gives them.
        agreed: as `agreed_layers` gives it.

    Raises:
        ParityError: the notes cannot be right.
    """
    method = METHODS.get(variant.schedule.method)
    # Such a graph leaves out the square root of the method's scores, which changes no ranking.
    squares = method is not None and "page-rank" in method.work and variant.schedule.options.join == "rms"
    patches, prefix = len(layers[0].holder), variant.plan.layers[0].prefix_tokens
    own, holder = np.concatenate([np.full(prefix, GONE), np.arange(patches)]), np.arange(prefix, prefix + patches)
    found = list[LayerReasons | None]()
    for index, layer in enumerate(layers):
        notes = _notes(layer.plan, noted.more, image) if index < agreed else {}
        gone = np.setdiff1d(np.arange(len(own)), noted.kept[index][image])
        found.append(_reasons(notes, gone, own, holder, layer.own, squares) if notes else None)
        own, holder = layer.own, layer.holder
    return tuple(found)


def _reasons(
    notes: _Notes,
    gone: NDArray[np.int64],
    own: NDArray[np.int64],
    holder: NDArray[np.int64],
    own_after: NDArray[np.int64],
    squares: bool,
) -> LayerReasons:
    """
    Args:
        gone: tokens that went.
        own, holder: as in `LayerPatches`, for the tokens that entered the layer.
        own_after: the same as `own`, for the tokens that left it.
        squares: importance is noted as a square.
    """
    if "survivors" in notes:
        alike = gone[notes["survivors"][gone] == 0]
    else:
        alike = gone if "similarity" in notes and "importance" not in notes else gone[:0]
    pairs = [
        Pair(int(own[token]), None if own[other] == GONE else int(own[other]), float(similarity))
        for token, other, similarity in zip(*(notes.get(name, ()) for name in _BY_PAIR), strict=True)
        if token in alike and own[token] != GONE
    ]
    by_similarity = set(own[alike].tolist()) - {GONE}
    lost = set(own.tolist()) - set(own_after.tolist())  # with the one in whose place a fused token is
    return LayerReasons(
        by_similarity=tuple(sorted(by_similarity)),
        by_importance=tuple(sorted(lost - by_similarity - {GONE})),
        importance=_importance(notes, own, holder, squares),
        pairs=tuple(sorted(pairs, key=lambda pair: (-pair.similarity, pair.patch))),
    )


def _importance(notes: _Notes, own: NDArray[np.int64], holder: NDArray[np.int64], squares: bool) -> NDArray[np.float64]:
    """What the final ranking went by; where nothing went by it, what the first one did."""
    scores = notes.get("importance", notes.get("rank"))
    if scores is None:
        return np.full(len(holder), np.nan)
    scores = scores.astype(np.float64)
    scores = np.sqrt(np.maximum(scores, 0)) if squares else scores
    if "importance" in notes and "survivors" in notes:
        scores[(notes["survivors"] == 0) & (scores == 0)] = np.nan  # gone before anything was ranked
    mean = np.nanmean(scores[own != GONE]) if np.isfinite(scores[own != GONE]).any() else 0.0
    scores = scores / mean if mean > 0 else scores
    return np.where(holder == GONE, np.nan, scores[holder])


def _notes(plan: LayerPlan, given: _Notes, image: int) -> dict[str, NDArray[Any]]:
    """What is noted of a layer, by note, checked."""
    names = {note: pruning_output(plan.block, note) for note in (*_BY_TOKEN, *_BY_PAIR)}
    notes = {note: given[name][image] for note, name in names.items() if name in given}
    pairs = [notes[note] for note in _BY_PAIR if note in notes]
    right = all(np.isfinite(values).all() for values in notes.values())
    right = right and all(len(notes[note]) == plan.tokens_in for note in _BY_TOKEN if note in notes)
    right = right and len(pairs) in (0, 3) and len({len(values) for values in pairs}) <= 1
    for tokens in pairs[:2]:
        right = right and tokens.dtype.kind in "iu" and bool(((tokens >= 0) & (tokens < plan.tokens_in)).all())
    if right:
        return notes
    raise ParityError(
        f"what the graph notes at block {plan.block + 1} cannot be right",
        f"finite scores of {plan.tokens_in} tokens, and pairs of them",
        "run: ztdeploy verify",
    )
