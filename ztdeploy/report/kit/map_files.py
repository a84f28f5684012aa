"""Maps as files: a picture in the place of the image that it covers, and the numbers."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from PIL import Image

from ztdeploy.core.bundle import Bundle
from ztdeploy.core.errors import InputError
from ztdeploy.core.files import write
from ztdeploy.core.folders import check_folder_path
from ztdeploy.core.manifest import Manifest
from ztdeploy.core.preprocess_spec import NOUNS
from ztdeploy.report.kit.map_pictures import MapScale
from ztdeploy.target.runtime.arrays import SUFFIX, write_array
from ztdeploy.target.runtime.images import read_bands
from ztdeploy.target.runtime.preprocess import seen_box

MAP_SUFFIX = ".map.png"
_DRAWN = 8  #: channels up to which each gets a picture


def check_maps_folder(out: Path, bundle: Bundle) -> None:
    """Fail early where no maps could be written in the end.

    Raises:
        InputError: the bundle gives no maps.
        OutputError: `out` is no folder.
    """
    gives = bundle.manifest.model.gives
    if gives != "maps":
        given = f"--maps {out} with '{bundle.root}', which gives {NOUNS[gives]}"
        raise InputError(given, "a bundle of a dense model, which gives maps", "leave --maps out")
    check_folder_path(out)


def write_png(picture: Image.Image, file: Path) -> None:
    """
    Raises:
        OutputError: it cannot be written.
    """
    png = io.BytesIO()
    picture.save(png, "PNG")
    write(file, png.getbuffer())


def write_map(given: NDArray[Any], image: Path, manifest: Manifest, file: Path) -> list[Path]:
    """Write a map as it is, `[C, h, w]`, and as a picture of its image's size, or one for each channel if they are few.

    Args:
        file: where the picture goes, ending with `MAP_SUFFIX`; the numbers lie beside it.

    Returns:
        The files.

    Raises:
        ImageError: the image cannot be read any more.
        OutputError: a file cannot be written.
    """
    activation, array = manifest.model.activation, file.with_suffix(SUFFIX)
    channels = 1 if activation == "softmax" else len(given)
    size = read_bands(image, manifest.preprocess)[0].size
    box, written = seen_box(*size, manifest.preprocess), [array]
    write_array(array, list(given))
    for channel in range(channels if channels <= _DRAWN else 0):
        own = file if channels == 1 else file.with_name(f"{file.name.removesuffix(MAP_SUFFIX)}-{channel}{MAP_SUFFIX}")
        write_png(MapScale.of(given, activation, channel).on_image(given, size, box), own)
        written.append(own)
    return written
