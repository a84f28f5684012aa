"""What the contact sheet and the page show of one image: tiles, and the words beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from ztdeploy.core.manifest import Manifest
from ztdeploy.core.methods import METHODS
from ztdeploy.core.preprocess_spec import Activation
from ztdeploy.report.kit.colours import Colour
from ztdeploy.report.kit.map_pictures import compared_tiles
from ztdeploy.report.show.tiles import (
    DRAWN_PAIRS,
    SIMILAR_COLOUR,
    UNIMPORTANT_COLOUR,
    Grid,
    importance_tile,
    layer_tile,
    plain_tile,
)
from ztdeploy.target.evaluate.explain import Explained, ExplainedImage, StageDecision
from ztdeploy.target.evaluate.maps import figures_in_words
from ztdeploy.target.evaluate.patches import LayerPatches
from ztdeploy.target.evaluate.reasons import LayerReasons, Pair
from ztdeploy.target.runtime.postprocess import Label

DROPPING = "As it is: its token stays. Dimmed: its token was dropped."
MERGING = (
    "As it is: its token stays. Tinted: merged into another token, averaged and not lost; of the patches of one "
    "colour, the one without tint is where that token is. Dimmed: dropped."
)
FUSING = "As it is: its token stays. Tinted: averaged into one further token, which has no patch."
#: Beside the scale of importance.
LEAST, MOST = "least important", "most important"


@dataclass(frozen=True)
class LayerDrawing:
    """What is shown of one pruning layer."""

    tile: Image.Image
    importance: Image.Image | None  #: a map of it, where it is known
    caption: str
    gone: str | None  #: how many patches went for which reason; None where that is not known
    pairs: tuple[Pair, ...]


@dataclass(frozen=True)
class VariantDrawing:
    """What is shown of one variant, or of a stage of a cascade."""

    name: str
    heading: str
    panels: tuple[LayerDrawing, ...]
    answers: tuple[
        tuple[str, tuple[Label, ...]], ...
    ]  #: the baseline's, the variant's if it is another one; empty where models give vectors
    changed: bool  #: whether the variant's answer is another one than the baseline's
    nearness: str | None  #: how near vectors are to the baseline's; None of a classifier
    keys: tuple[tuple[str, Colour], ...]  #: what the colours of reasons mean
    merges: bool
    legend: str
    doubt: str | None  #: why some reasons are missing
    decision: StageDecision | None = None  #: None where no cascade runs
    maps: tuple[tuple[str, Image.Image], ...] = ()  #: of a dense model: both maps and their difference, with captions

    @property
    def outcome(self) -> str:
        """What became of the answer, in a few words; empty where a model gives none."""
        if self.decision is None:
            return self._became
        return "; ".join(filter(None, (self.decision.words, self._became if self.decision.answers else "")))

    @property
    def _became(self) -> str:
        if self.nearness is not None:
            return self.nearness
        first = [labels[0].name for _, labels in self.answers if labels]
        return f"{first[0]} became {first[-1]}" if self.changed else f"still {first[0]}" if first else ""


@dataclass(frozen=True)
class ImageDrawing:
    """What is shown of one image."""

    name: str
    plain: Image.Image
    grid: Grid
    rows: tuple[VariantDrawing, ...]

    @property
    def changed(self) -> bool:
        return any(row.changed for row in self.rows)


def draw(one: ExplainedImage, manifest: Manifest) -> ImageDrawing:
    grid = Grid(*manifest.model.architecture.rows_and_columns)
    plain = plain_tile(one.pixels, grid)
    rows = tuple(_row(seen, one.dense_labels, plain, grid, manifest) for seen in one.variants)
    return ImageDrawing(one.image.name, plain, grid, rows)


def _row(
    seen: Explained, dense: tuple[Label, ...], plain: Image.Image, grid: Grid, manifest: Manifest
) -> VariantDrawing:
    variant, depth, activation = seen.variant, manifest.model.architecture.depth, manifest.model.activation
    known = [reasons for reasons in seen.reasons if reasons is not None]
    keys = (
        ("like another one", SIMILAR_COLOUR, any(one.by_similarity for one in known)),
        ("among the least important", UNIMPORTANT_COLOUR, any(one.by_importance for one in known)),
    )
    best = [labels[0].index for labels in (dense, seen.labels) if labels]
    answers = (("baseline", dense), *([(variant.name, seen.labels)] if variant.plan.layers else []))
    return VariantDrawing(
        name=variant.name,
        heading=_heading(seen, manifest.dense.gmacs),
        panels=tuple(
            _panel(layer, why, plain, grid, depth) for layer, why in zip(seen.layers, seen.reasons, strict=True)
        ),
        answers=answers if seen.cosine is None else (),
        changed=seen.cosine is None and len(set(best)) > 1 and (seen.decision is None or seen.decision.answers),
        nearness=nearness_words(seen, activation),
        keys=tuple((text, colour) for text, colour, wanted in keys if wanted),
        merges=any(layer.plan.merges for layer in seen.layers),
        legend=legend(seen),
        doubt=seen.doubt,
        decision=seen.decision,
        maps=() if seen.maps is None else tuple(compared_tiles(*seen.maps, activation, plain.size)),
    )


def nearness_words(seen: Explained, activation: Activation) -> str | None:
    """How near vectors or maps are to the baseline's; None of a classifier."""
    if seen.figures is not None:
        return figures_in_words(seen.figures, activation)
    return None if seen.cosine is None else f"cosine to the baseline: {seen.cosine:.4f}"


