"""Which class a folder of images stands for. One rule holds for all folders of a set; what is ambiguous is refused."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ztdeploy.core.errors import ImageError, did_you_mean

Rule = Literal["class names", "class indices", "sorted WordNet ids", "their names"]
_WORDNET_ID = re.compile(r"n[0-9]{8}")
_OR_LABELS = "or list the images in a labels.json"


@dataclass(frozen=True)
class Matched:
    """The class of each folder, and the rule that says so."""

    rule: Rule
    indices: Mapping[str, int]


def match_folders(folders: Sequence[str], names: Sequence[str] | None, classes: int) -> Matched:
    """Find the one rule by which every folder's name is a class of the model.

    - class names: as the bundle has them; case, `_` and `-` for a space do not matter;
    - class indices: `0` to `classes - 1`;
    - sorted WordNet ids (`n01440764`): only the whole set of classes, since a bundle holds no such ids, and ImageNet's
      indices are the positions in their order.

    Args:
        folders: names of the folders that hold images, at least one.
        names: one per class, or None where the bundle has none.
        classes: how many outputs the model has.

    Raises:
        ImageError: more folders than classes, a name without a class, or one that can stand for several.
    """
    if len(folders) > classes:
        raise ImageError(
            f"{len(folders)} class folders, for a model with {classes} outputs",
            f"at most {classes}",
            "evaluate the model that was trained on these classes, or leave folders out",
        )
    rules = [_by_name(folders, names or ()), _by_index(folders, classes), _by_wordnet_id(folders, classes)]
    found = [matched for matched in rules if matched is not None]
    if not found:
        raise _unmatched(folders, names, classes)
    for other in found[1:]:
        for folder in folders:
            if found[0].indices[folder] != other.indices[folder]:
                raise _ambiguous(
                    f"class folder '{folder}' is class {found[0].indices[folder]} by {found[0].rule} and class "
                    f"{other.indices[folder]} by {other.rule}"
                )
    return found[0]


def apart(folders: Sequence[str]) -> Matched:
    """Each folder a class of its own, for a model that names none: alike is what lies in one folder."""
    return Matched("their names", {folder: index for index, folder in enumerate(sorted(folders))})


def _by_name(folders: Sequence[str], names: Sequence[str]) -> Matched | None:
    known: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        known.setdefault(_plain(name), []).append(index)
    if any(_plain(folder) not in known for folder in folders):
        return None
    for folder in folders:
        several = known[_plain(folder)]
        if len(several) > 1:
            raise _ambiguous(f"class folder '{folder}' is the name of the classes {', '.join(map(str, several))}")
    return Matched("class names", {folder: known[_plain(folder)][0] for folder in folders})


def _by_index(folders: Sequence[str], classes: int) -> Matched | None:
    if not all(folder.isascii() and folder.isdecimal() and len(folder) < 10 for folder in folders):
        return None
    for folder in folders:
        if int(folder) >= classes:
            raise ImageError(
                f"class folder '{folder}', for a model with {classes} outputs",
                f"indices from 0 to {classes - 1}",
                f"count classes from 0, {_OR_LABELS}",
            )
    return Matched("class indices", {folder: int(folder) for folder in folders})


def _by_wordnet_id(folders: Sequence[str], classes: int) -> Matched | None:
    if not all(_WORDNET_ID.fullmatch(folder) for folder in folders):
        return None
    if len(folders) != classes:
        raise ImageError(
            f"{len(folders)} class folders named by WordNet ids, for a model with {classes} outputs",
            f"all {classes}, whose order gives the indices",
            f"name folders by class index or class name, {_OR_LABELS}",
        )
    return Matched("sorted WordNet ids", {folder: index for index, folder in enumerate(sorted(folders))})


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").replace("-", " ").casefold().split())


def _unmatched(folders: Sequence[str], names: Sequence[str] | None, classes: int) -> ImageError:
    known = {_plain(name) for name in names or ()}
    strange = [folder for folder in folders if _plain(folder) not in known]
    more = f" and {len(strange) - 1} more" if len(strange) > 1 else ""
    expected = f"class indices from 0 to {classes - 1}"
    if not names:
        return ImageError(f"class folder '{strange[0]}'{more}", expected, f"rename them, {_OR_LABELS}")
    return ImageError(
        f"class folder '{strange[0]}'{more} is no class of the model",
        f"the bundle's class names, or {expected}",
        f"{did_you_mean(strange[0], names)} Rename them, {_OR_LABELS}",
    )


def _ambiguous(given: str) -> ImageError:
    return ImageError(given, "one class per folder", f"name folders by class index, {_OR_LABELS}")
