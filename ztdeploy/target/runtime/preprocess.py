"""Resize, centre crop, normalise: bit for bit what timm's evaluation transform does, without torch.

Pillow's resampling filters are part of the model's contract: with another library's the accuracy drifts by a point.
The arithmetic of sizes is torchvision's (`_compute_resized_output_size`, `center_crop`), truncation and rounding
included.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ztdeploy.core.errors import ImageError
from ztdeploy.core.preprocess_spec import PreprocessSpec
from ztdeploy.target.runtime.images import MAX_PIXELS, ImageSource, read_bands


def load_pixels(sources: Sequence[ImageSource], spec: PreprocessSpec) -> NDArray[np.uint8]:
    """Read, resize and crop, one image in memory at a time: uint8 `[n, H, W, C]`.

    Raises:
        ImageError: an image cannot be read, or is too large.
    """
    pixels = np.empty((len(sources), *spec.shape), np.uint8)
    for index, source in enumerate(sources):
        pixels[index] = resize_and_crop(read_bands(source, spec), spec)
    return pixels


def resize_and_crop(image: Image.Image | Sequence[Image.Image], spec: PreprocessSpec) -> NDArray[np.uint8]:
    """What the model sees, as uint8 `[H, W, C]`, which is `spec.shape`.

    Crop mode `center` keeps the aspect ratio and scales the image until it just covers `spec.resize`; `squash` resizes
    both sides to it. The centre is then cropped, and padded with black where the resized image is smaller than the
    crop.

    Args:
        image: upright, as `read_image` returns it: mode RGB or L for three channels or one; for any other number one
            image of mode L per channel. Channels are resized one by one, so that none of them is taken for opacity.

    Raises:
        ImageError: other modes or channels, or an aspect ratio so extreme that resizing would need more than
            `MAX_PIXELS`.
    """
    bands = [image] if isinstance(image, Image.Image) else list(image)
    modes = [band.mode for band in bands]
    wanted = {1: ["L"], 3: ["RGB"]}.get(spec.channels, ["L"] * spec.channels)
    if modes != wanted:
        raise ImageError(
            f"an image of mode {'+'.join(modes)}", f"mode {'+'.join(wanted)}", "pass it through read_image first"
        )
    size = _resized_size(*bands[0].size, spec)
    _check_resize(bands[0].size, size)
    cropped = [_center_crop(band.resize(size, Image.Resampling[spec.interpolation.upper()]), spec) for band in bands]
    return cropped[0] if len(cropped) == 1 else np.concatenate(cropped, axis=-1)


def seen_box(width: int, height: int, spec: PreprocessSpec) -> tuple[float, float, float, float]:
    """What of an image the model sees: left, top, right and lower edge, in pixels of the upright image.

    Where the resized image is smaller than the crop, the box reaches beyond the image.
    """
    resized = _resized_size(width, height, spec)
    left, top = _crop_corner(resized, spec)
    x, y, size = width / resized[0], height / resized[1], spec.image_size
    return left * x, top * y, (left + size.width) * x, (top + size.height) * y


def normalise(pixels: NDArray[np.uint8], spec: PreprocessSpec) -> NDArray[np.float32]:
    """(pixels / 255 - mean) / std, as float32 `[B, C, H, W]`, contiguous.

    Each of the three operations is rounded to fp32 in this order, as in torchvision's ToTensor and Normalize; folding
    them into one multiplication and addition would change the last bits.

    Args:
        pixels: uint8 `[B, H, W, C]`, see `spec.shape`.

    Raises:
        ImageError: another dtype or shape.
    """
    check_pixels(pixels, spec)
    result = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)).astype(np.float32)
    result /= np.float32(255)
    result -= _per_channel(spec.mean)
    result /= _per_channel(spec.std)
    return result


def _per_channel(values: tuple[float, ...]) -> NDArray[np.float32]:
    return np.asarray(values, np.float32).reshape(1, -1, 1, 1)


def check_pixels(pixels: NDArray[Any], spec: PreprocessSpec, *, least: int = 0) -> None:
    """
    Raises:
        ImageError: not uint8 `[B, H, W, C]`, B at least `least`.
    """
    if not isinstance(pixels, np.ndarray):
        raise ImageError(f"pixels of type {type(pixels).__name__}", "a uint8 array", "pass images to the runner itself")
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1:] != spec.shape or len(pixels) < least:
        raise ImageError(
            f"pixels of type {pixels.dtype} and shape {list(pixels.shape)}",
            f"uint8 [B, {', '.join(map(str, spec.shape))}]{f', B at least {least}' if least else ''}",
            "pass images to the runner itself, or pre-process them with ztdeploy.target.runtime.preprocess.load_pixels",
        )


def _resized_size(width: int, height: int, spec: PreprocessSpec) -> tuple[int, int]:
    """Width and height after resizing."""
    target_height, target_width = spec.resize
    if spec.crop_mode == "squash":
        return target_width, target_height
    if target_height != target_width:  # timm's ResizeKeepRatio
        ratio = min(height / target_height, width / target_width)
        return max(1, round(width / ratio)), max(1, round(height / ratio))
    # Float division and truncation, in this order: another one is a pixel off for some sizes.
    long = int(target_height * max(width, height) / min(width, height))
    return (target_width, long) if width <= height else (long, target_height)


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


def _center_crop(image: Image.Image, spec: PreprocessSpec) -> NDArray[np.uint8]:
    """`[H, W, C]`."""
    (left, top), size = _crop_corner(image.size, spec), spec.image_size
    # Where the box reaches beyond the image, Pillow's crop fills with zeros: black, as torchvision pads.
    pixels = np.array(image.crop((left, top, left + size.width, top + size.height)), np.uint8)
    return pixels if pixels.ndim == 3 else pixels[..., None]


def _crop_corner(resized: tuple[int, int], spec: PreprocessSpec) -> tuple[int, int]:
    """Where the crop starts in a resized image of some width and height, from the left and from the top."""
    start = _crop_start if spec.crop_rounding == "even" else _crop_start_down
    return start(resized[0], spec.image_size.width), start(resized[1], spec.image_size.height)


def _crop_start(length: int, side: int) -> int:
    """Where the crop starts along one axis; negative where the image has to be padded.

    `round` takes halves to the even neighbour, as in torchvision, whereas the padding is rounded down on this side.
    """
    return round((length - side) / 2) if length >= side else -((side - length) // 2)


def _crop_start_down(length: int, side: int) -> int:
    """The same as in transformers, where the padding is rounded up on this side."""
    return (length - side) // 2
