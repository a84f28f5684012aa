"""Which images lie below a folder, whatever else lies there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ztdeploy.core.errors import ImageError
from ztdeploy.target.runtime.images import ARRAY_SUFFIX

#: Of the formats that `runtime.images` reads. What a file really holds is seen when it is decoded.
SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm")
)
_MOST_LEVELS = 32


@dataclass(frozen=True)
class Found:
    """What lies below a folder, in the order of names."""

    images: tuple[Path, ...]
    ignored: int  #: files that are no images by their names, and links that lead back to where they came from


def suffixes_for(channels: int) -> frozenset[str]:
    """The names of images of a model with so many channels: arrays are looked for where pictures do not do."""
    return SUFFIXES if channels in (1, 3) else SUFFIXES | {ARRAY_SUFFIX}


def find_images(folder: Path, suffixes: frozenset[str] = SUFFIXES) -> Found:
    """All image files below a folder. Links are followed, but not in circles; hidden files and folders are left out.

    Raises:
        ImageError: a folder cannot be read, or folders are nested too deeply.
    """
    found = list(_walk(folder, (), suffixes))
    return Found(tuple(path for path in found if path is not None), found.count(None))


def sub_folders(folder: Path) -> list[Path]:
    """The visible folders right inside a folder, in the order of names, links to folders included.

    Raises:
        ImageError: it cannot be read.
    """
    return [path for path in _entries(folder) if path.is_dir()]


def images_inside(folder: Path, suffixes: frozenset[str] = SUFFIXES) -> Found:
    """The same as `find_images`, without going into folders."""
    files = [path for path in _entries(folder) if not path.is_dir()]
    images = tuple(path for path in files if path.suffix.lower() in suffixes)
    return Found(images, len(files) - len(images))


def _walk(folder: Path, above: tuple[tuple[int, int], ...], suffixes: frozenset[str]) -> Iterator[Path | None]:
    """Images, and None for everything that is ignored."""
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
    for path in _entries(folder):
        if path.is_dir():
            yield from _walk(path, (*above, identity), suffixes)
        else:
            yield path if path.suffix.lower() in suffixes else None


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise _unreadable(folder, error) from error


def _unreadable(folder: Path, error: OSError) -> ImageError:
    return ImageError(
        f"folder '{folder}' cannot be read ({error.strerror or error})", "a readable folder", "check its permissions"
    )
