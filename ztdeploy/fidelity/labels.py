"""Labelled images: a `labels.json` beside an `images` folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from ztdeploy.errors import ImageError


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
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        images = [
            LabelledImage(folder / str(e["file"]), frozenset(map(int, e.get("indices", e.get("imagenet_indices")))))
            for e in entries
        ]
        if not images:
            raise ValueError("no images")
        for image in images:
            image.path.resolve()  # refuses what cannot be a file name
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ImageError(
            f"'{path}' is no list of labels ({error})", "objects with file and indices", "correct the file"
        ) from error
    for image in images:
        if not image.path.resolve().is_relative_to(folder.resolve()):
            raise ImageError(f"'{image.path}' leaves the image folder", "file names inside it", "correct the file")
    return images
