"""Images in the channels that a model takes, and of more than 8 bits."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
import pytest
from helpers.errors import refused
from PIL import Image

from ztdeploy.core.errors import ImageError, ImageWarning
from ztdeploy.core.preprocess_spec import PreprocessSpec
from ztdeploy.target.runtime.images import read_bands, read_image
from ztdeploy.target.runtime.preprocess import load_pixels

SIDE = 16


def spec(channels: int, bit_depth: int | None = None, size: object = SIDE, resize: object = SIDE) -> PreprocessSpec:
    return PreprocessSpec.model_validate(
        {
            **{"image_size": size, "resize": resize, "bit_depth": bit_depth},
            **{"mean": (0.5,) * channels, "std": (0.5,) * channels},
        }
    )


def noise(channels: int, height: int = SIDE, width: int = SIDE) -> np.ndarray:
    pixels = np.random.default_rng(channels).integers(0, 256, (height, width, channels), np.uint8)
    return pixels[..., 0] if channels == 1 else pixels


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 13])
def test_every_channel_arrives_as_it_was(channels: int, tmp_path: Path) -> None:
    """Fourth channels hold zeros here, which a premultiplied resize would take for transparency."""
    pixels = noise(channels)
    if channels == 4:
        pixels[:8, :, 3] = 0
    np.save(tmp_path / "a.npy", pixels)
    sources: list[object] = [pixels, tmp_path / "a.npy"]
    if channels in (1, 2, 3, 4):
        Image.fromarray(pixels).save(tmp_path / "a.png")
        Image.fromarray(pixels).save(tmp_path / "a.tif")
        sources += [tmp_path / "a.png", tmp_path / "a.tif", Image.open(tmp_path / "a.png")]
    for source in sources:
        found = load_pixels([source], spec(channels))  # type: ignore[list-item]
        assert found.shape == (1, SIDE, SIDE, channels)
        np.testing.assert_array_equal(found[0], pixels.reshape(SIDE, SIDE, channels))


@pytest.mark.parametrize("channels", [2, 4, 5])
def test_channels_are_resized_one_by_one(channels: int) -> None:
    pixels = noise(channels, 40, 30)
    found = load_pixels([pixels], spec(channels))[0]
    for channel in range(channels):
        alone = load_pixels([np.ascontiguousarray(pixels[..., channel])], spec(1))[0]
        np.testing.assert_array_equal(found[..., channel], alone[..., 0])


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "CMYK", "1"])
def test_grey_is_the_luma_of_colours(mode: str) -> None:
    picture = Image.fromarray(noise(3)).convert(mode)
    (found,) = read_bands(picture, spec(1))
    np.testing.assert_array_equal(np.asarray(found), np.asarray(picture.convert("RGB").convert("L")))


#: Images that have not the channels of the model: how many it takes, what is given, and a word of the refusal.
WRONG: dict[str, tuple[int, object, str]] = {
    "colour for four": (4, Image.fromarray(noise(3)), "3 channels"),
    "grey for four": (4, Image.fromarray(noise(1)), "1 channels"),
    "ink for four": (4, Image.fromarray(noise(4)).convert("RGB").convert("CMYK"), "CMYK"),
    "palette for four": (4, Image.fromarray(noise(3)).convert("P"), "mode P"),
    "premultiplied for four": (4, Image.fromarray(noise(4)).convert("RGBa"), "RGBa"),
    "colour for two": (2, Image.fromarray(noise(3)), "3 channels"),
    "colour for five": (5, Image.fromarray(noise(3)), ".npy"),
    "array of three for four": (4, noise(3), "[H, W, 4]"),
    "array of four for three": (3, noise(4), "[H, W, 3]"),
    "array of four for one": (1, noise(4), "[H, W]"),
    "flat array for four": (4, noise(1), "[H, W, 4]"),
    "16-bit array": (3, noise(3).astype(np.uint16), "uint16"),
    "float array": (4, noise(4) / 255, "float64"),
    "signs for grey": (1, Image.fromarray(np.full((4, 4), -5, np.int32)), "from -5"),
    "32 bits for grey": (1, Image.fromarray(np.full((4, 4), 1 << 20, np.int32)), "1048576"),
    "floats for grey": (1, Image.fromarray(np.ones((4, 4), np.float32)), "floating-point"),
}


@pytest.mark.parametrize("name", WRONG)
def test_no_channel_is_made_up(name: str) -> None:
    channels, source, word = WRONG[name]
    refused(lambda: read_bands(source, spec(channels)), word, kind=ImageError)  # type: ignore[arg-type]


def npy(array: np.ndarray, cut: int | None = None) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()[:cut]


#: Files that are no arrays of pixels.
DAMAGED: dict[str, bytes] = {
    "empty": b"",
    "no array": b"hello",
    "cut header": npy(noise(4), 20),
    "cut pixels": npy(noise(4), 300),
    "objects": npy(np.array([{"a": 1}], object)),
    "structured": npy(np.zeros(4, [("a", "u1")])),
    "column order": npy(np.asfortranarray(noise(4))),
    "no pixels": npy(np.zeros((0, 4, 4), np.uint8)),
    "scalar": npy(np.uint8(3)[()]),
    "four axes": npy(np.zeros((2, 2, 2, 4), np.uint8)),
    "16 bits": npy(np.zeros((4, 4, 4), np.uint16)),
    "a header of terabytes": npy(noise(4)).replace(b"(16, 16, 4), ", b"(99999999,9999,4),"),
    "a header that is code": npy(noise(4)).replace(b"(16, 16, 4)", b"exit(1)    "),
    "nested": b"\x93NUMPY\x01\x00\xf0\x0f" + b"(" * 4080,
    "version 9": b"\x93NUMPY\x09\x00" + bytes(100),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_arrays_are_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    path.write_bytes(DAMAGED[name])
    refused(lambda: read_bands(path, spec(4)), "a.npy", kind=ImageError)


def deep(high: int, kind: str, path: Path) -> Path:
    """Grey from 0 to `high`, as cameras and scanners write it."""
    values = np.linspace(0, high, SIDE * SIDE).reshape(SIDE, SIDE)
    if kind == "tiff, signed":
        Image.fromarray(values.astype(np.int32)).save(path.with_suffix(".tif"))
        return path.with_suffix(".tif")
    suffix = ".png" if kind == "png" else ".tif"
    Image.fromarray(values.astype(np.uint16)).save(path.with_suffix(suffix))
    return path.with_suffix(suffix)


@pytest.mark.parametrize("kind", ["png", "tiff", "tiff, signed"])
@pytest.mark.parametrize("bits", [10, 12, 14, 15])
def test_few_bits_in_a_file_of_16_are_told_and_can_be_scaled(bits: int, kind: str, tmp_path: Path) -> None:
    high = (1 << bits) - 1
    path = deep(high, kind, tmp_path / "grey")
    with pytest.warns(ImageWarning, match=rf"grey.*no value above {high}.*--bit-depth {bits}"):
        dark = np.asarray(read_image(path))
    assert dark.max() == high >> 8
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (scaled,) = read_bands(path, spec(1, bits))
    assert np.asarray(scaled).max() == 255
    refused(lambda: read_bands(path, spec(1, bits - 1)), f"from 0 to {high}", "--bit-depth", kind=ImageError)


def test_what_uses_its_range_is_not_doubted(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_image(deep(65535, "png", tmp_path / "bright"))
        read_image(deep(0, "png", tmp_path / "black"))
        read_image(Image.fromarray(noise(1)))


def test_few_bits_in_colours_of_16_are_told(tmp_path: Path) -> None:
    path = tmp_path / "deep.ppm"
    values = np.linspace(0, 4095, SIDE * SIDE * 3).astype(">u2")
    path.write_bytes(b"P6 %d %d 65535\n" % (SIDE, SIDE) + values.tobytes())
    with Image.open(path) as opened:
        if ";16" not in str(opened.tile):
            pytest.skip("this Pillow reads no colours of 16 bits from PPM")
    with pytest.warns(ImageWarning, match=r"deep.*about 4095"):
        read_image(path)


@pytest.mark.parametrize("mode", ["center", "squash"])
@pytest.mark.parametrize("size", [(64, 224), (96, 48), (33, 70)])
def test_rectangles_equal_timm(size: tuple[int, int], mode: str) -> None:
    data = pytest.importorskip("timm.data", reason="timm is not installed")
    resize = [int(side / 0.9) for side in size]
    of = spec(3, None, size, resize).model_copy(update={"crop_mode": mode})
    theirs = data.create_transform(
        **{"input_size": (3, *size), "is_training": False, "interpolation": "bicubic", "crop_pct": 0.9},
        **{"crop_mode": mode, "mean": of.mean, "std": of.std},
    )
    for width, height in ((500, 375), (90, 301), (64, 64), (7, 200)):
        image = Image.fromarray(noise(3, height, width))
        ours = (load_pixels([image], of)[0].astype(np.float32) / 255 - 0.5) / 0.5
        np.testing.assert_allclose(ours.transpose(2, 0, 1), theirs(image).numpy(), atol=1e-6)
