"""Maps as pictures: what colours stand for, and where a map lies on the image that it is of."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ztdeploy.core.preprocess_spec import ImageSize, PreprocessSpec
from ztdeploy.report.kit.colours import LESS, MORE, NOTHING, class_colour, signed_colour
from ztdeploy.report.kit.map_pictures import MapScale, furthest_channel, scale_table
from ztdeploy.target.runtime.preprocess import resize_and_crop, seen_box

sides = st.integers(30, 90)
shapes = st.builds(ImageSize, st.integers(20, 60), st.integers(20, 60))


@settings(deadline=None, max_examples=25)
@given(sides, sides, shapes, shapes, st.sampled_from(["center", "squash"]), st.sampled_from(["even", "down"]))
def test_a_map_lies_where_the_model_saw_it(width, height, size, resize, mode, rounding) -> None:
    """A map that says how bright each place is has the image's own brightness in its place."""
    spec = PreprocessSpec(
        image_size=size, resize=resize, crop_mode=mode, crop_rounding=rounding, mean=(0.5,) * 3, std=(0.5,) * 3
    )
    down, right = np.mgrid[:height, :width]
    brightness = 60 + 60 * down / height + 120 * right / width
    image = Image.fromarray(np.repeat(brightness[..., None].round().astype(np.uint8), 3, -1))
    seen = resize_and_crop(image, spec)[..., :1].transpose(2, 0, 1).astype(np.float32)
    scale = MapScale("none", low=0, high=255)
    placed = np.asarray(scale.on_image(seen, (width, height), seen_box(width, height, spec)))
    left, top, far, bottom = seen_box(width, height, spec)
    inside = (down + 0.5 > top) & (down + 0.5 < bottom) & (right + 0.5 > left) & (right + 0.5 < far)
    edge = np.minimum.reduce([abs(down + 0.5 - e) for e in (top, bottom)] + [abs(right + 0.5 - e) for e in (left, far)])
    assert ((placed[..., 3] == 255) == inside)[edge > 1].all()
    table = scale_table().astype(int)
    found = np.abs(placed[..., None, :3].astype(int) - table).sum(-1).argmin(-1)  # back from colours to brightness
    middle = (
        inside & (edge > 4) & (np.minimum(down, height - 1 - down) > 4) & (np.minimum(right, width - 1 - right) > 4)
    )
    assert (np.abs(found - brightness)[middle] < 6).all()


def test_colours_have_a_meaning_of_their_own() -> None:
    assert signed_colour([-1, 0, 1]).round().tolist() == [list(LESS), list(NOTHING), list(MORE)]
    colours = class_colour(np.arange(40))
    assert colours[0].tolist() == list(NOTHING)
    apart = np.linalg.norm(colours[:, None] - colours[None], axis=-1) + 999 * np.eye(40)
    assert apart[:12, :12].min() > 45  # the first classes, which most models have
    assert apart[:21, :21].min() > 25


def test_a_scale_is_that_of_the_baseline() -> None:
    dense = np.array([[[0.0, 10.0]], [[5.0, 5.0]]], np.float32)
    scale = MapScale.of(dense, "none")
    assert scale.layer(dense + 5).tolist() == [[0.5, 1.5]]  # lighter than the lightest is drawn as that
    assert np.asarray(scale.tile(dense + 5, (2, 1)))[0, 1].tolist() == scale_table()[-1].tolist()
    assert MapScale.of(dense, "none", 1).layer(dense).tolist() == [[0, 0]]
    assert MapScale.of(dense, "sigmoid").layer(dense)[0, 0] == 0.5
    assert MapScale.of(dense, "softmax").layer(dense).tolist() == [[1, 0]]
    assert furthest_channel(dense, dense + np.array([[[1]], [[-3]]]), "none") == 1


def test_a_difference_says_how_far_its_colours_reach() -> None:
    dense = np.zeros((1, 2, 2), np.float32)
    more, words = MapScale.of(dense, "sigmoid").difference(dense, dense + 9, (2, 2))
    assert np.asarray(more)[0, 0].tolist() == list(MORE)
    assert "0.50" in words
    classes = np.array([[[1.0, 0]], [[0, 1]]], np.float32)
    changed, words = MapScale.of(classes, "softmax").difference(classes, classes[::-1] * [[[1, 0]]], (2, 1))
    assert np.asarray(changed)[0].tolist() == [list(MORE), list(MORE)]
    assert "100.0 %" in words
