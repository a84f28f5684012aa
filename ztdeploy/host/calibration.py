"""What calibration images are, looked at before anything is built: what nobody could judge on is refused or said."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ztdeploy.core.errors import ImageError
from ztdeploy.core.manifest import CalibrationRecord
from ztdeploy.core.preprocess_spec import PreprocessSpec
from ztdeploy.target.evaluate.data import Decoded, EvalData, decode, limited

#: Images that are decoded, of every class as many: a second's work.
MOST = 256
#: With fewer, one image is more than five points of agreement.
FEW = 20


@dataclass(frozen=True)
class Seen:
    """Some of the images, and what there is to say of them."""

    paths: tuple[Path, ...]  #: of those that can be read
    pixels: NDArray[np.uint8]  #: `[n, H, W, C]` of the same
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
    plain = sum(_is_plain(one.pixels) for one in good)
    if plain == len(good):
        raise ImageError(
            f"{_each(plain)} of '{data.path}' is of one colour, which tells nothing of what pruning or precision costs",
            "images like those that the model will see",
            "check --calib",
        )
    cautions = _cautions(data.name, len({one.digest for one in good}), len(good), plain, wrong)
    record = CalibrationRecord(data=data.name, images=len(data.images), looked_at=len(images), cautions=cautions)
    paths = tuple(image.path for image, one in zip(chosen.images, images, strict=True) if isinstance(one, Decoded))
    return Seen(paths, np.stack([one.pixels for one in good]), record)


def _is_plain(pixels: NDArray[np.uint8]) -> bool:
    return bool((pixels == pixels[:1, :1]).all())


def _each(count: int) -> str:
    return "the only image" if count == 1 else f"each of {count} images"


def _cautions(name: str, distinct: int, good: int, plain: int, wrong: list[str]) -> tuple[str, ...]:
    found = []
    if distinct == 1:
        copies = "" if good == 1 else f", {good} times"
        found.append(
            f"'{name}' holds a single image{copies}: it passes every gate or none, by chance, and other images may get "
            "other answers; give some hundred"
        )
    elif distinct < FEW:
        found.append(f"'{name}' holds {distinct} different images: each is {100 / good:.1f} points; give some hundred")
    if plain:
        found.append(
            f"{plain} of {good} images of '{name}' are of one colour: engines agree on them whatever pruning or "
            "precision costs; remove them"
        )
    if wrong:
        found.append(
            f"{len(wrong)} of {good + len(wrong)} images of '{name}' cannot be read and do not count ({wrong[0]})"
        )
    return tuple(found)
