"""Reads images, from wherever they come, upright and with 8 bits: as RGB, or in the channels that a model takes.

`single_images` decides what a caller's images are: files, folders, bytes, arrays, or several of these.

The bytes come from outside, and decoders are the usual way in: few formats are allowed, the size is checked before any
pixel is decoded, and whatever a decoder raises leaves here as an `ImageError`. Pillow's and Python's process-wide
settings (`MAX_IMAGE_PIXELS`, warning filters) are left as they are.
"""

from __future__ import annotations

import io
import math
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from ztdeploy.core.errors import ImageError, ImageWarning
from ztdeploy.core.files import open_regular, reason_of
from ztdeploy.core.preprocess_spec import PreprocessSpec
from ztdeploy.core.text import one_line
from ztdeploy.target.runtime.arrays import read_header
from ztdeploy.target.runtime.image_files import ARRAY_SUFFIX, images_in

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  #: what Pillow may try; each further decoder is a risk
MAX_PIXELS = 100_000_000  #: width times height; 300 MB once decoded
#: Pillow's modes for a number of channels. An alpha channel is a channel like the others: the model says what is in it.
_MODES_BY_CHANNELS = {2: ("LA",), 4: ("RGBA", "RGBX")}
_SAMPLES_PER_PIXEL = 277  # a tag of TIFF files

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


class _ArrayLike(Protocol):
    """Tensors of PyTorch, JAX and others."""

    def __array__(self) -> NDArray[Any]: ...


#: One image: the path of a file, the bytes of one, a PIL image, or an array, uint8 `[H, W, C]` (RGB) or `[H, W]`.
ImageSource: TypeAlias = str | Path | bytes | Image.Image | NDArray[Any]
#: Images as people have them, see `single_images`.
Images: TypeAlias = ImageSource | _ArrayLike | Iterable[ImageSource | _ArrayLike]


@dataclass(frozen=True)
class _Wanted:
    """What an image is to become."""

    channels: int = 3
    bit_depth: int | None = None  #: how many bits of a 16-bit image are used; None: all


def single_images(given: Images, channels: int = 3) -> list[ImageSource]:
    """Lists a caller's images one by one; no file is read yet.

    Args:
        given: the path of an image, or of a folder, which stands for all images in it and below it; the bytes of an
            image file; a PIL image; an array or a tensor, uint8 `[H, W, C]`, `[H, W]`, or `[N, H, W, C]` for several;
            or a list, or anything else to go through, of these.
        channels: of the images that the model takes.

    Raises:
        ImageError: it is none of these; or a folder without images.
    """
    one = isinstance(given, str | bytes | bytearray | memoryview | Image.Image | Mapping | io.IOBase)
    if one or hasattr(given, "__array__") or not isinstance(given, Iterable):
        return _single(given, channels)
    return [image for part in given for image in _single(part, channels)]


def _single(given: Any, channels: int) -> list[ImageSource]:
    """The images of one element: one, or those of a folder or a batch."""
    if isinstance(given, os.PathLike) and isinstance(given.__fspath__(), str):
        given = Path(given)
    if isinstance(given, str | Path):
        is_folder = given != "" and os.path.isdir(given)  # noqa: PTH112 - Path.is_dir raises where a name is too long
        return [*images_in(Path(given), channels)] if is_folder else [given]
    if isinstance(given, bytes | bytearray | memoryview):
        return [bytes(given)]
    if isinstance(given, Image.Image):
        return [given]
    if not hasattr(given, "__array__"):
        raise _no_image(given)
    pixels = _array_of(given)
    if pixels.ndim == 1 and pixels.dtype.kind in "OU":  # a column of a table, such as one of paths
        return [image for part in pixels.tolist() for image in _single(part, channels)]
    if pixels.ndim != 4:
        _check_array(pixels, "an array", _Wanted(channels))
        return [pixels]
    if len(pixels):
        _check_array(pixels[0], "an array", _Wanted(channels), whole=pixels)
    return list(pixels)


def _array_of(given: Any) -> NDArray[Any]:
    """An array, whatever the library; a tensor may have a gradient, or lie on a GPU."""
    for name in () if isinstance(given, np.ndarray) else ("detach", "cpu"):
        step = getattr(given, name, None)
        given = step() if callable(step) else given
    try:
        return np.asarray(given)
    except Exception as error:  # of somebody else's code
        raise _no_image(given, f", which gives no array ({one_line(error)})") from error


