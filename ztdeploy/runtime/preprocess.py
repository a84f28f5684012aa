"""Resize, centre crop, normalise: bit for bit what timm's evaluation transform does, without torch.

Pillow's resampling filters are part of the model's contract: with another library's the accuracy drifts by a point.
The arithmetic of sizes is torchvision's (`_compute_resized_output_size`, `center_crop`), truncation and rounding
included.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ztdeploy.errors import ImageError
from ztdeploy.preprocess_spec import PreprocessSpec
from ztdeploy.runtime.images import MAX_PIXELS

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def resize_and_crop(image: Image.Image, spec: PreprocessSpec) -> NDArray[np.uint8]:
    """The square that the model sees, as uint8 `[S, S, 3]`, S being `spec.image_size`.

    Crop mode `center` resizes the shorter side to `spec.resize` and keeps the aspect ratio; `squash` resizes both
    sides to it. The centre is then cropped, and padded with black where the resized image is smaller than the crop.

    Args:
        image: mode RGB, upright, as `read_image` returns it.

    Raises:
        ImageError: another mode, or an aspect ratio so extreme that resizing would need more than `MAX_PIXELS`.
    """
    if image.mode != "RGB":
        raise ImageError(f"an image of mode {image.mode}", "mode RGB", "pass it through read_image first")
    size = _resized_size(*image.size, spec)
    _check_resize(image.size, size)
    return _center_crop(image.resize(size, _FILTERS[spec.interpolation]), spec.image_size)


def normalise(pixels: NDArray[np.uint8], spec: PreprocessSpec) -> NDArray[np.float32]:
    """(pixels / 255 - mean) / std, as float32 `[B, 3, S, S]`, contiguous.

    Each of the three operations is rounded to fp32 in this order, as in torchvision's ToTensor and Normalize; folding
    them into one multiplication and addition would change the last bits.

    Args:
        pixels: uint8 `[B, S, S, 3]`, S being `spec.image_size`.

    Raises:
        ImageError: another dtype or shape.
    """
    _check_pixels(pixels, spec.image_size)
    result = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)).astype(np.float32)
    result /= np.float32(255)
    result -= _per_channel(spec.mean)
    result /= _per_channel(spec.std)
    return result


def _per_channel(values: tuple[float, float, float]) -> NDArray[np.float32]:
    return np.asarray(values, np.float32).reshape(1, 3, 1, 1)


def _check_pixels(pixels: NDArray[Any], side: int) -> None:
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1:] != (side, side, 3):
        raise ImageError(
            f"pixels of dtype {pixels.dtype} and shape {list(pixels.shape)}",
            f"uint8 of shape [B, {side}, {side}, 3]",
            "prepare the images with ztdeploy.runtime.inputs.load_pixels",
        )


def _resized_size(width: int, height: int, spec: PreprocessSpec) -> tuple[int, int]:
    """Width and height after resizing."""
    if spec.crop_mode == "squash":
        return spec.resize, spec.resize
    # Float division and truncation, in this order: another one is a pixel off for some sizes.
    long = int(spec.resize * max(width, height) / min(width, height))
    return (spec.resize, long) if width <= height else (long, spec.resize)


def _check_resize(old: tuple[int, int], new: tuple[int, int]) -> None:
    """Bounds the memory that resizing takes.

    Pillow resizes one axis at a time, so the intermediate image has one new and one old side, and its table of filter
    weights grows with the old sides: the box around both sizes bounds all of them.
    """
    if max(old[0], new[0]) * max(old[1], new[1]) > MAX_PIXELS:
        raise ImageError(
            f"an image of {old[0]} x {old[1]} pixels would be resized to {new[0]} x {new[1]}",
            f"at most {MAX_PIXELS:,} pixels on the way",
            "crop it to a less extreme aspect ratio first",
        )


def _center_crop(image: Image.Image, side: int) -> NDArray[np.uint8]:
    left, top = _crop_start(image.width, side), _crop_start(image.height, side)
    # Where the box reaches beyond the image, Pillow's crop fills with zeros: black, as torchvision pads.
    return np.array(image.crop((left, top, left + side, top + side)), np.uint8)


def _crop_start(length: int, side: int) -> int:
    """Where the crop starts along one axis; negative where the image has to be padded.

    `round` takes halves to the even neighbour, as in torchvision, whereas the padding is rounded down on this side.
    """
    return round((length - side) / 2) if length >= side else -((side - length) // 2)
