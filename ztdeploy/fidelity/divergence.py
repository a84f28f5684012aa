"""How far one classifier's answer is from another's."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def log_softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Logarithms of the softmax over the last axis, in fp64; finite for all finite logits."""
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result


def kl_divergences(dense: NDArray[Any], variant: NDArray[Any]) -> NDArray[np.float64]:
    """KL(dense || variant) of each image in nats: the sum over classes of p (log p - log q), p being dense's softmax.

    Args:
        dense, variant: logits `[n, classes]`.

    Returns:
        `[n]`, at least 0.
    """
    log_p, log_q = log_softmax(dense), log_softmax(variant)
    divergences: NDArray[np.float64] = (np.exp(log_p) * (log_p - log_q)).sum(-1)
    return np.maximum(divergences, 0.0)  # rounding makes some of them slightly negative
