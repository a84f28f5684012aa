"""What the numbers that a head gives mean, and how far two answers then are from each other.

- `softmax`: one class of several. The answer is the likeliest class; divergence is KL over the classes.
- `sigmoid`: each output is a yes or no of its own. The answer is the set of outputs that are likelier than not;
  divergence is the mean over outputs of the KL between two such chances.
- `none`: values as they are, of a regression. There are no probabilities, and nothing to compare by.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ztdeploy.core.preprocess_spec import Activation


def log_softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Logarithms of the softmax over the last axis, in fp64; finite for all finite logits."""
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result


def log_sigmoid(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Of each number, in fp64; finite for all finite ones."""
    return np.asarray(-np.logaddexp(0.0, -logits.astype(np.float64)))


def probabilities(logits: NDArray[Any], activation: Activation) -> NDArray[np.float64] | None:
    """Of each output, `[..., outputs]`; None where there are none."""
    if activation == "none":
        return None
    return np.exp(log_softmax(logits) if activation == "softmax" else log_sigmoid(logits))


def divergences(dense: NDArray[Any], variant: NDArray[Any], activation: Activation = "softmax") -> NDArray[np.float64]:
    """KL(dense || variant) of each image in nats, at least 0: `[n]`; of `sigmoid` the mean over outputs.

    Args:
        dense, variant: logits `[n, outputs]`.
    """
    if activation == "sigmoid":
        yes, no = ((log_sigmoid(sign * dense), log_sigmoid(sign * variant)) for sign in (1, -1))
        chances = (np.exp(log_p) * (log_p - log_q) for log_p, log_q in (yes, no))
        result: NDArray[np.float64] = np.add(*chances).mean(-1)
    else:
        log_p, log_q = log_softmax(dense), log_softmax(variant)
        result = (np.exp(log_p) * (log_p - log_q)).sum(-1)
    return np.maximum(result, 0.0)  # rounding makes some of them slightly negative


def same_answers(dense: NDArray[Any], variant: NDArray[Any], activation: Activation = "softmax") -> NDArray[np.bool_]:
    """Whether each image gets the same answer from both, logits `[n, outputs]`: `[n]`."""
    if activation == "sigmoid":
        return np.asarray(((dense > 0) == (variant > 0)).all(-1))
    return np.asarray(dense.argmax(-1) == variant.argmax(-1))
