"""From raw outputs to what a person wants to know, and how far two outputs are from each other.

What the numbers that a head gives mean is its activation:

- `softmax`: one class of several. The answer is the likeliest class; divergence is KL over the classes.
- `sigmoid`: each output is a yes or no of its own. The answer is the set of outputs that are likelier than not;
  divergence is the mean over outputs of the KL between two such chances.
- `none`: values as they are, of a regression. There are no probabilities, and nothing to compare by.

Models without a head give vectors, which are compared by their cosine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ztdeploy.core.errors import InputError
from ztdeploy.core.preprocess_spec import NOUNS, Activation, Output

#: How many labels of an image a prompt shows.
_SHOWN = 3


@dataclass(frozen=True)
class Label:
    """One output and how likely it is."""

    index: int
    name: str
    probability: float | None  #: by softmax or sigmoid; None where outputs are values
    value: float  #: what the head gave

    @property
    def plain(self) -> dict[str, Any]:
        """What JSON says of it."""
        likely = None if self.probability is None else round(self.probability, 6)
        return {"index": self.index, "name": self.name, "probability": likely, "value": round(self.value, 6)}

    def words(self, digits: int = 1) -> str:
        """Such as "cat (97.3 %)"."""
        return f"{self.name} ({chance(self.probability, self.value, digits)})"


@dataclass(frozen=True, eq=False)
class Prediction:
    """What the model says about one image."""

    labels: tuple[Label, ...]  #: best first; empty where the model has no classifier
    #: The model's output: `[classes]`; of embeddings `[D]`, of features `[P, D]`, of maps `[C, h, w]`.
    logits: NDArray[np.float32]
    kept: tuple[NDArray[np.int32], ...]  #: per pruning layer, the kept patches as indices into the image's patch grid
    image: str | None = None  #: the path of the image; None where it was no file
    gives: Output = "logits"  #: what the model gives
    stage: int | None = None  #: of a cascade, the stage that answered, counted from 0; None: there is no cascade

    @property
    def label(self) -> str | None:
        """The name of the likeliest class; None without a classifier, or where no class reaches the threshold."""
        return self.labels[0].name if self.labels else None

    @property
    def probability(self) -> float | None:
        """How likely `label` is, from 0 to 1; None without a label, or where outputs are values."""
        return self.labels[0].probability if self.labels else None

    @property
    def embedding(self) -> NDArray[np.float32]:
        """The image's embedding, fp32 `[D]`.

        Raises:
            InputError: the model gives something else.
        """
        return self._given_as("embedding", "a model without a head", "read '.logits', or build with output='embedding'")

    @property
    def map(self) -> NDArray[np.float32]:
        """What a dense model gives for each position of the image, fp32 `[C, h, w]`, ahead of the activation.

        Raises:
            InputError: the model gives something else.
        """
        return self._given_as("maps", "a dense model, such as one for depth or segmentation", "read '.logits'")

    def _given_as(self, output: Output, expected: str, fix: str) -> NDArray[np.float32]:
        if self.gives != output:
            raise InputError(f"the {output} of a model that gives {NOUNS[self.gives]}", expected, fix)
        return self.logits

    def __repr__(self) -> str:
        image = "" if self.image is None else f"{self.image!r}, "
        if self.gives == "logits":
            more = ", ..." if len(self.labels) > _SHOWN else ""
            return f"Prediction({image}{', '.join(one.words() for one in self.labels[:_SHOWN]) or 'no label'}{more})"
        return f"Prediction({image}{self.gives} {list(self.logits.shape)})"

    @property
    def norm(self) -> float:
        """The L2 norm of a vector; of features the mean over positions."""
        return float(np.linalg.norm(self.logits.astype(np.float64), axis=-1).mean())


def chance(probability: float | None, value: float | None, digits: int = 1) -> str:
    """Such as "97.3 %"; of a value such as "0.4127". What is not certain is never said to be."""
    if probability is None:
        return "-" if value is None else f"{value:.4g}"
    text = f"{100 * probability:.{digits}f}"
    return f">{100 - 10.0**-digits:.{digits}f} %" if float(text) >= 100 else f"{text} %"


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
            index,
            names[index] if names is not None else f"class {index}",
            None if likely is None else float(likely[index]),
            float(logits[index]),
        )
        for index in best.tolist()
    )
    return tuple(one for one in labels if threshold is None or one.probability is None or one.probability >= threshold)


def original_tokens(kept: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
    """Each layer's kept indices as indices into the tokens that entered the first layer.

    Args:
        kept: per layer `[B, k]`, indices into the tokens that entered that layer; a broken engine's may lie outside.
    """
    chained = list[NDArray[Any]](kept[:1])
    for indices in kept[1:]:
        before = chained[-1]
        chained.append(np.take_along_axis(before, np.clip(indices, 0, before.shape[1] - 1), axis=1))
    return chained


def kept_patches(kept: Sequence[NDArray[Any]], image: int, prefix_tokens: int) -> tuple[NDArray[np.int32], ...]:
    """The patches of one image that are left behind each layer, prefix tokens left out."""
    return tuple(tokens[image, prefix_tokens:].astype(np.int32) - prefix_tokens for tokens in original_tokens(kept))


def log_softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Logarithms of the softmax over the last axis, in fp64; finite for all finite logits."""
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))


