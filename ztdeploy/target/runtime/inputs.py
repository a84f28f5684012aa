"""From whatever a caller has (paths, PIL images, arrays) to the pixels that an engine takes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ztdeploy.core.preprocess_spec import PreprocessSpec
from ztdeploy.target.runtime.images import read_bands
from ztdeploy.target.runtime.preprocess import resize_and_crop

ImageSource: TypeAlias = str | Path | Image.Image | NDArray[Any]


def load_pixels(sources: Sequence[ImageSource], spec: PreprocessSpec) -> NDArray[np.uint8]:
    """Read, resize and crop, one image in memory at a time: uint8 `[n, H, W, C]`.

    Raises:
        ImageError: an image cannot be read, or is too large.
    """
    pixels = np.empty((len(sources), *spec.shape), np.uint8)
    for index, source in enumerate(sources):
        pixels[index] = resize_and_crop(read_bands(source, spec), spec)
    return pixels
