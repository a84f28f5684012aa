"""What an evaluation runs on: a labels file, a folder per class, or a flat folder of images without labels."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ztdeploy.core.errors import ImageError
from ztdeploy.target.evaluate.class_folders import apart, match_folders
from ztdeploy.target.evaluate.image_folder import Found, find_images, images_inside, sub_folders, suffixes_for
from ztdeploy.target.evaluate.labels import LabelledImage, read_labels

LABELS = "labels.json"
Kind = Literal["labels file", "class folders", "unlabelled"]


@dataclass(frozen=True)
class EvalData:
    """Images in a fixed order."""

    path: Path  #: as it was given
    root: Path  #: the folder that images are named within
    kind: Kind
    rule: str  #: how images come by their labels, in words
    images: tuple[LabelledImage, ...]  #: unlabelled ones accept no class
    ignored: int = 0  #: files that are no images by their names

    @property
    def labelled(self) -> bool:
        return self.kind != "unlabelled"

    @property
    def name(self) -> str:
        """What the data is called, such as "imagenet-val"."""
        folder = self.path if self.path.is_dir() else self.path.parent
        return folder.resolve().name

    def name_of(self, image: LabelledImage) -> str:
        """An image's name within the data, with "/" between folders."""
        return image.path.relative_to(self.root).as_posix()


def read_data(path: Path, names: Sequence[str] | None, classes: int | None, channels: int = 3) -> EvalData:
    """List the images of a data set and their labels; nothing is decoded.

    Args:
        path: a labels file, see `labels.read_labels`; a folder with a `labels.json` in it; a folder of class folders,
            see `class_folders.match_folders`; or a folder of images.
        names: the model's class names, if the bundle has any.
        channels: of the model's images.
        classes: how many outputs the model has; None where it names no classes, so that labels only say what is alike.

    Raises:
        ImageError: nothing there, no images, both images and class folders, or a label that is no class of the model.
    """
    check_exists(path)
    if path.is_file():
        return _from_labels(path, path, classes)
    if (path / LABELS).is_file():
        return _from_labels(path, path / LABELS, classes)
    suffixes = suffixes_for(channels)
    inside = images_inside(path, suffixes)
    folders = {folder.name: found for folder in sub_folders(path) if (found := find_images(folder, suffixes)).images}
    if inside.images and folders:
        raise ImageError(
            f"'{path}' holds images ({len(inside.images)}) as well as folders of images ({len(folders)})",
            "a folder per class, or images without labels",
            "move either elsewhere",
        )
    if not inside.images and not folders:
        raise ImageError(
            f"'{path}' holds no images ({inside.ignored} other files)",
            "image files, or a folder of them per class",
            "check the folder",
        )
    return _from_class_folders(path, folders, inside.ignored, names, classes) if folders else _flat(path, inside)


def without_labels(data: EvalData) -> EvalData:
    """The same images, of which nothing is known."""
    images = tuple(replace(image, accepted=frozenset()) for image in data.images)
    return replace(data, kind="unlabelled", rule="labels left aside: against dense only", images=images)


def check_exists(path: Path) -> None:
    """
    Raises:
        ImageError: there is nothing.
    """
    if not os.path.exists(path):  # noqa: PTH110 - Path.exists raises where a name is too long
        raise ImageError(f"'{path}' does not exist", "a folder of images, or a labels.json", "check the folder")


def _flat(path: Path, inside: Found) -> EvalData:
    images = tuple(LabelledImage(image, frozenset()) for image in inside.images)
    return EvalData(path, path, "unlabelled", "no labels: against dense only", images, inside.ignored)


def _from_class_folders(
    path: Path, folders: dict[str, Found], ignored: int, names: Sequence[str] | None, classes: int | None
) -> EvalData:
    matched = apart(list(folders)) if classes is None else match_folders(list(folders), names, classes)
    images = tuple(
        LabelledImage(image, frozenset([matched.indices[name]]))
        for name, found in folders.items()
        for image in found.images
    )
    rule = f"{len(folders)} folders, by {matched.rule}"
    return EvalData(
        path, path, "class folders", rule, images, ignored + sum(found.ignored for found in folders.values())
    )


def _from_labels(path: Path, file: Path, classes: int | None) -> EvalData:
    images = tuple(read_labels(file))
    data = EvalData(path, file.parent / "images", "labels file", f"listed in {file.name}", images)
    seen = set[Path]()
    for image in images:
        if not image.accepted or not all(0 <= index < (classes or math.inf) for index in image.accepted):
            outputs = "" if classes is None else f", for {classes} outputs"
            raise ImageError(
                f"label {sorted(image.accepted)} of '{data.name_of(image)}' in '{file}'{outputs}",
                "at least one index, each from 0" + ("" if classes is None else f" to {classes - 1}"),
                "correct the file, or evaluate the model that was trained on these classes",
            )
        if image.path in seen:
            raise ImageError(f"'{file}' lists '{data.name_of(image)}' twice", "each image once", "correct the file")
        seen.add(image.path)
    return data


def limited(data: EvalData, limit: int | None, seed: int = 0) -> EvalData:
    """At most `limit` images, of every class as many as of any other, as far as there are so many.

    Within a class, images are taken in the order of sha256("seed/name"), and classes take turns in such an order: the
    same seed takes the same images on every machine, and a larger limit adds to them.
    """
    if limit is None or limit >= len(data.images):
        return data

    def drawn(text: str) -> bytes:
        return hashlib.sha256(f"{seed}/{text}".encode(errors="surrogateescape")).digest()

    classes: dict[str, list[LabelledImage]] = {}
    for image in data.images:
        classes.setdefault(",".join(map(str, sorted(image.accepted))), []).append(image)
    queues = [sorted(classes[key], key=lambda image: drawn(data.name_of(image))) for key in sorted(classes, key=drawn)]
    turns = [(turn, place) for place, queue in enumerate(queues) for turn in range(len(queue))]
    taken = {queues[place][turn].path for turn, place in sorted(turns)[:limit]}
    return replace(data, images=tuple(image for image in data.images if image.path in taken))
