"""How near a variant's map of an image is to the baseline's. Pure.

A map `[C, h, w]` is what a dense model gives for one image; its activation says what it means (see
`runtime.postprocess`): `softmax` a class per position, `sigmoid` a yes or no per position and channel, `none` values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ztdeploy.core.preprocess_spec import Activation
from ztdeploy.core.records import Record
from ztdeploy.target.evaluate.eval_report import MapFigures
from ztdeploy.target.runtime.postprocess import cosines, probabilities

THRESHOLD = 0.5  #: a probability above it is a yes
#: Positions of a channel that a rank correlation looks at: more of them change its third decimal at most.
_RANKED = 4096


class MapFacts(Record):
    """What is in a map."""

    low: float | None = None  #: of all probabilities or values; of classes None
    mean: float | None = None
    high: float | None = None
    above: float | None = None  #: share of the probabilities of a yes that are above the threshold
    classes: dict[str, float] | None = None  #: share of the positions, the most frequent first


@dataclass(frozen=True)
class FigureWords:
    """What people read of a figure."""

    head: str
    text: str


def figure_words(activation: Activation, threshold: float | None = None) -> dict[str, FigureWords]:
    """The figures that maps may have, by field of `MapFigures`, in the order in which they are shown."""
    of_yes = f"intersection over union of what is above {THRESHOLD if threshold is None else threshold:g}"
    of_classes = "intersection over union, mean over the classes that the baseline gives"
    of_values = "mean absolute error, as a share of the range of the baseline's values on the image"
    return {
        "iou": FigureWords("mean IoU", of_classes if activation == "softmax" else of_yes),
        "error": FigureWords(
            "mean error", of_values if activation == "none" else "mean absolute error of probabilities"
        ),
        "same": FigureWords("same class", "share of positions with the baseline's class"),
        "rank": FigureWords("rank correlation", "Spearman's, of values"),
        "cosine": FigureWords("cosine", "of the channels of a position, mean over positions"),
    }


def figures_in_words(figures: MapFigures, activation: Activation) -> str:
    """Such as "IoU 0.9712, error 0.0104"."""
    known = [(one.head.removeprefix("mean "), getattr(figures, name)) for name, one in figure_words(activation).items()]
    return ", ".join(f"{head} {value:.4f}" for head, value in known if value is not None)


def map_facts(
    given: NDArray[Any],
    activation: Activation,
    *,
    names: Sequence[str] | None = None,
    top: int = 5,
    threshold: float = THRESHOLD,
) -> MapFacts:
    """What is in a map `[C, h, w]`, in a few numbers."""
    if activation == "softmax":
        counts = np.bincount(given.argmax(0).ravel(), minlength=len(given))
        best = [index for index in np.argsort(-counts, kind="stable")[:top].tolist() if counts[index]]
        shares = {names[one] if names else f"class {one}": float(counts[one] / counts.sum()) for one in best}
        return MapFacts(classes=shares)
    values = map_values(given, activation)
    return MapFacts(
        low=float(values.min()),
        mean=float(values.mean()),
        high=float(values.max()),
        above=float((values > threshold).mean()) if activation == "sigmoid" else None,
    )


def compare_maps(
    dense: NDArray[Any], variant: NDArray[Any], activation: Activation, threshold: float = THRESHOLD
) -> MapFigures:
    """The figures of one image; None where the maps have no such figure.

    Args:
        dense, variant: `[C, h, w]`, finite, as the engines gave them.
        threshold: of probabilities, where the activation is sigmoid.
    """
    ours, theirs = (map_values(one, activation) for one in (dense, variant))
    classes = (ours.argmax(0), theirs.argmax(0)) if activation == "softmax" else None
    iou = None
    if classes:
        iou = class_iou(*classes)
    elif activation == "sigmoid":
        iou = yes_iou(ours > threshold, theirs > threshold)
    values, vectors = activation == "none", [np.moveaxis(one, 0, -1) for one in (dense, variant)]
    return MapFigures(
        error=float((np.abs(ours - theirs).mean((1, 2)) / (value_range(ours) if values else 1.0)).mean()),
        iou=iou,
        same=float((classes[0] == classes[1]).mean()) if classes else None,
        rank=rank_correlation(ours, theirs) if values else None,
        cosine=float(cosines(*vectors).mean()) if len(dense) > 1 else None,
    )


def map_values(given: NDArray[Any], activation: Activation) -> NDArray[np.float64]:
    """Probabilities, or values as they are: `[C, h, w]`."""
    likely = probabilities(np.moveaxis(given, 0, -1), activation)
    return given.astype(np.float64) if likely is None else np.moveaxis(likely, -1, 0)


def value_range(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """What an error of each channel is divided by: its highest less its lowest value; where all are the same, their
    magnitude, or 1 where they are 0. `[C, h, w]` gives `[C]`.
    """
    spread, size = np.ptp(values, (1, 2)), np.abs(values).max((1, 2))
    return np.where(spread > 0, spread, np.where(size > 0, size, 1.0))


def yes_iou(dense: NDArray[np.bool_], variant: NDArray[np.bool_]) -> float:
    """Positions where both say yes over those where either does, mean over the channels that have any; 1 without.

    Args:
        dense, variant: `[C, h, w]`.
    """
    both, either = (dense & variant).sum((1, 2)), (dense | variant).sum((1, 2))
    return float((both[either > 0] / either[either > 0]).mean()) if either.any() else 1.0


def class_iou(dense: NDArray[np.int64], variant: NDArray[np.int64]) -> float:
    """The mean over the classes that the baseline gives: positions of this class in both maps over those in either.

    Args:
        dense, variant: classes of positions, `[h, w]`.
    """
    count = int(max(dense.max(), variant.max())) + 1
    ours, theirs, both = (
        np.bincount(one.ravel(), minlength=count) for one in (dense, variant, dense[dense == variant])
    )
    given = ours > 0
    return float((both[given] / (ours + theirs - both)[given]).mean())


def rank_correlation(dense: NDArray[np.float64], variant: NDArray[np.float64]) -> float:
    """Spearman's, mean over the channels of `[C, h, w]`, at some thousand positions with a fixed stride."""
    stride = -(-dense[0].size // _RANKED)
    pairs = zip(*(one.reshape(len(one), -1)[:, ::stride] for one in (dense, variant)), strict=True)
    return float(np.mean([_spearman(*pair) for pair in pairs]))


def _spearman(dense: NDArray[np.float64], variant: NDArray[np.float64]) -> float:
    """Of two rows of values; where one is constant, 1 if both are, else 0."""
    ours, theirs = (ranks(one) - (len(one) - 1) / 2 for one in (dense, variant))
    sizes = float(ours @ ours), float(theirs @ theirs)
    if not all(sizes):
        return float(sizes[0] == sizes[1])
    return float(np.clip(ours @ theirs / np.sqrt(sizes[0] * sizes[1]), -1, 1))


def ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The rank of each value `[n]`, from 0; equal ones share the mean of theirs."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts + 1) / 2)[place.ravel()]
