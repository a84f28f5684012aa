"""The images that ranges of int8 activations come from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ztdeploy.core.bundle import sha256_of
from ztdeploy.core.preprocess_spec import PreprocessSpec
from ztdeploy.host.graph import GraphSpec
from ztdeploy.target.runtime.preprocess import load_pixels, normalise

#: More move ranges little; they are spread evenly over those that were given.
MOST_IMAGES, BATCH = 64, 8


@dataclass(frozen=True)
class CalibrationImages:
    """Some images, and whose they are."""

    paths: tuple[Path, ...]
    origin: str  #: in words, such as "64 images of 'photos'"
    given: bool  #: by the user, not the ones that ship with ztdeploy

    @property
    def digest(self) -> str:
        """The sha256 of what the images hold, in their order."""
        return hashlib.sha256("".join(map(sha256_of, self.paths)).encode()).hexdigest()

    def batches(self, spec: GraphSpec, preprocess: PreprocessSpec) -> Iterator[NDArray[np.generic]]:
        """As a graph of that spec takes them; no more than one batch is decoded at a time."""
        size = spec.batch or BATCH
        for start in range(0, len(self.paths), size):
            pixels = load_pixels(self.paths[start : start + size], preprocess)
            if spec.batch is not None:  # copies fill the last one up, and change no range
                pixels = np.concatenate([pixels, np.repeat(pixels[-1:], spec.batch - len(pixels), axis=0)])
            yield pixels if spec.image_input == "uint8" else normalise(pixels, preprocess)


def chosen_images(paths: Sequence[Path], name: str) -> CalibrationImages:
    """At most `MOST_IMAGES` of a user's images."""
    step = -(-len(paths) // MOST_IMAGES)
    chosen = tuple(paths[::step])
    return CalibrationImages(chosen, f"{len(chosen)} images of '{name}'", given=True)


def built_in_images(paths: Sequence[Path]) -> CalibrationImages:
    return CalibrationImages(tuple(paths), f"{len(paths)} built-in images", given=False)
