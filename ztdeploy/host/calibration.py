"""Calibration images: a check before anything is built, and the choice of images for int8 ranges."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ztdeploy.core.bundle import sha256_of
from ztdeploy.core.errors import ImageError
from ztdeploy.core.manifest import CalibrationRecord
from ztdeploy.core.preprocess_spec import PreprocessSpec
from ztdeploy.host.graph import GraphSpec
from ztdeploy.target.evaluate.data import Decoded, EvalData, decode, limited
from ztdeploy.target.runtime.preprocess import load_pixels, normalise

#: Images that are decoded, equally many of every class; this takes about a second.
MOST = 256
#: With fewer, one image is more than five points of agreement.
FEW = 20
#: More images hardly change ranges; these are spread evenly over the given ones.
MOST_IMAGES, BATCH = 64, 8


@dataclass(frozen=True)
class Seen:
    """Some of the images, and warnings about them."""

    paths: tuple[Path, ...]  #: of the readable ones
    pixels: NDArray[np.uint8]  #: `[n, H, W, C]`, of the same images
    record: CalibrationRecord


def look_at(data: EvalData, spec: PreprocessSpec) -> Seen:
    """Decode at most `MOST` images.

    Raises:
        ImageError: none of these can be read, or each is of one colour.
    """
    chosen = limited(data, MOST)
    images = [decode(image.path, spec) for image in chosen.images]
    good, wrong = [one for one in images if isinstance(one, Decoded)], [one for one in images if isinstance(one, str)]
    if not good:
        raise ImageError(
            f"none of {len(wrong)} images of '{data.path}' can be read ({wrong[0]})", "images", "check --calib"
        )
    plain = sum(bool((one.pixels == one.pixels[:1, :1]).all()) for one in good)
    if plain == len(good):
        every = "the only image" if plain == 1 else f"each of {plain} images"
        raise ImageError(
            f"{every} of '{data.path}' is of one colour, which tells nothing of what pruning or precision costs",
            "images like those that the model will see",
            "check --calib",
        )
    cautions = _cautions(data.name, len({one.digest for one in good}), len(good), plain, wrong)
    record = CalibrationRecord(data=data.name, images=len(data.images), looked_at=len(images), cautions=cautions)
    paths = tuple(image.path for image, one in zip(chosen.images, images, strict=True) if isinstance(one, Decoded))
    return Seen(paths, np.stack([one.pixels for one in good]), record)


def _cautions(name: str, distinct: int, good: int, plain: int, wrong: list[str]) -> tuple[str, ...]:
    copies = "" if good == 1 else f", {good} times"
    single = (
        f"'{name}' holds a single image{copies}: it passes every gate or none, by chance, and other images may get "
        "other answers; give some hundred"
    )
    few = f"'{name}' holds {distinct} different images: each is {100 / good:.1f} points; give some hundred"
    of_one_colour = (
        f"{plain} of {good} images of '{name}' are of one colour: engines agree on them whatever pruning or "
        "precision costs; remove them"
    )
    unread = f"{len(wrong)} of {good + len(wrong)} images of '{name}' cannot be read and do not count"
    found = [single if distinct == 1 else few] if distinct < FEW else []
    found += [of_one_colour] if plain else []
    return (*found, *([f"{unread} ({wrong[0]})"] if wrong else []))


@dataclass(frozen=True)
class CalibrationImages:
    """Chosen images, and where they come from."""

    paths: tuple[Path, ...]
    origin: str  #: in words, such as "64 images of 'photos'"
    given: bool  #: by the user; otherwise they are the images that ship with ztdeploy

    @property
    def digest(self) -> str:
        """The sha256 of the images' contents, in their order."""
        return hashlib.sha256("".join(map(sha256_of, self.paths)).encode()).hexdigest()

    def batches(self, spec: GraphSpec, preprocess: PreprocessSpec) -> Iterator[NDArray[np.generic]]:
        """Inputs for a graph of that spec; at most one batch is decoded at a time."""
        size = spec.batch or BATCH
        for start in range(0, len(self.paths), size):
            pixels = load_pixels(self.paths[start : start + size], preprocess)
            if spec.batch is not None:  # copies fill up the last batch, which changes no range
                pixels = np.concatenate([pixels, np.repeat(pixels[-1:], spec.batch - len(pixels), axis=0)])
            yield pixels if spec.image_input == "uint8" else normalise(pixels, preprocess)


def chosen_images(paths: Sequence[Path], name: str) -> CalibrationImages:
    """At most `MOST_IMAGES` of a user's images."""
    step = -(-len(paths) // MOST_IMAGES)
    chosen = tuple(paths[::step])
    return CalibrationImages(chosen, f"{len(chosen)} images of '{name}'", given=True)


def built_in_images(paths: Sequence[Path]) -> CalibrationImages:
    return CalibrationImages(tuple(paths), f"{len(paths)} built-in images", given=False)