def log_sigmoid(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Logarithms of the sigmoid of each number, in fp64; finite for all finite logits."""
    return np.asarray(-np.logaddexp(0.0, -logits.astype(np.float64)))


def probabilities(logits: NDArray[Any], activation: Activation) -> NDArray[np.float64] | None:
    """The probability of each output, `[..., outputs]`; None where outputs are values."""
    if activation == "none":
        return None
    return np.exp(log_softmax(logits) if activation == "softmax" else log_sigmoid(logits))


def divergences(dense: NDArray[Any], variant: NDArray[Any], activation: Activation = "softmax") -> NDArray[np.float64]:
    """KL(dense || variant) of each image in nats, at least 0: `[n]`; of `sigmoid` the mean over outputs.

    Args:
        dense, variant: logits `[n, outputs]`.
    """

    def terms(log_p: NDArray[np.float64], log_q: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(np.exp(log_p) * (log_p - log_q))

    if activation == "sigmoid":
        yes, no = (terms(log_sigmoid(sign * dense), log_sigmoid(sign * variant)) for sign in (1, -1))
        result = (yes + no).mean(-1)
    else:
        result = terms(log_softmax(dense), log_softmax(variant)).sum(-1)
    return np.asarray(np.maximum(result, 0.0))  # rounding makes some of them slightly negative


def same_answers(dense: NDArray[Any], variant: NDArray[Any], activation: Activation = "softmax") -> NDArray[np.bool_]:
    """Whether each image gets the same answer from both, logits `[n, outputs]`: `[n]`."""
    if activation == "sigmoid":
        return np.asarray(((dense > 0) == (variant > 0)).all(-1))
    return np.asarray(dense.argmax(-1) == variant.argmax(-1))


def margins(logits: NDArray[Any], activation: Activation = "softmax") -> NDArray[np.float64]:
    """How sure a model is of its classes, the signal "margin" of `core.cascade`: `[n, outputs]` gives `[n]`, 0 to 1."""
    values = logits.astype(np.float64)
    if activation == "sigmoid" or values.shape[-1] < 2:
        return np.asarray(np.abs(np.tanh(values / 2) / 2).min(-1))
    shares = np.exp(values - values.max(-1, keepdims=True))
    best = np.sort(shares / shares.sum(-1, keepdims=True), axis=-1)
    return np.asarray(best[:, -1] - best[:, -2])


def cosines(dense: NDArray[Any], variant: NDArray[Any]) -> NDArray[np.float64]:
    """Cosines of vectors along the last axis, in fp64, from -1 to 1: `[..., D]` and `[..., D]` give `[...]`.

    A vector of zeros has no direction: it is like another one of zeros (1), and like nothing else (0).
    """
    a, b = unit_vectors(dense.astype(np.float64)), unit_vectors(variant.astype(np.float64))
    both_zero = (a == 0).all(-1) & (b == 0).all(-1)
    return np.asarray(np.where(both_zero, 1.0, np.clip((a * b).sum(-1), -1.0, 1.0)))


def unit_vectors(vectors: NDArray[Any]) -> NDArray[Any]:
    """Vectors scaled to a length of 1; zeros stay zeros. Finite also where squares would overflow."""
    largest = np.abs(vectors).max(-1, keepdims=True, initial=0)
    scaled = vectors / np.where(largest == 0, 1, largest)
    length = np.sqrt((scaled * scaled).sum(-1, keepdims=True))
    return np.asarray(scaled / np.where(length == 0, 1, length))
