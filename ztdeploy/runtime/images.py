"""Reads one image, from wherever it comes, as upright 8-bit RGB.

The bytes come from outside, and decoders are the usual way in: few formats are allowed, the size is checked before any
pixel is decoded, and whatever a decoder raises leaves here as an `ImageError`. Pillow's and Python's process-wide
settings (`MAX_IMAGE_PIXELS`, warning filters) are left as they are.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from ztdeploy.errors import ImageError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  #: what Pillow may try; each further decoder is a risk
MAX_PIXELS = 100_000_000  #: width times height; 300 MB once decoded

_FORMATS_TEXT = f"one of the formats {', '.join(FORMATS)}"
_EXIF_ORIENTATION = 0x0112
# ImageOps.exif_transpose does the same, but rewrites the EXIF block as well and fails where that is malformed.
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_image(source: str | Path | Image.Image | NDArray[Any]) -> Image.Image:
    """Reads an image into a new PIL image of mode RGB, with its EXIF orientation applied and no metadata left.

    Conversion is Pillow's `convert("RGB")`, as in timm: alpha is dropped, not blended. Greyscale of 16 bits per pixel
    is scaled to 8 bits (its high byte), where Pillow clips. Of a file with several frames the first is read.

    Args:
        source: a path to a file in one of `FORMATS`; or a PIL image, of which the current frame is taken and which is
            not modified; or an array, uint8 `[H, W, 3]` (RGB) or `[H, W]` (greyscale).

    Raises:
        ImageError: the source is missing, unreadable, truncated, not an image, of no pixels or more than `MAX_PIXELS`,
            or holds pixels that have no defined 8-bit value (floats, integers beyond 16 bits). An image that Pillow's
            own limit turns away, where the process has set a lower one, is an ImageError, too.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, Image.Image):
        with _as_image_errors("the given PIL image"):
            return _upright_rgb(source, "the given PIL image")
    if isinstance(source, (str, Path)):
        return _from_file(Path(source))
    raise ImageError(
        f"an image of type {type(source).__name__}",
        "a path, a PIL image or a uint8 array",
        "pass one of these",
    )


def _from_array(pixels: NDArray[Any]) -> Image.Image:
    if pixels.dtype != np.uint8 or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)):
        raise ImageError(
            f"an array of dtype {pixels.dtype} and shape {list(pixels.shape)}",
            "uint8 of shape [H, W, 3] (RGB) or [H, W] (greyscale)",
            "convert it to 8 bits, 0 to 255, and to one of these shapes",
        )
    _check_size(pixels.shape[1], pixels.shape[0], "the given array")
    return Image.fromarray(pixels).convert("RGB")


def _from_file(path: Path) -> Image.Image:
    name = f"image {str(path)!r}"
    with _as_image_errors(name):
        _check_file(path, name)
        # Opened here and not by Pillow: closed whatever happens, and never mapped into memory, where a file
        # that shrinks while it is read kills the process.
        with path.open("rb") as file, Image.open(file, formats=FORMATS) as image:
            return _upright_rgb(image, name)


def _check_file(path: Path, name: str) -> None:
    try:
        status = path.stat()
    except FileNotFoundError:
        found = "is a link to nothing" if path.is_symlink() else "does not exist"
        raise ImageError(f"{name} {found}", "an image file", "check the path") from None
    if stat.S_ISDIR(status.st_mode):
        raise ImageError(f"{name} is a folder", "an image file", "name one image inside it")
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for a writer
        raise ImageError(f"{name} is a device, pipe or socket", "an image file", "copy the image to a file")
    if status.st_size == 0:
        raise ImageError(f"{name} is empty (0 bytes)", "an image file", "copy or download it again")


@contextmanager
def _as_image_errors(name: str) -> Iterator[None]:
    """Turns whatever reading and decoding raise into an `ImageError` about the image `name`."""
    try:
        yield
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(f"{name} is not an image, or damaged", _FORMATS_TEXT, "convert it to PNG or JPEG") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(f"{name} is too large ({_one_line(error)})") from error
    except Exception as error:  # Pillow's decoders let out anything, from struct.error to AttributeError
        if isinstance(error, OSError) and error.errno is not None:
            raise ImageError(
                f"{name} cannot be read ({error.strerror})", "a readable file", "check its path and permissions"
            ) from error
        raise ImageError(
            f"{name} cannot be decoded ({_one_line(error)})", "a complete, undamaged image", "copy or export it again"
        ) from error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _too_large(given: str) -> ImageError:
    return ImageError(given, f"at most {MAX_PIXELS:,} pixels", "scale the image down first")


def _check_size(width: int, height: int, name: str) -> None:
    if width < 1 or height < 1:
        raise ImageError(f"{name} has {width} x {height} pixels", "at least 1 x 1", "check how it was made")
    if width * height > MAX_PIXELS:
        raise _too_large(f"{name} has {width} x {height} pixels")


def _upright_rgb(image: Image.Image, name: str) -> Image.Image:
    _check_size(*image.size, name)
    image.load()
    method = _transpose_method(image)
    rgb = _to_rgb(image, name)
    rgb.info.clear()  # else the orientation would be applied again by whoever reads this image next
    return rgb if method is None else rgb.transpose(method)


def _transpose_method(image: Image.Image) -> Image.Transpose | None:
    """What makes a loaded image upright. Malformed EXIF counts as none, as in every viewer.

    TIFF carries no orientation any more at this point: Pillow applies it while loading.
    """
    try:
        return _TRANSPOSE.get(image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # the parser meets arbitrary bytes here
        return None


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _high_byte(image, name).convert("RGB")
    if image.mode == "F":
        raise ImageError(f"{name} has floating-point pixels", "8 or 16 bits", "scale it to 0 to 255 and save as 8 bits")
    if "transparency" in image.info:
        # Does not change any colour, but Pillow warns about it, and fails where it is malformed.
        image = image.copy()
        del image.info["transparency"]
    return image.convert("RGB")


def _high_byte(image: Image.Image, name: str) -> Image.Image:
    """8-bit greyscale of 16-bit greyscale. The high byte is what Pillow itself keeps of 16-bit *colour*."""
    values = np.asarray(image)  # int32 in mode I, which holds 16-bit files as well
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 0xFFFF:
        raise ImageError(f"{name} has pixel values from {low} to {high}", "0 to 65535", "save it with 8 or 16 bits")
    return Image.fromarray((values >> 8).astype(np.uint8))
