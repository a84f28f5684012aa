"""Images from outside: every mode and format comes out as upright RGB, everything else as an ImageError of one line."""

from __future__ import annotations

import io
import os
import re
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from helpers.errors import refused
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, ImageOps

from ztdeploy.core.errors import ImageError
from ztdeploy.target.runtime.images import MAX_PIXELS, read_image, single_images

ORIENTATION = 0x0112


def noise(width=40, height=24, channels=3, seed=0):
    """Smooth enough for JPEG, without any symmetry, so that each wrong rotation shows."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [128 + 80 * np.sin(x / (3 + c) + y / 7) + 40 * np.cos(y / (2 + c)) for c in range(channels)]
    jitter = np.random.default_rng(seed).integers(-6, 7, (height, width, channels))
    return np.clip(np.stack(waves, -1) + jitter, 0, 255).astype(np.uint8)


def photo(width=40, height=24):
    return Image.fromarray(noise(width, height))


def encoded(image, image_format, **options):
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def write(folder, name, data):
    path = folder / name
    path.write_bytes(data)
    return path


def pixels_of(image):
    assert image.mode == "RGB"
    return np.asarray(image)


def assert_refused(source, *fragments):
    """One line that says the value, the expectation and the fix."""
    with pytest.raises(ImageError) as caught:
        read_image(source)
    message = str(caught.value)
    assert "\n" not in message
    assert all(fragment in message for fragment in fragments), message
    assert caught.value.given
    assert caught.value.expected
    assert caught.value.fix
    return message


def png_header(width, height):
    """A PNG that claims a size and has a few bytes of pixel data."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


# -------------------- modes and formats


