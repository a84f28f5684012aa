"""From raw outputs to what a person wants to know."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ztdeploy.core.preprocess_spec import Activation
from ztdeploy.target.runtime.activation import probabilities


@dataclass(frozen=True)
class Label:
    """One output and how likely it is."""

    index: int
    name: str
    probability: float | None  #: by softmax or sigmoid; None where outputs are values
    value: float  #: what the head gave

    @property
    def plain(self) -> dict[str, Any]:
        """For JSON."""
        likely = None if self.probability is None else round(self.probability, 6)
        return {"index": self.index, "name": self.name, "probability": likely, "value": round(self.value, 6)}


def chance(probability: float | None, value: float | None, digits: int = 1) -> str:
    """Such as "97.3 %"; of a value such as "0.4127". What is not certain is never said to be."""
    if probability is None:
        return "-" if value is None else f"{value:.4g}"
    text = f"{100 * probability:.{digits}f}"
    return f">{100 - 10.0**-digits:.{digits}f} %" if float(text) >= 100 else f"{text} %"


@dataclass(frozen=True)
class Prediction:
    """What the model says about one image."""

    labels: tuple[Label, ...]  #: best first
    logits: NDArray[np.float32]  #: `[classes]`
    kept: tuple[NDArray[np.int32], ...]  #: per pruning layer, the kept patches as indices into the image's patch grid


def top_labels(
    logits: NDArray[Any],
    names: Sequence[str] | None,
    top: int,
    activation: Activation = "softmax",
    *,
    threshold: float | None = None,
) -> tuple[Label, ...]:
    """The `top` best outputs of one image, best first; equal ones in the order of their indices.

    Args:
        threshold: the least probability to be among them.
    """
    likely = probabilities(logits, activation)
    best = np.argsort(-(logits.astype(np.float64) if likely is None else likely), kind="stable")[:top]
    labels = (
        Label(
            int(i),
            names[i] if names is not None else f"class {i}",
            None if likely is None else float(likely[i]),
            float(logits[i]),
        )
        for i in best
    )
    return tuple(one for one in labels if threshold is None or one.probability is None or one.probability >= threshold)


def original_tokens(kept: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
    """Each layer's kept indices as indices into the tokens that entered the first layer.

    Args:
        kept: per layer `[B, k]`, indices into the tokens that entered that layer.
    """
    chained: list[NDArray[Any]] = []
    for indices in kept:
        chained.append(np.take_along_axis(chained[-1], indices, axis=1) if chained else indices)
    return chained


def kept_patches(kept: Sequence[NDArray[Any]], image: int, prefix_tokens: int) -> tuple[NDArray[np.int32], ...]:
    """The patches of one image that are left behind each layer, prefix tokens left out."""
    return tuple(tokens[image, prefix_tokens:].astype(np.int32) - prefix_tokens for tokens in original_tokens(kept))
