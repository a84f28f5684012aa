"""An image file as the model sees it, or what is wrong with it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ztdeploy.core.bundle import sha256_of
from ztdeploy.core.errors import ImageError
from ztdeploy.core.preprocess_spec import PreprocessSpec
from ztdeploy.core.text import printable
from ztdeploy.target.runtime.images import read_bands
from ztdeploy.target.runtime.preprocess import resize_and_crop


@dataclass(frozen=True)
class Decoded:
    pixels: NDArray[np.uint8]  #: `[H, W, C]`
    digest: bytes  #: sha256 of the file


def decode(path: Path, spec: PreprocessSpec) -> Decoded | str:
    """The image, or what is wrong with it, in one line."""
    try:
        return Decoded(resize_and_crop(read_bands(path, spec), spec), bytes.fromhex(sha256_of(path)))
    except (ImageError, OSError) as error:
        return printable(str(error))