@pytest.mark.parametrize(
    ("image_format", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("PNG", {}),
        ("WEBP", {}),
        ("BMP", {}),
        ("GIF", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("PPM", {}),
    ],
)
def test_each_format_reads_as_pillow_reads_it(tmp_path, image_format, options):
    path = write(tmp_path, "image.bin", encoded(photo(), image_format, **options))  # the suffix is not trusted
    with Image.open(path) as opened:
        expected = np.asarray(opened.convert("RGB"))
    assert np.array_equal(pixels_of(read_image(path)), expected)
    assert np.array_equal(pixels_of(read_image(str(path))), expected)


def in_mode(mode):
    if mode == "RGBA":
        return Image.fromarray(noise(channels=4))
    if mode == "LA":
        return Image.fromarray(noise(channels=4)).convert("LA")
    if mode == "P":
        return photo().quantize(64)
    return photo().convert(mode)


@pytest.mark.parametrize(
    ("mode", "image_format"),
    [
        ("RGBA", "PNG"),
        ("RGBA", "WEBP"),
        ("LA", "PNG"),
        ("P", "PNG"),
        ("P", "GIF"),
        ("P", "BMP"),
        ("CMYK", "JPEG"),
        ("CMYK", "TIFF"),
        ("1", "PNG"),
        ("1", "TIFF"),
        ("1", "PPM"),
        ("L", "PNG"),
        ("L", "JPEG"),
    ],
)
def test_each_mode_converts_as_pillow_converts_it(tmp_path, mode, image_format):
    path = write(tmp_path, "image", encoded(in_mode(mode), image_format))
    with Image.open(path) as opened:
        expected = np.asarray(opened.convert("RGB"))
        assert np.array_equal(pixels_of(read_image(opened)), expected)
    assert np.array_equal(pixels_of(read_image(path)), expected)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV"])
def test_each_mode_in_memory_converts_as_pillow_converts_it(mode):
    image = in_mode(mode)
    assert np.array_equal(pixels_of(read_image(image)), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("transparency", [3, bytes(range(64))])
def test_palette_transparency_changes_no_colour_and_does_not_warn(tmp_path, transparency):
    path = write(tmp_path, "image.png", encoded(in_mode("P"), "PNG", transparency=transparency))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(path) as opened:
            assert "transparency" in opened.info
            expected = np.asarray(opened.convert("RGB"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(pixels_of(read_image(path)), expected)
        with Image.open(path) as opened:
            assert np.array_equal(pixels_of(read_image(opened)), expected)
            assert "transparency" in opened.info


def test_alpha_is_dropped_not_blended(tmp_path):
    image = Image.new("RGBA", (3, 2), (200, 100, 50, 0))
    path = write(tmp_path, "clear.png", encoded(image, "PNG"))
    assert (pixels_of(read_image(path)) == (200, 100, 50)).all()


def encoded_deep(values, image_format):
    if image_format == "PPM":  # not every Pillow writes it
        return b"P5 %d %d 65535\n" % values.shape[::-1] + values.astype(">u2").tobytes()
    return encoded(Image.fromarray(values), image_format)


@pytest.mark.parametrize("image_format", ["PNG", "TIFF", "PPM"])
def test_16_bit_greyscale_is_scaled_not_clipped(tmp_path, image_format):
    values = (np.arange(24 * 40, dtype=np.uint32) * 68).clip(0, 65535).astype(np.uint16).reshape(24, 40)
    path = write(tmp_path, "deep", encoded_deep(values, image_format))
    expected = np.repeat((values >> 8).astype(np.uint8)[..., None], 3, axis=2)
    assert len(np.unique(expected)) > 200
    assert np.array_equal(pixels_of(read_image(path)), expected)
    assert np.array_equal(pixels_of(read_image(Image.fromarray(values.astype(np.int32)))), expected)


@pytest.mark.parametrize("dtype", ["<u2", ">u2"])
def test_16_bit_images_of_either_byte_order(dtype):
    image = Image.fromarray(np.array([[0, 255, 256, 65535]], dtype))
    assert pixels_of(read_image(image))[0, :, 0].tolist() == [0, 0, 1, 255]


@pytest.mark.parametrize("values", [[[0, 70_000]], [[-1, 5]]])
def test_32_bit_values_beyond_16_bits_are_refused(values):
    assert_refused(Image.fromarray(np.array(values, np.int32)), "0 to 65535")


def test_floating_point_images_are_refused(tmp_path):
    image = Image.fromarray(np.ones((2, 2), np.float32))
    assert_refused(image, "floating-point")
    assert_refused(write(tmp_path, "float.tif", encoded(image, "TIFF")), "floating-point", "float.tif")


@pytest.mark.parametrize("image_format", ["GIF", "TIFF", "WEBP", "PNG"])
def test_the_first_of_several_frames_is_read(tmp_path, image_format):
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if image_format == "WEBP" else {}
    data = encoded(frames[0], image_format, save_all=True, append_images=frames[1:], **options)
    path = write(tmp_path, "frames", data)
    with Image.open(path) as opened:
        assert opened.n_frames == 3
    assert (pixels_of(read_image(path)) == (255, 0, 0)).all()


def test_a_pil_image_is_taken_at_its_current_frame(tmp_path):
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "lime")]
    path = write(tmp_path, "frames.gif", encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    with Image.open(path) as opened:
        opened.seek(1)
        assert (pixels_of(read_image(opened)) == (0, 255, 0)).all()
        assert opened.tell() == 1


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "BMP", "GIF", "PPM", "TIFF", "WEBP"])
def test_one_pixel(tmp_path, image_format):
    path = write(tmp_path, "dot", encoded(Image.new("RGB", (1, 1), "white"), image_format))
    assert (pixels_of(read_image(path)) == 255).all()


def test_formats_that_are_not_listed_are_refused(tmp_path):
    for image_format in ("ICO", "TGA", "PCX", "JPEG2000"):
        try:
            data = encoded(photo(), image_format)
        except (OSError, KeyError):
            continue  # this Pillow was built without it
        assert_refused(write(tmp_path, f"image.{image_format}", data), "JPEG, PNG")


# -------------------- orientation


def exif_of(orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


@pytest.mark.parametrize(
    ("image_format", "orientation"),
    [
        pytest.param(
            image_format, orientation, marks=[] if image_format == "JPEG" or orientation == 6 else pytest.mark.long
        )
        for image_format in ("JPEG", "PNG", "WEBP", "TIFF")
        for orientation in range(1, 9)
    ],
)
def test_each_exif_orientation(tmp_path, image_format, orientation):
    path = write(tmp_path, "turned", encoded(photo(), image_format, exif=exif_of(orientation)))
    with Image.open(path) as opened:
        expected = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
    upright = read_image(path)
    assert np.array_equal(pixels_of(upright), expected)
    assert upright.size == ((24, 40) if orientation >= 5 else (40, 24))
    with Image.open(path) as opened:
        assert np.array_equal(pixels_of(read_image(opened)), expected)


def test_a_turned_photo_equals_the_upright_one(tmp_path):
    upright = photo(48, 32)
    turned = upright.transpose(Image.Transpose.ROTATE_90)  # a camera on its side, and the tag that says so
    turned_path = write(tmp_path, "turned.png", encoded(turned, "PNG", exif=exif_of(6)))
    assert np.array_equal(pixels_of(read_image(turned_path)), np.asarray(upright))
    turned_path = write(tmp_path, "turned.jpg", encoded(turned, "JPEG", quality=100, subsampling=0, exif=exif_of(6)))
    difference = pixels_of(read_image(turned_path)).astype(int) - np.asarray(upright)
    assert abs(difference).max() <= 4  # JPEG


def test_orientation_is_applied_once(tmp_path):
    path = write(tmp_path, "turned.jpg", encoded(photo(), "JPEG", exif=exif_of(6)))
    once = read_image(path)
    twice = read_image(once)
    assert once.size == twice.size == (24, 40)
    assert np.array_equal(pixels_of(once), pixels_of(twice))


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"]
)
def test_malformed_exif_counts_as_none(tmp_path, exif):
    path = write(tmp_path, "odd.jpg", encoded(photo(), "JPEG", exif=exif))
    assert read_image(path).size == (40, 24)


@pytest.mark.parametrize("orientation", [0, 9, 255])
def test_unknown_orientations_count_as_none(tmp_path, orientation):
    path = write(tmp_path, "odd.jpg", encoded(photo(), "JPEG", exif=exif_of(orientation)))
    assert read_image(path).size == (40, 24)


# -------------------- PIL images and arrays


def test_a_given_pil_image_is_copied_and_left_alone():
    given_image = photo()
    before = given_image.tobytes()
    given_image.info["exif"] = exif_of(6).tobytes()
    read_image(given_image).putpixel((0, 0), (1, 2, 3))
    assert given_image.tobytes() == before
    assert given_image.size == (40, 24)
    assert "exif" in given_image.info


def test_a_closed_pil_image_is_refused(tmp_path):
    with Image.open(write(tmp_path, "image.png", encoded(photo(), "PNG"))) as opened:
        pass
    assert_refused(opened, "PIL image")


def test_arrays():
    colour, grey = noise(), noise(channels=1)[..., 0]
    assert np.array_equal(pixels_of(read_image(colour)), colour)
    assert np.array_equal(pixels_of(read_image(colour[::-1, ::2])), colour[::-1, ::2])  # a view with strides
    assert np.array_equal(pixels_of(read_image(grey)), np.repeat(grey[..., None], 3, axis=2))
    image = read_image(grey)
    grey[:] = 0
    assert np.asarray(image).any()  # a copy


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4), bool),
        np.zeros((4, 4, 3), np.int64),
        np.zeros((4, 4), np.uint16),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 1), np.uint8),
        np.zeros((3, 4, 4), np.uint8),
        np.zeros((1, 4, 4, 3), np.uint8),
        np.zeros(4, np.uint8),
        np.zeros((), np.uint8),
        np.array(["a"]),
    ],
)
def test_other_arrays_are_refused(array):
    assert_refused(array, str(array.dtype), str(list(array.shape)), "uint8")


