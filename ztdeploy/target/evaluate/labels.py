"""Labelled images: a `labels.json` beside an `images` folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ztdeploy.core.arguments import CLASSES, shown
from ztdeploy.core.data import read_json
from ztdeploy.core.errors import ImageError


@dataclass(frozen=True)
class LabelledImage:
    """An image file and the class indices that count as right for it."""

    path: Path
    accepted: frozenset[int]


def read_labels(path: Path) -> list[LabelledImage]:
    """Read `[{"file": ..., "indices": [...]}, ...]`; files are relative to the `images` folder beside the list.

    `imagenet_indices` is accepted for `indices`.

    Raises:
        ImageError: not such a list, or a file name that leaves the folder.
    """
    folder = path.parent / "images"
    expected = "objects with file and indices"
    entries = read_json(path, what="list of labels", error=ImageError, expected=expected, fix="correct the file")
    try:
        images = [
            LabelledImage(folder / str(e["file"]), frozenset(map(_index, e.get("indices", e.get("imagenet_indices")))))
            for e in entries
        ]
        if not images:
            raise ValueError("no images")
        for image in images:
            image.path.resolve()  # refuses what cannot be a file name
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ImageError(f"'{path}' is no list of labels ({error})", expected, "correct the file") from error
    for image in images:
        if not image.path.resolve().is_relative_to(folder.resolve()):
            raise ImageError(f"'{image.path}' leaves the image folder", "file names inside it", "correct the file")
    return images


def _index(value: object) -> int:
    if not isinstance(value, int) or abs(value) > CLASSES.most:
        raise ValueError(f"{shown(value)} is no index of a class")
    return value