def _no_image(given: object, why: str = "") -> ImageError:
    expected = "a path, the bytes of an image file, a PIL image, uint8 [H, W, 3] or [N, H, W, 3], or a list of these"
    return ImageError(f"an image of type {type(given).__name__}{why}", expected, "pass one of these")


def read_image(source: ImageSource) -> Image.Image:
    """Reads an image into a new PIL image of mode RGB, with its EXIF orientation applied and no metadata left.

    Conversion is Pillow's `convert("RGB")`, as in timm: alpha is dropped, not blended. Greyscale of 16 bits per pixel
    is scaled to 8 bits (its high byte), where Pillow clips. Of a file with several frames the first is read.

    Args:
        source: a path to a file in one of `FORMATS`, or to an array in a `.npy` file; the bytes of such an image; a PIL
            image, of which the current frame is taken and which is not modified; or an array, uint8 `[H, W, 3]` (RGB)
            or `[H, W]` (greyscale).

    Raises:
        ImageError: the source is missing, unreadable, truncated, not an image, of no pixels or more than `MAX_PIXELS`,
            or holds pixels that have no defined 8-bit value (floats, negative integers, integers beyond 16 bits). An
            image that Pillow's own limit turns away, where the process has set a lower one, is an ImageError, too.
    """
    return _read(source, _Wanted())[0]


def read_bands(source: ImageSource, spec: PreprocessSpec) -> list[Image.Image]:
    """Reads an image in the channels that a model takes, otherwise as `read_image` does.

    For three channels that is one image of mode RGB, for one channel one of mode L (Pillow's luma of colours); for any
    other number, one image of mode L per channel. Four channels are read from RGBA, two from grey with alpha, and any
    number from an array, uint8 `[H, W, C]`; none is ever made up.

    Raises:
        ImageError: see `read_image`; or it has not as many channels, or values beyond the bit depth of `spec`.
    """
    return _read(source, _Wanted(spec.channels, spec.bit_depth))


def _read(source: ImageSource, wanted: _Wanted) -> list[Image.Image]:
    if isinstance(source, np.ndarray):
        return _from_array(source, "an array", wanted)
    if isinstance(source, Image.Image):
        with _as_image_errors("the given PIL image"):
            return _upright(source, "the given PIL image", wanted)
    if isinstance(source, (str, Path)):
        return _from_file(Path(source), wanted)
    if isinstance(source, bytes):
        name = f"an image of {len(source)} bytes"
        with _as_image_errors(name):
            return _decoded(io.BytesIO(source), name, wanted)
    raise _no_image(source)


def _from_array(pixels: NDArray[Any], name: str, wanted: _Wanted) -> list[Image.Image]:
    _check_array(pixels, name, wanted)
    channels = pixels.shape[2] if pixels.ndim == 3 else 0
    _check_size(pixels.shape[1], pixels.shape[0], name)
    if channels in (0, 1, 3):
        return [Image.fromarray(pixels[..., 0] if channels == 1 else pixels).convert(_mode(wanted))]
    return [Image.fromarray(np.ascontiguousarray(pixels[..., channel])) for channel in range(channels)]


def _check_array(pixels: NDArray[Any], name: str, wanted: _Wanted, whole: NDArray[Any] | None = None) -> None:
    """
    Args:
        whole: what the image is one of, if it is one of several.

    Raises:
        ImageError: not uint8 of a shape that an image has; says how to make such an array of it.
    """
    takes = {1: (0, 1, 3), 3: (0, 3)}.get(wanted.channels, (wanted.channels,))
    if pixels.dtype == np.uint8 and pixels.ndim in (2, 3) and (pixels.shape[2] if pixels.ndim == 3 else 0) in takes:
        return
    shapes = ["[H, W]" if number == 0 else f"[H, W, {number}]" for number in reversed(takes)]
    given = pixels if whole is None else whole
    fix = "convert it to 8 bits, 0 to 255, and to one of these shapes"
    if pixels.ndim == 3 and pixels.shape[2] not in takes and pixels.shape[0] in takes:
        fix = f"move the channels to the end: array.transpose({'1, 2, 0' if whole is None else '0, 2, 3, 1'})"
        fix += "" if pixels.dtype == np.uint8 else ", and convert it to 8 bits, 0 to 255, ahead of any normalisation"
    elif pixels.dtype.kind == "f":
        fix = "pass the pixels ahead of any normalisation: (255 * array).round().astype('uint8') if they are 0 to 1"
    raise ImageError(
        f"{name} of dtype {pixels.dtype} and shape {list(given.shape)}",
        f"uint8 of shape {' or '.join(shapes)}, or [N, H, W, {max(takes)}] for several images",
        fix,
    )


