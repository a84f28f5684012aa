"""From what engines give for a few images to what is kept of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ztdeploy.core.manifest import VariantRecord
from ztdeploy.core.methods import METHODS
from ztdeploy.core.preprocess_spec import Activation
from ztdeploy.target.evaluate.answers import BEST, ClassAnswers, VectorAnswers
from ztdeploy.target.evaluate.patches import follow
from ztdeploy.target.runtime.activation import divergences, probabilities, same_answers
from ztdeploy.target.runtime.cosine import cosines, unit_vectors
from ztdeploy.target.runtime.interface import Outputs


def class_answers(
    outputs: Sequence[Outputs], content: NDArray[np.uint8], activation: Activation = "softmax"
) -> ClassAnswers:
    """
    Args:
        outputs: of each variant to the same n images, dense first; logits `[n, classes]`.
        content: `[n, 32]`.
    """
    logits = [one.logits for one in outputs]
    return ClassAnswers(
        # Of equal logits the first class is the best, as in argmax.
        best=np.stack([np.argsort(-own, axis=-1, kind="stable")[:, :BEST] for own in logits]).astype(np.int32),
        probability=np.stack([_likeliest(own, activation) for own in logits]).astype(np.float32),
        same=np.stack([same_answers(logits[0], own, activation) for own in logits]),
        kl=np.stack([np.zeros(len(logits[0])), *(divergences(logits[0], own, activation) for own in logits[1:])]),
        content=content,
        problem=np.full(len(content), "", np.str_),
    )


def _likeliest(logits: NDArray[np.float32], activation: Activation) -> NDArray[np.float64]:
    """The probability of each image's best output, `[n]`."""
    likely = probabilities(logits, activation)
    assert likely is not None, "nothing is evaluated that gives no probabilities"
    best: NDArray[np.float64] = likely.max(-1)
    return best


def vector_answers(
    outputs: Sequence[Outputs], variants: Sequence[VariantRecord], patches: int, content: NDArray[np.uint8]
) -> VectorAnswers:
    """
    Args:
        outputs: of each variant to the same n images, dense first; embeddings `[n, D]`, or features `[n, P, D]`.
        patches: P; of embeddings all is one position.
        content: `[n, 32]`.
    """
    features = outputs[0].logits.ndim == 3
    like = [cosines(outputs[0].logits, own.logits).reshape(len(content), -1) for own in outputs]
    like[0][:] = 1.0  # to itself
    vectors = [
        own.logits[..., :0].reshape(len(content), 0) if features else unit_vectors(own.logits) for own in outputs
    ]
    return VectorAnswers(
        cosine=np.stack(like).astype(np.float32),
        filled=np.stack([filled_places(own, variant, patches) for own, variant in zip(outputs, variants, strict=True)])
        if features
        else np.zeros((len(outputs), len(content), 1), np.bool_),
        vectors=np.stack(vectors).astype(np.float32),
        content=content,
        problem=np.full(len(content), "", np.str_),
    )


def filled_places(outputs: Outputs, variant: VariantRecord, patches: int) -> NDArray[np.bool_]:
    """`[n, patches]`: whether the token of each place went, so that its features are those of what stands for it.

    Raises:
        ParityError: the engine's choices cannot be right.
    """
    filled, layers = np.zeros((len(outputs.logits), patches), np.bool_), variant.plan.layers
    method = METHODS.get(variant.schedule.method)
    for image in range(len(filled) if layers else 0):
        kept, into = ([layer[image] for layer in found] for found in (outputs.kept, outputs.into))
        followed = follow(layers, kept, into, patches, fuses=method is not None and method.fuses)
        filled[image] = ~followed[-1].stays
    return filled
