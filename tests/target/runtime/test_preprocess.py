"""Pre-processing is held to timm's and torchvision's, bit for bit."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from ztdeploy.core.errors import ImageError
from ztdeploy.core.preprocess_spec import PreprocessSpec
from ztdeploy.target.runtime.images import read_image
from ztdeploy.target.runtime.preprocess import load_pixels, normalise, resize_and_crop

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


def spec(image_size=32, resize=36, crop_mode="center", interpolation="bicubic", statistics=IMAGENET):
    return PreprocessSpec(
        image_size=image_size, resize=resize, crop_mode=crop_mode, interpolation=interpolation, **statistics
    )


def random_image(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def timm_transform(of, crop_pct):
    data = pytest.importorskip("timm.data", reason="timm is not installed")
    assert math.floor(of.image_size.height / crop_pct) == of.resize.height, "the test's own crop_pct"
    return data.create_transform(
        input_size=(3, *of.image_size),
        is_training=False,
        interpolation=of.interpolation,
        mean=of.mean,
        std=of.std,
        crop_pct=crop_pct,
        crop_mode=of.crop_mode,
    )


def assert_same_bits(ours, theirs):
    assert ours.dtype == theirs.dtype == np.float32
    assert ours.shape == theirs.shape
    assert np.array_equal(ours.view(np.uint32), theirs.view(np.uint32))


# -------------------- against timm, torchvision


@pytest.mark.parametrize("crop_mode", ["center", "squash"])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize(("crop_pct", "resize"), [(0.875, 256), (0.9, 248), (1.0, 224), (1.5, 149)])
def test_equals_timm(crop_mode, interpolation, crop_pct, resize):
    of = spec(224, resize, crop_mode, interpolation)
    theirs = timm_transform(of, crop_pct)
    for size in ((500, 375), (375, 500), (301, 299), (90, 61), (248, 248), (1, 1)):
        image = random_image(*size)
        assert_same_bits(normalise(load_pixels([image], of), of)[0], theirs(image).numpy())


side = st.integers(1, 300)


@settings(max_examples=200, deadline=None)
@given(side, side, st.integers(1, 64), st.integers(1, 96), st.sampled_from(["center", "squash"]))
@example(1, 300, 32, 36, "center")
@example(300, 1, 32, 36, "center")
@example(7, 3, 33, 8, "center")  # padded on one axis by an odd number, cropped on the other
@example(37, 35, 32, 35, "center")  # halves, which are rounded to even
@example(39, 35, 32, 35, "center")
def test_geometry_equals_torchvision(width, height, image_size, resize, crop_mode):
    transforms = pytest.importorskip("torchvision.transforms", reason="torchvision is not installed")
    theirs = transforms.Compose(
        [
            transforms.Resize(
                (resize, resize) if crop_mode == "squash" else resize, transforms.InterpolationMode.BICUBIC
            ),
            transforms.CenterCrop(image_size),
        ]
    )
    image = random_image(width, height)
    ours = resize_and_crop(image, spec(image_size, resize, crop_mode))
    assert ours.dtype == np.uint8
    assert ours.shape == (image_size, image_size, 3)
    assert np.array_equal(ours, np.asarray(theirs(image)))


unit = st.floats(0, 1, width=32)


@settings(max_examples=50, deadline=None)
@given(mean=st.tuples(unit, unit, unit), std=st.tuples(*[st.floats(1e-3, 2)] * 3))
@example(**IMAGENET)
@example(**HALF)
@example(mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711))  # CLIP
def test_normalise_equals_torchvision_for_every_pixel_value(mean, std):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    transforms = pytest.importorskip("torchvision.transforms", reason="torchvision is not installed")
    of = spec(16, statistics={"mean": mean, "std": std})
    pixels = np.repeat(np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1), 3, axis=3)
    normalize = transforms.Normalize(mean=torch.tensor(mean), std=torch.tensor(std))
    assert_same_bits(normalise(pixels, of)[0], normalize(transforms.functional.to_tensor(pixels[0])).numpy())


@pytest.mark.realdata
@pytest.mark.parametrize("crop_mode", ["center", "squash"])
@pytest.mark.parametrize(("crop_pct", "resize"), [(0.875, 256), (0.9, 248)])
def test_equals_timm_on_photographs(crop_mode, crop_pct, resize):
    folder = os.environ.get("ZTDEPLOY_REALDATA")
    if not folder:
        pytest.skip("ZTDEPLOY_REALDATA does not name a folder with images/*.jpg")
    paths = sorted(Path(folder, "images").glob("*.jpg"))
    paths = paths[:: max(1, len(paths) // 40)]
    assert len(paths) >= 20, folder
    of = spec(224, resize, crop_mode)
    theirs = timm_transform(of, crop_pct)
    for path in paths:
        ours = normalise(load_pixels([read_image(path)], of), of)[0]
        with Image.open(path) as photo:
            assert_same_bits(ours, theirs(photo.convert("RGB")).numpy())


# -------------------- without torch


def test_what_already_fits_is_left_alone():
    image = random_image(32, 32)
    assert np.array_equal(resize_and_crop(image, spec(32, 32)), np.asarray(image))


def test_the_centre_is_cropped_and_halves_go_to_the_even_side():
    ramp = np.repeat(np.arange(12, dtype=np.uint8)[:, None, None] * np.ones((1, 12, 1), np.uint8), 3, axis=2)
    image = Image.fromarray(ramp)
    assert resize_and_crop(image, spec(8, 12))[:, 0, 0].tolist() == list(range(2, 10))
    assert resize_and_crop(image, spec(9, 12))[:, 0, 0].tolist() == list(range(2, 11))  # 1.5 -> 2
    assert resize_and_crop(image, spec(7, 12))[:, 0, 0].tolist() == list(range(2, 9))  # 2.5 -> 2


def test_a_crop_larger_than_the_image_is_padded_with_black():
    pixels = resize_and_crop(Image.new("RGB", (10, 10), "white"), spec(13, 10))
    assert pixels[1:11, 1:11].min() == 255
    assert pixels.astype(int).sum() == 10 * 10 * 3 * 255


def test_batch_keeps_the_order_and_the_images():
    images = [random_image(50, 40, seed) for seed in range(3)]
    before = [image.tobytes() for image in images]
    batch = load_pixels(images, spec())
    assert batch.shape == (3, 32, 32, 3)
    assert batch.dtype == np.uint8
    for image, pixels in zip(images, batch, strict=True):
        assert np.array_equal(pixels, resize_and_crop(image, spec()))
    assert [image.tobytes() for image in images] == before


def test_results_are_writable_and_contiguous():
    pixels = resize_and_crop(random_image(50, 40), spec())
    assert pixels.flags.writeable
    assert pixels.flags.c_contiguous
    assert normalise(pixels[None], spec()).flags.c_contiguous


def test_an_empty_batch():
    assert load_pixels([], spec()).shape == (0, 32, 32, 3)
    assert normalise(load_pixels([], spec()), spec()).shape == (0, 3, 32, 32)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_other_modes_are_refused(mode):
    with pytest.raises(ImageError, match="read_image"):
        resize_and_crop(Image.new(mode, (4, 4)), spec())


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((1, 32, 32, 3), np.float32),
        np.zeros((32, 32, 3), np.uint8),
        np.zeros((1, 3, 32, 32), np.uint8),
        np.zeros((1, 16, 16, 3), np.uint8),
    ],
)
def test_pixels_of_another_kind_are_refused(pixels):
    with pytest.raises(ImageError, match=r"uint8 \[B, 32, 32, 3\]"):
        normalise(pixels, spec())


# -------------------- extreme aspect ratios


@pytest.mark.parametrize("size", [(1, 5000), (5000, 1)])
def test_extreme_aspect_ratios(size):
    image = Image.new("RGB", size, "red")
    assert (resize_and_crop(image, spec(32, 36))[..., 0] == 255).all()  # 36 x 180,000 on the way
    assert (resize_and_crop(image, spec(224, 248, "squash"))[..., 0] == 255).all()
    with pytest.raises(ImageError, match=r"248 x 1240000|1240000 x 248"):
        resize_and_crop(image, spec(224, 248))


@pytest.mark.parametrize("crop_mode", ["center", "squash"])
@pytest.mark.parametrize("size", [(1, 3_000_000), (3_000_000, 1)])
def test_resizing_is_bounded_on_both_axes_and_on_the_way(size, crop_mode):
    with pytest.raises(ImageError, match="at most 100,000,000 pixels") as caught:
        resize_and_crop(Image.new("RGB", size), spec(224, 248, crop_mode))
    assert "\n" not in str(caught.value)