def _from_file(path: Path, wanted: _Wanted) -> list[Image.Image]:
    name = f"image {str(path)!r}"
    # Opened here and not by Pillow: closed whatever happens, and never mapped into memory, where a file that shrinks
    # while it is read kills the process.
    with _as_image_errors(name), _opened(path, name) as file:
        if path.suffix.lower() == ARRAY_SUFFIX:
            return _from_array(_array_in(file, name), f"{name}, an array", wanted)
        return _decoded(file, name, wanted)


def _decoded(file: IO[bytes], name: str, wanted: _Wanted) -> list[Image.Image]:
    with Image.open(file, formats=FORMATS) as image:
        return _upright(image, name, wanted)


def _opened(path: Path, name: str) -> IO[bytes]:
    try:
        file = open_regular(path)
    except FileNotFoundError:
        found = "is a link to nothing" if path.is_symlink() else "does not exist"
        raise ImageError(f"{name} {found}", "an image file", "check the path") from None
    if not os.fstat(file.fileno()).st_size:
        file.close()
        raise ImageError(f"{name} is empty (0 bytes)", "an image file", "copy or download it again")
    return file


def _array_in(file: IO[bytes], name: str) -> NDArray[np.uint8]:
    """The array of a `.npy` file, whose header is checked before its pixels are read."""
    shape, fortran, dtype = read_header(file)
    if dtype != np.uint8 or fortran or len(shape) not in (2, 3):
        raise ImageError(
            f"{name} is an array of dtype {dtype} and shape {list(shape)}{' in column order' if fortran else ''}",
            "uint8 of shape [H, W, C] in row order",
            "convert it to 8 bits, 0 to 255, and write it with numpy.save",
        )
    _check_size(shape[1], shape[0], name)
    values, most = math.prod(shape), 3 * MAX_PIXELS
    if values > most:
        raise ImageError(f"{name} has {values:,} values", f"at most {most:,}", "scale it down first")
    return np.frombuffer(file.read(values), np.uint8).reshape(shape)


@contextmanager
def _as_image_errors(name: str) -> Iterator[None]:
    """Turns whatever reading and decoding raise into an `ImageError` about the image `name`."""
    try:
        yield
    except (ImageError, ImageWarning):
        raise
    except UnidentifiedImageError as error:
        raise ImageError(f"{name} is not an image, or damaged", _FORMATS_TEXT, "convert it to PNG or JPEG") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(f"{name} is too large ({one_line(error)})") from error
    except Exception as error:  # Pillow's decoders let out anything, from struct.error to AttributeError
        if isinstance(error, OSError) and error.errno is not None:
            given = f"{name} cannot be read ({reason_of(error)})"
            raise ImageError(given, "a readable file", "check its path and permissions") from error
        raise ImageError(
            f"{name} cannot be decoded ({one_line(error)})", "a complete, undamaged image", "copy or export it again"
        ) from error


def _too_large(given: str) -> ImageError:
    return ImageError(given, f"at most {MAX_PIXELS:,} pixels", "scale the image down first")


def _check_size(width: int, height: int, name: str) -> None:
    if width < 1 or height < 1:
        raise ImageError(f"{name} has {width} x {height} pixels", "at least 1 x 1", "check how it was made")
    if width * height > MAX_PIXELS:
        raise _too_large(f"{name} has {width} x {height} pixels")


def _upright(image: Image.Image, name: str, wanted: _Wanted) -> list[Image.Image]:
    _check_size(*image.size, name)
    deep = _is_deep_colour(image)
    image.load()
    method = _transpose_method(image)
    pictures = _converted(image, name, wanted, deep=deep)
    for picture in pictures:
        picture.info.clear()  # else the orientation would be applied again by whoever reads this image next
    return pictures if method is None else [picture.transpose(method) for picture in pictures]


def _is_deep_colour(image: Image.Image) -> bool:
    """Whether a file that is not loaded yet has 16 bits per channel, of which Pillow keeps the high byte."""
    return image.mode in ("RGB", *_MODES_BY_CHANNELS[4]) and ";16" in str(getattr(image, "tile", ""))