def _heading(seen: Explained, dense: float) -> str:
    """
    Args:
        dense: GMACs of the baseline.
    """
    variant, decision = seen.variant, seen.decision
    name = ", ".join([variant.name, *([variant.schedule.method] if variant.plan.layers else [])])
    if decision is None:
        return f"{name}, {variant.gmacs:.3g} of {dense:.3g} GMACs"
    return f"{decision.stage}: {name}, {decision.gmacs:.3g} GMACs up to here, the baseline alone {dense:.3g}"


def _panel(layer: LayerPatches, why: LayerReasons | None, plain: Image.Image, grid: Grid, depth: int) -> LayerDrawing:
    plan, gone = layer.plan, None
    if why is not None:
        counts = ((len(why.by_similarity), "similarity"), (len(why.by_importance), "importance"))
        gone = "gone: " + (", ".join(f"{count} by {reason}" for count, reason in counts if count) or "none")
    return LayerDrawing(
        tile=layer_tile(plain, layer, grid, why),
        importance=importance_tile(plain.size, layer, grid, why) if why is not None and why.has_importance else None,
        caption=f"block {plan.block + 1} of {depth}: {plan.tokens_out} of {plan.tokens_in} tokens",
        gone=gone,
        pairs=() if why is None else why.pairs,
    )


def legend(seen: Explained) -> str:
    """The looks of patches, and where reasons are known what they look like; empty of the baseline."""
    if not seen.layers:
        return ""
    method = METHODS.get(seen.variant.schedule.method)
    merges = any(layer.plan.merges for layer in seen.layers)
    merging = FUSING if method is not None and method.fuses else MERGING
    reasons: Sequence[LayerReasons] = [one for one in seen.reasons if one is not None]
    if not reasons:
        return merging if merges else DROPPING
    parts = [merging if merges else "As it is: its token stays. Dark: gone at an earlier layer."]
    mark = " dot: merged" if merges else ": dropped"
    if any(one.by_similarity for one in reasons):
        parts.append(f"Blue{mark} at this layer, because it is like another one.")
    if any(one.by_importance for one in reasons):
        parts.append(f"Orange{mark} at this layer, as one of the least important.")
    if any(one.pairs for one in reasons):
        parts.append(f"Lines lead from the {DRAWN_PAIRS} most similar of them to what they are like.")
    if any(one.has_importance for one in reasons):
        parts.append(
            "Maps: importance by rank, from violet (least) to yellow (most); dark: not ranked; the white line runs "
            "around what stays."
        )
    return " ".join(parts)
