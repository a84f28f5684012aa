"""Which images an evaluation takes, and what they are labelled as."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from helpers.errors import refused

from ztdeploy.core.errors import ImageError
from ztdeploy.target.evaluate.class_folders import match_folders
from ztdeploy.target.evaluate.data import EvalData, limited, read_data

NAMES = ["great white shark", "tench", "crane", "crane", "T-shirt"]


def touch(folder: Path, *names: str) -> Path:
    """Empty files: nothing is decoded here."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


def read(path: Path, names: Sequence[str] | None = NAMES, classes: int = 5) -> EvalData:
    return read_data(path, names, classes)


def no(path: Path, *fragments: str, names: Sequence[str] | None = NAMES, classes: int = 5) -> None:
    refused(lambda: read(path, names, classes), *fragments, kind=ImageError)


def labels_of(data: EvalData) -> dict[str, list[int]]:
    return {data.name_of(image): sorted(image.accepted) for image in data.images}


# -------------------- class folders


def test_folders_named_after_classes(tmp_path: Path) -> None:
    touch(tmp_path, "Great_White-Shark/b.JPG", "Great_White-Shark/a.png", "tench/more/c.webp", "tench/notes.txt")
    touch(tmp_path, "tench/.hidden.jpg", ".git/d.png", "empty/readme.md")
    data = read(tmp_path)
    assert (data.labelled, data.rule) == (True, "2 folders, by class names")
    expected = {"Great_White-Shark/a.png": [0], "Great_White-Shark/b.JPG": [0], "tench/more/c.webp": [1]}
    assert labels_of(data) == expected
    assert list(labels_of(data)) == list(expected), "in the order of names"
    assert data.ignored == 1


def test_folders_named_by_index(tmp_path: Path) -> None:
    data = read(touch(tmp_path, "0/a.png", "04/b.png", "3/c.png"))
    assert labels_of(data) == {"0/a.png": [0], "04/b.png": [4], "3/c.png": [3]}
    assert "class indices" in data.rule


def test_all_wordnet_ids_are_indices_in_their_order() -> None:
    folders = ["n01440764", "n00000007", "n15075141"]
    matched = match_folders(folders, ["a", "b", "c"], 3)
    assert matched.rule == "sorted WordNet ids"
    assert matched.indices == {"n00000007": 0, "n01440764": 1, "n15075141": 2}


def test_imagenets_indices_are_the_positions_of_sorted_ids() -> None:
    """What the rule for WordNet ids takes for granted."""
    info = pytest.importorskip("timm.data").ImageNetInfo()
    synsets = [info.index_to_label_name(index) for index in range(1000)]
    assert synsets == sorted(synsets)


@pytest.mark.parametrize(
    ("folders", "fragments"),
    [
        (["tench", "tensch"], ["'tensch' is no class", "did you mean 'tench'?"]),
        (["crane"], ["'crane'", "classes 2, 3", "labels.json"]),
        (["0", "5"], ["'5'", "0 to 4"]),
        (["n01440764", "n01443537"], ["2 class folders named by WordNet ids", "5 outputs"]),
        (["0", "1", "2", "3", "4", "00"], ["6 class folders", "5 outputs"]),
        (["train", "val"], ["'train' and 1 more"]),
    ],
)
def test_folders_that_are_refused(folders: list[str], fragments: list[str], tmp_path: Path) -> None:
    no(touch(tmp_path, *(f"{name}/a.png" for name in folders)), *fragments)


def test_numbers_that_are_names_of_other_classes_are_refused() -> None:
    refused(lambda: match_folders(["1"], ["1", "2"], 2), "class 0", "class 1", "by class index", kind=ImageError)
    assert match_folders(["1"], ["0", "1"], 2).indices == {"1": 1}


def test_without_class_names_indices_are_needed(tmp_path: Path) -> None:
    no(touch(tmp_path, "tench/a.png"), "'tench'", "indices from 0 to 4", names=None)


# -------------------- other folders


