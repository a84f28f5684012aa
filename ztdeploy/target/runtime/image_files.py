"""Image files in folders: which files are images, in what order, without decoding any."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ztdeploy.core.errors import ImageError

#: Files of an array, for images of any number of channels.
ARRAY_SUFFIX = ".npy"
#: How files of the formats that `runtime.images` reads are named. Decoding shows what a file really holds.
_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm"}
_MOST_LEVELS = 32


def suffixes_for(channels: int) -> set[str]:
    """How image files end; files of arrays count as images where pictures cannot hold as many channels."""
    return _SUFFIXES if channels in (1, 3) else _SUFFIXES | {ARRAY_SUFFIX}


def images_in(folder: Path, channels: int = 3) -> list[Path]:
    """All image files in a folder and below it, in the order of names; hidden files and folders are left out.

    Raises:
        ImageError: there are none, or a folder cannot be read.
    """
    found = list(below(folder, suffixes_for(channels)))
    images = [path for path in found if path is not None]
    if not images:
        raise ImageError(f"'{folder}' holds no images ({len(found)} other files)", "image files", "check the folder")
    return images


def below(folder: Path, suffixes: set[str], above: tuple[tuple[int, int], ...] = ()) -> Iterator[Path | None]:
    """All images below a folder, in the order of names, and None for everything that is ignored.

    Links are followed, but not in circles.

    Raises:
        ImageError: a folder cannot be read, or is nested too deeply.
    """
    try:
        status = folder.stat()
    except OSError as error:
        raise _unreadable(folder, error) from error
    identity = (status.st_dev, status.st_ino)
    if identity in above:  # a link to a folder that it lies in
        yield None
        return
    if len(above) == _MOST_LEVELS:
        raise ImageError(f"'{folder}' is nested too deeply", f"at most {_MOST_LEVELS} levels", "name a folder below it")
    for path in entries(folder):
        if path.is_dir():
            yield from below(path, suffixes, (*above, identity))
        else:
            yield path if path.suffix.lower() in suffixes else None


def entries(folder: Path) -> list[Path]:
    """What lies in a folder, in the order of names, hidden files and folders left out.

    Raises:
        ImageError: it cannot be read.
    """
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise _unreadable(folder, error) from error


def _unreadable(folder: Path, error: OSError) -> ImageError:
    return ImageError(
        f"folder '{folder}' cannot be read ({error.strerror or error})", "a readable folder", "check its permissions"
    )