@pytest.mark.parametrize("shape", [(0, 4, 3), (4, 0, 3), (0, 0)])
def test_arrays_without_pixels_are_refused(shape):
    assert_refused(np.zeros(shape, np.uint8), "at least 1 x 1")


def test_a_pil_image_without_pixels_is_refused():
    assert_refused(Image.new("RGB", (0, 5)), "0 x 5")


@pytest.mark.parametrize("source", [None, 3, {"image": 1}, [[1, 2]], io.BytesIO()])
def test_other_sources_are_refused(source):
    assert_refused(source, type(source).__name__, "path")
    if not isinstance(source, list):
        refused(lambda: single_images(source), type(source).__name__, "path", kind=ImageError)
    refused(lambda: single_images([source]), type(source).__name__, "path", kind=ImageError)


def test_bytes_are_read_like_the_file_that_they_come_from(tmp_path):
    path = write(tmp_path, "image.png", encoded(photo(), "PNG"))
    assert np.array_equal(pixels_of(read_image(path.read_bytes())), pixels_of(read_image(path)))
    assert_refused(b"image.png", "9 bytes", "not an image")


# -------------------- several images


class Tensor:
    """As PyTorch's: it gives an array once it has no gradient and lies in memory."""

    def __init__(self, pixels, ready=False):
        self.pixels, self.ready = pixels, ready

    def detach(self):
        return Tensor(self.pixels)

    def cpu(self):
        return Tensor(self.pixels, ready=True)

    def __array__(self, dtype=None, copy=None):
        if not self.ready:
            raise TypeError("call .cpu() first")
        return self.pixels