def test_a_flat_folder_has_no_labels(tmp_path: Path) -> None:
    data = read(touch(tmp_path, "b.png", "a.jpg", "c.txt", "sub/notes.txt"))
    assert (data.labelled, data.ignored) == (False, 1)
    assert labels_of(data) == {"a.jpg": [], "b.png": []}


def test_images_beside_class_folders_are_refused(tmp_path: Path) -> None:
    no(touch(tmp_path, "a.png", "tench/b.png"), "holds images (1) as well as folders of images (1)")


def test_nothing_to_evaluate(tmp_path: Path) -> None:
    no(tmp_path, "holds no images")
    no(touch(tmp_path, "a.txt", "sub/b.md"), "holds no images (1 other files)")
    no(tmp_path / "nowhere", "does not exist")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    no(tmp_path / "link", "does not exist")


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    touch(tmp_path, "elsewhere/a.png", "data/tench/b.png")
    (tmp_path / "data" / "tench" / "round").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "tench" / "self").symlink_to(tmp_path / "data" / "tench" / "self")
    (tmp_path / "data" / "T-shirt").symlink_to(tmp_path / "elsewhere")
    data = read(tmp_path / "data")
    assert labels_of(data)["T-shirt/a.png"] == [4]
    assert labels_of(data)["tench/b.png"] == [1]
    assert len({image.path.resolve() for image in data.images}) == 2


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_folder_that_cannot_be_read(tmp_path: Path) -> None:
    touch(tmp_path, "tench/a.png")
    (tmp_path / "tench").chmod(0)
    no(tmp_path, "cannot be read")
    (tmp_path / "tench").chmod(0o700)


# -------------------- labels


def test_a_labels_file_or_the_folder_that_it_lies_in(tmp_path: Path) -> None:
    file = tmp_path / "labels.json"
    file.write_text(json.dumps([{"file": "b.png", "indices": [1, 4]}, {"file": "a.png", "indices": [0]}]))
    for path in (file, tmp_path):
        data = read(path)
        assert (data.name, data.labelled) == (tmp_path.name, True)
        assert labels_of(data) == {"b.png": [1, 4], "a.png": [0]}


@pytest.mark.parametrize(
    ("entries", "fragments"),
    [
        ([("a.png", [5])], ["[5]", "'a.png'", "0 to 4"]),
        ([("a.png", [1, -1])], ["[-1, 1]"]),
        ([("a.png", [])], ["at least one index"]),
        ([("a.png", [1]), ("a.png", [2])], ["'a.png' twice"]),
        ([("../a.png", [1])], ["leaves the image folder"]),
    ],
)
def test_labels_that_are_refused(entries: list[tuple[str, list[int]]], fragments: list[str], tmp_path: Path) -> None:
    file = tmp_path / "labels.json"
    file.write_text(json.dumps([{"file": name, "indices": indices} for name, indices in entries]))
    no(file, *fragments)


# -------------------- a part of it


@pytest.fixture
def uneven(tmp_path: Path) -> EvalData:
    return read(touch(tmp_path, *(f"{c}/{i}.png" for c, count in enumerate((9, 2, 5)) for i in range(count))))


def drawn(data: EvalData) -> Counter[int]:
    return Counter(min(image.accepted) for image in data.images)


def test_a_limit_takes_classes_alike(uneven: EvalData) -> None:
    assert drawn(limited(uneven, 6)) == {0: 2, 1: 2, 2: 2}
    assert drawn(limited(uneven, 10)) == {0: 4, 1: 2, 2: 4}
    assert max(drawn(limited(uneven, 5)).values()) - min(drawn(limited(uneven, 5)).values()) == 1
    assert limited(uneven, None) == limited(uneven, 16) == limited(uneven, 99) == uneven


def test_a_limit_is_repeatable_grows_and_keeps_the_order(uneven: EvalData) -> None:
    sets = [limited(uneven, count).images for count in range(1, 17)]
    for smaller, larger in pairwise(sets):
        assert set(smaller) < set(larger)
    assert all(list(images) == [image for image in uneven.images if image in images] for images in sets)
    assert limited(uneven, 6) == limited(uneven, 6)
    assert len({limited(uneven, 6, seed).images for seed in range(8)}) > 1
