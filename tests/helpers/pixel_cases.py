"""Images and ways to pre-process them, for the C++ runner: what Python makes of each, on whatever machine that runs.

`python pixel_cases.py OUT` writes it to a file.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ztdeploy.core.preprocess_spec import ImageSize, PreprocessSpec
from ztdeploy.target.runtime.preprocess import normalise, resize_and_crop

FILTERS = ("nearest", "bilinear", "bicubic", "lanczos")
Case = tuple[PreprocessSpec, npt.NDArray[np.uint8]]


def pixel_cases() -> Iterator[Case]:
    """240 random images of all filters, shapes and numbers of channels."""
    random = np.random.default_rng(23)
    sides = [1, 2, 3, 7, 31, 32, 33, 64, 97, 128, 200, 257]
    for index in range(240):
        channels = int(random.choice([1, 3, 3, 3, 2, 5]))
        height, width, crop, resize = (int(side) for side in random.choice(sides, 4))
        square = bool(random.integers(2))
        spec = PreprocessSpec(
            image_size=ImageSize(crop, crop if square else int(random.choice(sides))),
            resize=ImageSize(resize, resize if square else int(random.choice(sides))),
            interpolation=FILTERS[index % 4],
            crop_mode="squash" if random.integers(3) == 0 else "center",
            crop_rounding="down" if random.integers(2) else "even",
            mean=tuple(0.485 - 0.03 * channel for channel in range(channels)),
            std=tuple(0.229 + 0.01 * channel for channel in range(channels)),
        )
        extreme = random.integers(2) * 255  # sums beyond 0 and 255 must be cut off
        pixels = random.integers(0, 256, (height, width, channels), np.uint8)
        yield spec, np.where(pixels > 127, 255, 0).astype(np.uint8) if extreme else pixels


def asked(spec: PreprocessSpec, image: npt.NDArray[np.uint8]) -> bytes:
    """A case as `ztdeploy-check preprocess` reads it."""
    height, width, channels = image.shape
    numbers = [FILTERS.index(spec.interpolation), spec.crop_mode == "squash", spec.crop_rounding == "down"]
    numbers += [*spec.image_size, *spec.resize, channels, height, width]
    return struct.pack(f"10i{2 * channels}d", *numbers, *spec.mean, *spec.std) + image.tobytes()


def answered(spec: PreprocessSpec, image: npt.NDArray[np.uint8]) -> bytes:
    """What it has to write: the pixels, and those normalised."""
    channels = image.shape[2]
    bands = [Image.fromarray(image[..., channel].copy()) for channel in range(channels)]
    whole: Any = bands[0] if channels == 1 else Image.fromarray(image) if channels == 3 else bands
    pixels = resize_and_crop(whole, spec)
    return pixels.tobytes() + normalise(pixels[None], spec).tobytes()


if __name__ == "__main__":
    Path(sys.argv[1]).write_bytes(b"".join(answered(*case) for case in pixel_cases()))
