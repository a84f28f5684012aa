"""What an evaluation runs on: a labels file, a folder per class, or a flat folder of images without labels."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ztdeploy.core.arguments import CLASSES, shown
from ztdeploy.core.bundle import sha256_of
from ztdeploy.core.data import read_json
from ztdeploy.core.errors import ImageError
from ztdeploy.core.preprocess_spec import Output, PreprocessSpec
from ztdeploy.core.text import printable
from ztdeploy.target.evaluate.class_folders import apart, match_folders
from ztdeploy.target.evaluate.eval_report import DataFacts, Unreadable
from ztdeploy.target.runtime.image_files import below, entries, suffixes_for
from ztdeploy.target.runtime.images import read_bands
from ztdeploy.target.runtime.preprocess import resize_and_crop

LABELS = "labels.json"


@dataclass(frozen=True)
class LabelledImage:
    """An image file and the class indices that count as right for it."""

    path: Path
    accepted: frozenset[int]


@dataclass(frozen=True)
class EvalData:
    """Images in a fixed order."""

    path: Path  #: what the user named
    root: Path  #: the folder that images are named within
    labelled: bool
    rule: str  #: how images come by their labels, in words
    images: tuple[LabelledImage, ...]  #: unlabelled ones accept no class
    ignored: int = 0  #: files whose names are not those of images, and links that lead back to where they came from

    @property
    def name(self) -> str:
        """What the data is called, such as "imagenet-val"."""
        folder = self.path if self.path.is_dir() else self.path.parent
        return folder.resolve().name

    def name_of(self, image: LabelledImage) -> str:
        """An image's name within the data, with "/" between folders."""
        return image.path.relative_to(self.root).as_posix()

    def without_labels(self) -> EvalData:
        images = tuple(replace(image, accepted=frozenset()) for image in self.images)
        return replace(self, labelled=False, rule="labels left aside: against dense only", images=images)


def read_data(path: Path, names: Sequence[str] | None, classes: int | None, channels: int = 3) -> EvalData:
    """List the images of a data set and their labels; nothing is decoded.

    Args:
        path: a labels file, see `read_labels`; a folder with a `labels.json` in it; a folder of class folders, see
            `match_folders`; or a folder of images. Hidden files and folders are left out.
        names: the model's class names, if the bundle has any.
        classes: how many outputs the model has; None where it names no classes, so that labels only say what is alike.
        channels: channels of the model's images; `.npy` files count as images where pictures cannot hold as many.

    Raises:
        ImageError: nothing there, no images, both images and class folders, or a label that is no class of the model.
    """
    check_exists(path)
    if path.is_file():
        return _from_labels(path, path, classes)
    if (path / LABELS).is_file():
        return _from_labels(path, path / LABELS, classes)
    suffixes, listing = suffixes_for(channels), entries(path)
    inside = [entry if entry.suffix.lower() in suffixes else None for entry in listing if not entry.is_dir()]
    all_below = {entry.name: list(below(entry, suffixes)) for entry in listing if entry.is_dir()}
    folders = {name: found for name, found in all_below.items() if any(found)}
    if any(inside) and folders:
        raise ImageError(
            f"'{path}' holds images ({len(list(filter(None, inside)))}) as well as folders of images ({len(folders)})",
            "a folder per class, or images without labels",
            "move either elsewhere",
        )
    if not any(inside) and not folders:
        raise ImageError(
            f"'{path}' holds no images ({len(inside)} other files)",
            "image files, or a folder of them per class",
            "check the folder",
        )
    listed = [(one, frozenset[int]()) for one in inside]
    rule = "no labels: against dense only"
    if folders:
        matched = apart(list(folders)) if classes is None else match_folders(list(folders), names, classes)
        listed += [(one, frozenset([matched.indices[name]])) for name, found in folders.items() for one in found]
        rule = f"{len(folders)} folders, by {matched.rule}"
    images = tuple(LabelledImage(one, accepted) for one, accepted in listed if one is not None)
    return EvalData(path, path, bool(folders), rule, images, ignored=len(listed) - len(images))


def label_classes(output: Output, outputs: int) -> int | None:
    """How many classes labels can name; None where a model names none: vectors, and one output, whose folders may be
    no and yes.
    """
    return outputs if output == "logits" and outputs > 1 else None


def image_folder(path: Path) -> Path:
    """The folder that the images of a data set are named within.

    Args:
        path: see `read_data`.
    """
    labels = path if path.is_file() else path / LABELS
    return labels.parent / "images" if labels.is_file() else path


def check_exists(path: Path) -> None:
    """
    Raises:
        ImageError: there is nothing.
    """
    if not os.path.exists(path):  # noqa: PTH110 - Path.exists raises where a name is too long
        raise ImageError(f"'{path}' does not exist", "a folder of images, or a labels.json", "check the folder")


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


def _from_labels(path: Path, file: Path, classes: int | None) -> EvalData:
    data = EvalData(path, image_folder(path), True, f"listed in {file.name}", images=tuple(read_labels(file)))
    seen = set[Path]()
    for image in data.images:
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
    """At most `limit` images: equally many of every class, as far as it has so many.

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


@dataclass(frozen=True)
class Decoded:
    """An image file as the model sees it."""

    pixels: NDArray[np.uint8]  #: `[H, W, C]`
    digest: bytes  #: sha256 of the file


def decode(path: Path, spec: PreprocessSpec) -> Decoded | str:
    """The image, or what is wrong with it, in one line."""
    try:
        return Decoded(resize_and_crop(read_bands(path, spec), spec), bytes.fromhex(sha256_of(path)))
    except (ImageError, OSError) as error:
        return printable(str(error))


def data_facts(data: EvalData, chosen: EvalData, content: Sequence[bytes], problem: Sequence[str]) -> DataFacts:
    """What the images of an evaluation were, for its report.

    Args:
        data: all images of the data set.
        chosen: the images that were to be evaluated.
        content: sha256 of each chosen file.
        problem: why it could not be read; empty where it could.

    Raises:
        ImageError: none of them could be read.
    """
    digest, accepted, unreadable = hashlib.sha256(), list[frozenset[int]](), list[Unreadable]()
    for image, one, wrong in zip(chosen.images, content, problem, strict=True):
        name = chosen.name_of(image)
        if wrong:
            unreadable.append(Unreadable(image=name, reason=wrong))
            continue
        accepted.append(image.accepted)
        digest.update(f"{name}\0{one.hex()}\0{sorted(image.accepted)}\n".encode(errors="surrogateescape"))
    if not accepted:
        raise ImageError(
            f"none of {len(unreadable)} images of '{data.path}' can be read ({unreadable[0].reason})",
            "images",
            "check the folder",
        )
    return DataFacts(
        name=data.name,
        path=str(data.path),
        rule=data.rule,
        labelled=data.labelled,
        digest=digest.hexdigest(),
        found=len(data.images),
        images=len(accepted),
        classes=len(set(accepted)) if data.labelled else None,
        ignored=data.ignored,
        unreadable=tuple(unreadable),
    )
