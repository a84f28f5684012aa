"""From raw outputs to what a person wants to know."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Label:
    """One class and its softmax probability."""

    index: int
    name: str
    probability: float


@dataclass(frozen=True)
class Prediction:
    """What the model says about one image."""

    labels: tuple[Label, ...]  #: best first
    logits: NDArray[np.float32]  #: `[classes]`
    kept: tuple[NDArray[np.int32], ...]  #: per pruning layer, the kept patches as indices into the image's patch grid


def softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Over the last axis, in double precision."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    result: NDArray[np.float64] = shifted / shifted.sum(-1, keepdims=True)
    return result


def top_labels(logits: NDArray[Any], names: Sequence[str] | None, top: int) -> tuple[Label, ...]:
    """The `top` best classes of one image, best first; equal ones in the order of their indices."""
    probabilities = softmax(logits)
    best = np.argsort(-probabilities, kind="stable")[:top]
    return tuple(Label(int(i), names[i] if names is not None else f"class {i}", float(probabilities[i])) for i in best)


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
