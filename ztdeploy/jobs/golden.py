"""The golden images of a bundle: known input that every engine is held against."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ztdeploy.core.files import make_folder, writing
from ztdeploy.core.manifest import GoldenRecord
from ztdeploy.core.plan import Variant
from ztdeploy.core.preprocess_spec import PreprocessSpec
from ztdeploy.host.models.catalogue import sample_images
from ztdeploy.host.models.loading import LoadedModel
from ztdeploy.target.runtime.image_files import ARRAY_SUFFIX
from ztdeploy.target.runtime.images import read_bands, read_image

GOLDEN_IMAGES = 4


def golden_images(model: LoadedModel, folder: Path) -> list[Path]:
    """Photographs that ship with ztdeploy.

    For a model that takes neither RGB nor grey, files with as many channels are made of them in `folder`.
    """
    make_folder(folder)
    photos, channels = sample_images(model.entry, GOLDEN_IMAGES), model.preprocess.channels
    if channels in (1, 3):
        return photos
    return [with_channels(read_image(photo), channels, folder / photo.stem) for photo in photos]


def write_golden(
    folder: Path, images: Sequence[Path], pixels: NDArray[np.uint8], spec: PreprocessSpec, variants: Sequence[Variant]
) -> GoldenRecord:
    """Write the images into a bundle, losslessly, and the pixels that resize and crop must make of them.

    Args:
        pixels: uint8 `[n, H, W, C]`.
    """
    names = []
    for source in images:
        path = source
        if not source.is_relative_to(folder):
            (picture,) = read_bands(source, spec)
            path = folder / "golden" / f"{source.stem}.png"
            _save(picture, path)
        names.append(path.relative_to(folder).as_posix())
    with writing(folder / "golden/pixels.npy") as file:
        np.save(file, pixels, allow_pickle=False)
    outputs = {variant.schedule.name: f"golden/{variant.schedule.name}.npz" for variant in variants}
    return GoldenRecord(images=tuple(names), pixels="golden/pixels.npy", outputs=outputs)


def with_channels(photo: Image.Image, channels: int, path: Path) -> Path:
    """Write an image that repeats a photograph's red, green, blue and luma until it has so many channels.

    Args:
        path: without an ending, which depends on the number of channels.

    Returns:
        The file.
    """
    bands = [*photo.split(), photo.convert("L")]
    chosen = [bands[channel % len(bands)] for channel in range(channels)]
    mode = {2: "LA", 4: "RGBA"}.get(channels)
    if mode is not None:
        path = path.with_suffix(".png")
        _save(Image.merge(mode, chosen), path)
        return path
    path = path.with_suffix(ARRAY_SUFFIX)
    with writing(path) as file:
        np.save(file, np.stack([np.asarray(band) for band in chosen], axis=-1), allow_pickle=False)
    return path


def _save(image: Image.Image, path: Path) -> None:
    with writing(path) as file:
        image.save(file, "PNG", optimize=True)
