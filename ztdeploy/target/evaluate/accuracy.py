"""How often an engine is right, and how often it agrees with the dense engine, on the same images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ztdeploy.target.evaluate.labels import LabelledImage
from ztdeploy.target.runtime.activation import divergences
from ztdeploy.target.runtime.inputs import load_pixels
from ztdeploy.target.runtime.runner import BundleRunner

_CHUNK = 32


@dataclass(frozen=True)
class Accuracy:
    """One variant on one set of images."""

    images: int
    correct: int
    agreement: float  #: share of images with the dense engine's top class
    kl: float  #: mean KL divergence of its output from the dense engine's, in nats

    @property
    def top1(self) -> float:
        return self.correct / self.images


def all_pixels(runner: BundleRunner, images: Sequence[LabelledImage]) -> NDArray[np.uint8]:
    """Decode, resize and crop once for all variants: uint8 `[n, H, W, C]`."""
    return load_pixels([image.path for image in images], runner.bundle.manifest.preprocess)


def all_logits(runner: BundleRunner, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """`[n, classes]` of the runner's current variant."""
    return np.concatenate([runner.infer(pixels[i : i + _CHUNK]).logits for i in range(0, len(pixels), _CHUNK)])


def accuracy(logits: NDArray[Any], dense: NDArray[Any], images: Sequence[LabelledImage]) -> Accuracy:
    """Score logits `[n, classes]` against labels, and against the dense engine's logits."""
    best = logits.argmax(-1)
    return Accuracy(
        images=len(images),
        correct=sum(int(index) in image.accepted for index, image in zip(best, images, strict=True)),
        agreement=float((best == dense.argmax(-1)).mean()),
        kl=float(divergences(dense, logits).mean()),
    )
