"""Calibration images that nothing can be judged on: refused, or said to be so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.errors import refused
from PIL import Image

from ztdeploy.core.errors import ImageError
from ztdeploy.core.preprocess_spec import PreprocessSpec
from ztdeploy.host.calibration import MOST, Seen, look_at
from ztdeploy.host.models.catalogue import ASSETS
from ztdeploy.target.evaluate.data import read_data

SPEC = PreprocessSpec(image_size=32, resize=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def noise(folder: Path, count: int, first: int = 0) -> Path:
    folder.mkdir(exist_ok=True)
    for index in range(first, first + count):
        pixels = np.random.default_rng(index).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"noise-{index:03d}.png")
    return folder


def plain(folder: Path, *values: int) -> Path:
    folder.mkdir(exist_ok=True)
    for value in values:
        Image.new("RGB", (40, 32), (value, 0, 255)).save(folder / f"plain-{value}.png")
    return folder


def look(folder: Path) -> Seen:
    return look_at(read_data(folder, None, 10), SPEC)


def test_enough_images_are_nothing_to_speak_of(tmp_path: Path) -> None:
    seen = look(noise(tmp_path / "photos", 20))
    assert seen.record.cautions == ()
    assert (seen.record.data, seen.record.images, seen.record.looked_at) == ("photos", 20, 20)
    assert seen.pixels.shape == (20, 32, 32, 3)
    first = np.asarray(Image.open(tmp_path / "photos" / "noise-000.png"))
    np.testing.assert_array_equal(seen.pixels[0], first)


def test_a_single_image_is_said_to_prove_nothing(tmp_path: Path) -> None:
    (caution,) = look(noise(tmp_path / "photos", 1)).record.cautions
    assert "a single image:" in caution
    assert "by chance" in caution


def test_copies_of_one_image_are_one(tmp_path: Path) -> None:
    folder = noise(tmp_path / "photos", 1)
    for name in ("a", "b"):
        (folder / f"{name}.png").write_bytes((folder / "noise-000.png").read_bytes())
    (caution,) = look(folder).record.cautions
    assert "a single image, 3 times" in caution


def test_few_images_are_said_to_be_coarse(tmp_path: Path) -> None:
    (caution,) = look(noise(tmp_path / "photos", 8)).record.cautions
    assert "8 different images: each is 12.5 points" in caution


def test_some_of_one_colour_are_counted(tmp_path: Path) -> None:
    folder = plain(noise(tmp_path / "photos", 22), 0, 7, 255)
    (caution,) = look(folder).record.cautions
    assert caution.startswith("3 of 25 images of 'photos' are of one colour")


@pytest.mark.parametrize(("values", "words"), [((9,), "the only image"), ((0, 1, 255), "each of 3 images")])
def test_all_of_one_colour_are_refused(tmp_path: Path, values: tuple[int, ...], words: str) -> None:
    folder = plain(tmp_path / "photos", *values)
    refused(lambda: look(folder), words, "is of one colour", kind=ImageError)


def test_unreadable_ones_are_counted_and_if_all_are_refused(tmp_path: Path) -> None:
    folder = noise(tmp_path / "photos", 21)
    (folder / "torn.png").write_bytes((folder / "noise-000.png").read_bytes()[:200])
    (caution,) = look(folder).record.cautions
    assert "1 of 22 images of 'photos' cannot be read" in caution
    assert "torn.png" in caution
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "a.jpg").write_bytes(b"")
    (empty / "b.jpg").write_bytes(b"not an image")
    refused(lambda: look(empty), "none of 2 images", "a.jpg", kind=ImageError)


def test_no_more_are_looked_at_than_take_a_moment() -> None:
    seen = look_at(read_data(ASSETS / "digits", None, 10), SPEC)
    assert (seen.record.images, seen.record.looked_at, len(seen.pixels)) == (360, MOST, MOST)
