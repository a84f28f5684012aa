"""Following tokens back to patches, against loops over single tokens, and what tiles look like."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.variants import plan, variant_of
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ztdeploy.report.show.contact_sheet import CHANGED, contact_sheet
from ztdeploy.report.show.drawing import ImageDrawing, LayerDrawing, VariantDrawing
from ztdeploy.report.show.page import sheet_paths
from ztdeploy.report.show.tiles import Grid, layer_tile, plain_tile
from ztdeploy.target.evaluate.patches import GONE, follow
from ztdeploy.target.runtime.interface import Outputs
from ztdeploy.target.runtime.postprocess import Label

GRID = Grid(4, 4)


def followed(variant, kept, into, patches):
    """One image through a variant's layers."""
    arrays = [tuple(np.array([one], np.int32) for one in layers) for layers in (kept, into)]
    return follow(variant, Outputs(np.zeros((1, 3), np.float32), *arrays), 0, patches)


def by_loops(kept, into, patches, prefix, fuses):
    """A token is a list: the patch in whose place it is (or None), and all patches in it."""
    tokens = [(None, set()) for _ in range(prefix)] + [(p, {p}) for p in range(patches)]
    result = []
    for stay, slots in zip(kept, into):  # noqa: B905
        slots = list(slots)
        left = [(tokens[t][0], set(tokens[t][1])) for t in stay]
        for index, (_, inside) in enumerate(tokens):
            if index in stay:
                continue
            slot = slots.pop(0)
            if slot >= 0:
                left[slot] = (None if fuses else left[slot][0], left[slot][1] | inside)
        tokens = left
        result.append(tokens)
    return result


@st.composite
def passes(draw):
    prefix, patches = draw(st.integers(0, 2)), draw(st.integers(2, 16))
    fuses, tokens = draw(st.booleans()), prefix + patches
    plans, kept, into = [], [], []
    for block in range(draw(st.integers(1, 4))):
        others = draw(st.permutations(range(prefix, tokens)))[: draw(st.integers(1, tokens - prefix))]
        stay = [*range(prefix), *sorted(others)]
        merges, gone = fuses or draw(st.booleans()), tokens - len(stay)
        lowest = prefix if fuses else -1
        slots = [draw(st.integers(lowest, len(stay) - 1).filter(lambda s: s < 0 or s >= prefix)) for _ in range(gone)]
        if fuses:
            slots = slots[:1] * gone
        plans.append(plan(block, tokens, len(stay), prefix=prefix, merges=merges))
        kept.append(stay)
        into.append(slots if merges else [GONE] * gone)
        tokens = len(stay)
    return plans, kept, into, patches, prefix, fuses


@given(passes())
@settings(max_examples=150, deadline=None)
def test_following_is_what_loops_find(case) -> None:
    plans, kept, into, patches, prefix, fuses = case
    merging = [slots for one, slots in zip(plans, into, strict=True) if one.merges]
    found = followed(variant_of("evit" if fuses else "tome", *plans), kept, merging, patches)
    for one, tokens in zip(found, by_loops(kept, into, patches, prefix, fuses), strict=True):
        places = [place for place, _ in tokens if place is not None]
        assert one.kept.tolist() == sorted(places)
        assert np.flatnonzero(one.stays).tolist() == sorted(places)
        for index, (_, inside) in enumerate(tokens):
            assert set(np.flatnonzero(one.holder == index).tolist()) == inside
        assert (one.holder == GONE).sum() == patches - sum(len(inside) for _, inside in tokens)
        expected = [sorted(inside) for place, inside in tokens if inside - {place}]
        assert [group.tolist() for group in one.groups] == expected


@pytest.fixture
def plain() -> Image.Image:
    return plain_tile(np.random.default_rng(3).integers(0, 256, (32, 32, 3), np.uint8), GRID)


def cells(tile: Image.Image, grid: int = 4) -> list[np.ndarray]:
    pixels = np.asarray(tile).astype(int)
    cell = len(pixels) // grid
    return [
        pixels[row * cell : (row + 1) * cell, column * cell : (column + 1) * cell]
        for row in range(grid)
        for column in range(grid)
    ]


def test_dropped_patches_are_dimmed_and_kept_ones_untouched(plain: Image.Image) -> None:
    stay = [0, 1, 2, 6, 7, 16]
    (one,) = followed(variant_of("zero-tprune", plan(0, 17, 6)), [stay], [], 16)
    for patch, (before, after) in enumerate(zip(cells(plain), cells(layer_tile(plain, one, GRID)), strict=True)):
        if patch + 1 in stay:
            np.testing.assert_array_equal(before, after)
        else:
            inner = after[8:-8, 8:-8]
            assert inner.std() < 0.4 * before[8:-8, 8:-8].std()
            assert inner.mean() < 100


def test_merged_patches_share_a_tint_inside_and_their_token_keeps_its_pixels(plain: Image.Image) -> None:
    stay = [t for t in range(17) if t not in (2, 12, 16)]
    slot = stay.index(1)
    (one,) = followed(variant_of("tome", plan(0, 17, 14, merges=True)), [stay], [[slot, slot, -1]], 16)
    before, after = cells(plain), cells(layer_tile(plain, one, GRID))
    assert [group.tolist() for group in one.groups] == [[0, 1, 11]]
    hues = [(after[p][8:-8, 8:-8] - after[p][8:-8, 8:-8].mean(-1, keepdims=True)).mean((0, 1)) for p in (1, 11)]
    assert np.abs(hues[0]).max() > 10
    np.testing.assert_allclose(hues[0], hues[1], atol=1.5)
    np.testing.assert_array_equal(before[0][8:-8, 8:-8], after[0][8:-8, 8:-8])
    assert (before[0] != after[0]).any()
    np.testing.assert_array_equal(before[5], after[5])
    dropped = after[15][8:-8, 8:-8]
    assert np.ptp(dropped.mean((0, 1))) < 15


def test_only_changed_answers_are_marked(plain: Image.Image) -> None:
    labels = {name: Label(index, name, 0.9, 1.0) for index, name in enumerate(("cat", "dog"))}

    def drawn(answer: str) -> ImageDrawing:
        row = VariantDrawing(
            name="keep-0.70",
            heading="keep-0.70",
            panels=(LayerDrawing(plain, None, "block 1 of 1: 9 of 17 tokens", None, ()),),
            answers=(("baseline", (labels["cat"],)), ("keep-0.70", (labels[answer],))),
            changed=answer != "cat",
            nearness=None,
            keys=(),
            merges=False,
            legend="",
            doubt=None,
        )
        return ImageDrawing("a.png", plain, GRID, (row,))

    assert [drawn(answer).rows[0].outcome for answer in labels] == ["still cat", "cat became dog"]
    marked = [(np.asarray(contact_sheet(drawn(answer))) == CHANGED).all(-1).any() for answer in labels]
    assert marked == [False, True]


def test_sheets_have_harmless_names_of_their_own() -> None:
    images = ["a.jpg", "x/A.png", "..", "../../etc/pass wd", "<b>.png", "-.png", "a" * 300 + ".png"]
    names = [path.name for path in sheet_paths([Path(image) for image in images], Path("out"))]
    assert names[:6] == [
        "a.show.png",
        "A-2.show.png",
        "image.show.png",
        "pass-wd.show.png",
        "b.show.png",
        "image-2.show.png",
    ]
    assert len(names[6]) < 100
    assert all(path.parent == Path("out") for path in sheet_paths([Path(image) for image in images], Path("out")))