def test_images_as_people_have_them(tmp_path):
    """Whatever they come in, the same images come out in the same order."""
    batch = np.stack([noise(), noise()[::-1]])
    folder = tmp_path / "folder"
    (folder / "below").mkdir(parents=True)
    Image.fromarray(batch[0]).save(folder / "below" / "one.png")
    Image.fromarray(batch[1]).save(folder / "two.png")
    write(folder, ".hidden.png", b"")
    write(folder, "notes.txt", b"")
    paths = [folder / "below" / "one.png", folder / "two.png"]
    for source in (
        batch,
        Tensor(batch),
        list(batch),
        [batch[:1], batch[1]],
        (Tensor(one) for one in batch),
        folder,
        str(folder),
        [folder],
        [*map(str, paths)],
        np.array([*map(str, paths)], object),
        [bytearray(paths[0].read_bytes()), memoryview(paths[1].read_bytes())],
        [Image.open(paths[0]), paths[1].read_bytes()],
    ):
        found = single_images(source)
        assert len(found) == 2
        for one, expected in zip(found, batch, strict=True):
            assert np.array_equal(pixels_of(read_image(one)), expected), source
    assert single_images([]) == single_images(batch[:0]) == []
    assert single_images(paths[0]) == [paths[0]]
    assert (
        len(single_images(batch[..., :1], channels=1)) == len(single_images(np.zeros((2, 4, 4, 7), np.uint8), 7)) == 2
    )


@pytest.mark.parametrize(
    ("pixels", "words"),
    [
        (np.zeros((2, 4, 4, 3), np.float32), "float32 [2, 4, 4, 3] uint8 [N, H, W, 3] ahead of any normalisation"),
        (np.zeros((4, 4, 3), np.float64), "float64 [4, 4, 3] uint8 [H, W, 3] (255 * array).round()"),
        (np.zeros((3, 4, 4), np.uint8), "[3, 4, 4] uint8 [H, W, 3] array.transpose(1, 2, 0)"),
        (np.zeros((2, 3, 4, 4), np.uint8), "[2, 3, 4, 4] array.transpose(0, 2, 3, 1)"),
        (np.zeros((2, 3, 4, 4), np.float32), "float32 [2, 3, 4, 4] array.transpose(0, 2, 3, 1), and convert it"),
        (np.zeros((4, 4, 4), np.uint8), "[4, 4, 4] uint8 [H, W, 3] [H, W] [N, H, W, 3]"),
        (np.zeros((1, 2, 4, 4, 3), np.uint8), "[1, 2, 4, 4, 3] uint8 [N, H, W, 3]"),
        (np.zeros((4, 4, 3), np.int64), "int64 uint8 8 bits"),
    ],
)
def test_arrays_of_another_kind_are_refused_with_what_to_do(pixels, words):
    fragments = re.findall(r"\[[^]]*\]|array\.transpose\([^)]*\)|\S+", words)
    for source in (pixels, Tensor(pixels), [pixels]):
        refused(lambda source=source: single_images(source), *fragments, kind=ImageError)


def test_a_folder_without_images_is_refused(tmp_path):
    write(tmp_path, "notes.txt", b"")
    refused(lambda: single_images(tmp_path), "holds no images (1 other files)", kind=ImageError)


# -------------------- files that are no images


def test_paths_that_name_no_image(tmp_path):
    assert_refused(tmp_path / "no.jpg", "no.jpg", "does not exist")
    assert_refused("", "folder")
    assert_refused(tmp_path, "is a folder")
    assert_refused(write(tmp_path, "empty.jpg", b""), "empty.jpg", "0 bytes")
    assert_refused(write(tmp_path, "text.jpg", b"not an image\n" * 50), "text.jpg", "not an image")
    assert_refused(write(tmp_path, "a\nb.jpg", b"x"), "not an image")
    (tmp_path / "link.jpg").symlink_to(tmp_path / "gone.jpg")
    assert_refused(tmp_path / "link.jpg", "link to nothing")
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    assert_refused(tmp_path / "loop.jpg", "loop.jpg")
    assert_refused(tmp_path / "text.jpg" / "inside.jpg", "cannot be read")
    assert_refused(tmp_path / ("x" * 300), "cannot be read")
    assert_refused("nul\0byte.jpg", "nul")