def _transpose_method(image: Image.Image) -> Image.Transpose | None:
    """What makes a loaded image upright. Malformed EXIF counts as none, as in every viewer.

    TIFF carries no orientation any more at this point: Pillow applies it while loading.
    """
    try:
        return _TRANSPOSE.get(image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # the parser meets arbitrary bytes here
        return None


def _mode(wanted: _Wanted) -> str:
    return "L" if wanted.channels == 1 else "RGB"


def _converted(image: Image.Image, name: str, wanted: _Wanted, *, deep: bool) -> list[Image.Image]:
    """The bands of a loaded image, in the wanted channels."""
    if deep:
        _check_deep_colour(image, name, wanted)
    if wanted.channels in (1, 3):
        return [_to_rgb(image, name, wanted).convert(_mode(wanted))]
    own = len(image.getbands())
    samples = getattr(image, "tag_v2", {}).get(_SAMPLES_PER_PIXEL, own)  # Pillow drops what is beyond a mode
    if image.mode not in _MODES_BY_CHANNELS.get(wanted.channels, ()) or samples != wanted.channels:
        modes = " or ".join(_MODES_BY_CHANNELS.get(wanted.channels, ())[:1])
        raise ImageError(
            f"{name} has {max(own, samples) if isinstance(samples, int) else own} channels (mode {image.mode})",
            f"the {wanted.channels} channels of the model: {f'an image of mode {modes}, or ' if modes else ''}"
            f"a {ARRAY_SUFFIX} file of uint8 [H, W, {wanted.channels}]",
            "save it with all channels that the model was trained on",
        )
    return list(image.split())


def _to_rgb(image: Image.Image, name: str, wanted: _Wanted) -> Image.Image:
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _eight_bits(image, name, wanted).convert("RGB")
    if image.mode == "F":
        raise ImageError(f"{name} has floating-point pixels", "8 or 16 bits", "scale it to 0 to 255 and save as 8 bits")
    if "transparency" in image.info:
        # Does not change any colour, but Pillow warns about it, and fails where it is malformed.
        image = image.copy()
        del image.info["transparency"]
    return image.convert("RGB")


def _eight_bits(image: Image.Image, name: str, wanted: _Wanted) -> Image.Image:
    """8-bit greyscale of 16-bit greyscale. The high byte is what Pillow itself keeps of 16-bit *colour*."""
    values = np.asarray(image)  # int32 in mode I, which holds 16-bit files as well
    low, high = int(values.min()), int(values.max())
    depth = wanted.bit_depth or 16
    if low < 0 or high >= 1 << depth:
        raise ImageError(
            f"{name} has pixel values from {low} to {high}",
            f"0 to {(1 << depth) - 1}",
            f"save it with 8 or 16 bits, without signs{', or build with another --bit-depth' if depth < 16 else ''}",
        )
    if wanted.bit_depth is None:
        _warn_of_few_bits(name, high, str(high))
    return Image.fromarray((values >> (depth - 8)).astype(np.uint8))


def _check_deep_colour(image: Image.Image, name: str, wanted: _Wanted) -> None:
    """Pillow gives the high byte of 16-bit colour, so that its range can be seen, but not scaled."""
    if wanted.bit_depth not in (None, 16):
        raise ImageError(
            f"{name} has colours of 16 bits, of which {wanted.bit_depth} are used",
            "greyscale, or 8 bits per channel",
            f"scale it to 0 to 255 and save it with 8 bits, or as a {ARRAY_SUFFIX} file",
        )
    high = max(int(np.asarray(band).max()) for band in image.split()[:3])
    if wanted.bit_depth is None:
        _warn_of_few_bits(name, high << 8 | 0xFF, f"about {high << 8 | 0xFF}")


def _warn_of_few_bits(name: str, high: int, words: str) -> None:
    """Cameras of 10, 12 or 14 bits write files of 16, which say nothing of it: such an image would be nearly black."""
    if not 0 < high < 0x8000:
        return
    text = (
        f"{name} has 16 bits per channel and no value above {words}: it is scaled as if 65535 were white, and is dark; "
        f"if {(1 << high.bit_length()) - 1} is white, build with --bit-depth {max(9, high.bit_length())}"
    )
    warnings.warn(text, ImageWarning, stacklevel=2)