def test_a_link_to_an_image_is_read(tmp_path):
    path = write(tmp_path, "image.png", encoded(photo(), "PNG"))
    (tmp_path / "link").symlink_to(path)
    assert np.array_equal(pixels_of(read_image(tmp_path / "link")), noise())


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_a_pipe_is_refused_without_waiting_for_a_writer(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    assert_refused(tmp_path / "pipe.jpg", "it is a FIFO")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read every file")
def test_a_file_without_permission_is_refused(tmp_path):
    path = write(tmp_path, "secret.png", encoded(photo(), "PNG"))
    path.chmod(0)
    assert_refused(path, "permission is denied")


@pytest.mark.parametrize(
    "fraction", [0.02, 0.5, *(pytest.param(other, marks=pytest.mark.long) for other in (0.1, 0.3, 0.7, 0.9, 0.97))]
)
@pytest.mark.parametrize(
    ("image_format", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("PNG", {}),
        ("BMP", {}),
        ("GIF", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("WEBP", {}),
        ("PPM", {}),
    ],
)
def test_truncated_files_are_refused(tmp_path, image_format, options, fraction):
    data = encoded(photo(80, 60), image_format, **options)
    path = write(tmp_path, f"cut.{image_format.lower()}", data[: int(len(data) * fraction)])
    assert_refused(path, path.name)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), image_format=st.sampled_from(["JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM"]))
def test_damaged_files_are_read_or_refused_but_nothing_else(tmp_path_factory, data, image_format):
    content = bytearray(encoded(photo(), image_format))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, min(len(content) - 1, 200)))] = data.draw(st.integers(0, 255))
    path = write(tmp_path_factory.getbasetemp(), "damaged", bytes(content))
    try:
        image = read_image(path)
    except ImageError as error:
        assert "\n" not in str(error)  # noqa: PT017  (either outcome is right)
    else:
        assert image.mode == "RGB"


# -------------------- size limit


@pytest.mark.parametrize("pillow_limit", ["default", None, 10**12])
def test_a_gigapixel_header_is_refused_before_decoding(tmp_path, monkeypatch, pillow_limit):
    if pillow_limit != "default":
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pillow_limit)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    assert_refused(write(tmp_path, "bomb.png", png_header(40_000, 40_000)), "bomb.png", "at most 100,000,000 pixels")


@pytest.mark.parametrize("action", ["ignore", "error", "default"])
def test_the_limit_does_not_depend_on_warning_filters(tmp_path, monkeypatch, action):
    monkeypatch.setattr(
        Image, "MAX_IMAGE_PIXELS", MAX_PIXELS * 3 // 4
    )  # Pillow warns from here, and raises at twice this
    path = write(tmp_path, "large.png", png_header(10_001, 10_000))
    with warnings.catch_warnings(record=True):
        warnings.simplefilter(action)
        assert_refused(path, "at most 100,000,000 pixels")


def test_the_limit_holds_for_every_source(monkeypatch, tmp_path):
    monkeypatch.setattr("ztdeploy.target.runtime.images.MAX_PIXELS", 40 * 24 - 1)
    path = write(tmp_path, "image.png", encoded(photo(), "PNG"))
    for source in (path, photo(), noise()):
        assert_refused(source, "40 x 24", "at most 959 pixels")
    monkeypatch.setattr("ztdeploy.target.runtime.images.MAX_PIXELS", 40 * 24)
    for source in (path, photo(), noise()):
        assert read_image(source).size == (40, 24)


def test_a_lower_limit_of_the_process_holds_too(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert_refused(write(tmp_path, "image.png", encoded(photo(), "PNG")), "too large")


# -------------------- nothing left behind


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc")
def test_files_are_closed_and_process_wide_settings_stay(tmp_path):
    good = [write(tmp_path, f"good.{f}", encoded(photo(), f)) for f in ("JPEG", "PNG", "GIF", "TIFF", "WEBP")]
    bad = [write(tmp_path, f"bad.{i}", p.read_bytes()[:-100]) for i, p in enumerate(good)]
    bad += [write(tmp_path, "text", b"text"), write(tmp_path, "bomb", png_header(40_000, 40_000))]
    read_image(good[0])  # loads Pillow's plugins
    before = (len(os.listdir("/proc/self/fd")), Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)  # noqa: PTH208
    filters = list(warnings.filters)
    for path in good:
        read_image(path)
    for path in bad:
        assert_refused(path)
    after = (len(os.listdir("/proc/self/fd")), Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)  # noqa: PTH208
    assert after == before
    assert warnings.filters == filters
