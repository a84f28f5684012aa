"""From notes about tokens to reasons by patch, and what is done where notes and engine part."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers.variants import plan, variant_of

from ztdeploy.core.errors import ParityError
from ztdeploy.report.kit.colours import scale_colour
from ztdeploy.report.show.tiles import (
    Grid,
    importance_shares,
    importance_tile,
    layer_tile,
    plain_tile,
)
from ztdeploy.target.evaluate.patches import follow
from ztdeploy.target.evaluate.reasons import Pair, agreed_layers, reasons_of
from ztdeploy.target.runtime.interface import Outputs

PATCHES, GRID = 16, Grid(4, 4)


#: Two layers: patches 1 and 3 go by similarity and 2 by importance; then 0 (token 1 of what is left) by importance.
KEPT = (np.array([[0, 1, *range(5, 17)]], np.int32), np.array([[0, *range(2, 14)]], np.int32))
LAYERS = (plan(2, 17, 14), plan(5, 14, 13))


def notes() -> dict[str, np.ndarray]:
    scores = np.arange(1, 18, dtype=np.float32)[None] ** 2
    survivors = np.ones((1, 17), np.float32)
    survivors[0, [2, 4]] = 0
    return {
        "blocks.2/prune/importance": scores * survivors,
        "blocks.2/prune/survivors": survivors,
        "blocks.2/prune/group": np.array([[4, 9, 2]]),
        "blocks.2/prune/partner": np.array([[16, 1, 0]]),
        "blocks.2/prune/similarity": np.array([[0.5, 0.1, 0.9]], np.float32),
        "blocks.5/prune/importance": np.arange(1, 15, dtype=np.float32)[None] ** 2,
    }


def outputs(more: dict[str, Any] | None = None, **changes: Any) -> Outputs:
    return replace(Outputs(np.zeros((1, 3), np.float32), KEPT, (), more or {}), **changes)


def explained(more: dict[str, Any], agreed: int = 2) -> Any:
    variant, noted = variant_of("zero-tprune", *LAYERS), outputs(more)
    layers = follow(variant, noted, 0, PATCHES)
    return layers, reasons_of(variant, layers, noted, 0, agreed)


def test_reasons_by_patch() -> None:
    _, (first, second) = explained(notes())
    assert (first.by_similarity, first.by_importance) == ((1, 3), (2,))
    assert first.pairs == (Pair(1, None, pytest.approx(0.9)), Pair(3, 15, 0.5))
    expected = np.arange(2.0, 18)
    expected[[1, 3]] = np.nan
    np.testing.assert_allclose(first.importance, expected / np.nanmean(expected), rtol=1e-6)
    assert (second.by_similarity, second.by_importance, second.pairs) == ((), (0,), ())
    assert np.flatnonzero(~np.isfinite(second.importance)).tolist() == [1, 2, 3]
    left = second.importance[[0, *range(4, 16)]]
    np.testing.assert_allclose(left, np.arange(2, 15) / np.arange(2, 15).mean(), rtol=1e-6)


def test_nothing_is_guessed_where_the_engine_chose_otherwise() -> None:
    other = outputs(kept=(KEPT[0], np.array([[0, 1, *range(3, 14)]], np.int32)))
    assert agreed_layers(outputs(), outputs(), 0) == 2
    assert agreed_layers(other, outputs(), 0) == 1
    first, second = explained(notes(), agreed=1)[1]
    assert first is not None
    assert second is None
    merged = [outputs(into=(np.array([[slot]], np.int32), np.array([[1]], np.int32))) for slot in (1, 2)]
    assert agreed_layers(merged[0], merged[0], 0) == 2
    assert agreed_layers(*merged, 0) == 0


def test_a_method_that_goes_by_similarity_alone() -> None:
    layer = plan(0, 17, 15, merges=True)
    stay = np.array([[0, *range(1, 15)]], np.int32)
    into = np.array([[1, 14]], np.int32)
    more = {"group": [[15, 16, 3]], "partner": [[1, 14, 2]], "similarity": [[0.25, 0.5, 0.75]]}
    noted = Outputs(
        np.zeros((1, 3), np.float32), (stay,), (into,), {f"blocks.0/prune/{k}": np.array(v) for k, v in more.items()}
    )
    variant = variant_of("tome", layer)
    (found,) = reasons_of(variant, follow(variant, noted, 0, PATCHES), noted, 0, 1)
    assert found is not None
    assert (found.by_similarity, found.by_importance, found.has_importance) == ((14, 15), (), False)
    assert found.pairs == (Pair(15, 13, 0.5), Pair(14, 0, 0.25))


def test_whose_place_a_fused_token_takes_has_gone_as_well() -> None:
    layer = plan(0, 17, 10, merges=True)
    stay, into = np.arange(10, dtype=np.int32)[None], np.full((1, 7), 4, np.int32)
    more = {"blocks.0/prune/importance": np.linspace(1, 2, 17)[None]}
    noted = Outputs(np.zeros((1, 3), np.float32), (stay,), (into,), more)
    variant = variant_of("evit", layer)
    (found,) = reasons_of(variant, follow(variant, noted, 0, PATCHES), noted, 0, 1)
    assert found is not None
    assert (found.by_similarity, found.by_importance) == ((), (3, *range(9, 16)))
    assert found.importance[0] == pytest.approx(
        more["blocks.0/prune/importance"][0, 1] / np.mean(np.linspace(1, 2, 17)[1:])
    )


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("importance", np.ones((1, 16))),
        ("importance", np.full((1, 17), np.nan)),
        ("survivors", np.ones((1, 18))),
        ("partner", np.array([[0, 1, 17]])),
        ("group", np.array([[0, 1, -1]])),
        ("group", np.array([[0.0, 1.0, 2.0]])),
        ("similarity", np.ones((1, 2))),
    ],
)
def test_notes_that_cannot_be_right(name: str, values: np.ndarray) -> None:
    with pytest.raises(ParityError, match="block 3 cannot be right"):
        explained({**notes(), f"blocks.2/prune/{name}": values})


def test_what_is_drawn_tells_reasons_apart() -> None:
    layers, reasons = explained(notes())
    plain = plain_tile(np.full((32, 32, 3), 128, np.uint8), GRID)
    pixels = np.asarray(layer_tile(plain, layers[0], GRID, replace(reasons[0], pairs=()))).astype(int)
    middles = pixels.reshape(4, 84, 4, 84, 3)[:, 42, :, 42].reshape(16, 3)
    blue, orange, kept = middles[1], middles[2], middles[5]
    np.testing.assert_array_equal(kept, 128)
    np.testing.assert_array_equal(blue, middles[3])
    assert blue[2] > blue[0] + 40
    assert orange[0] > orange[2] + 40
    later = np.asarray(layer_tile(plain, layers[1], GRID, reasons[1])).astype(int)[42, 84 + 42]
    assert np.ptp(later) < 20, "what went earlier has no colour"
    assert (np.asarray(layer_tile(plain, layers[0], GRID, reasons[0])) != pixels).any(), "lines to partners"
    scale = np.asarray(importance_tile((336, 336), layers[0], GRID, reasons[0])).reshape(4, 84, 4, 84, 3)[:, 42, :, 42]
    colours = scale.reshape(16, 3).astype(int)
    light = [int(colours[patch].sum()) for patch in (0, 2, 8, 15)]
    assert light == sorted(light)
    np.testing.assert_array_equal(colours[1], colours[3])


def test_the_scale_of_importance_grows_evenly_and_stays_on_the_screen() -> None:
    colours = scale_colour(np.linspace(0, 1, 64))
    assert colours.min() >= 0
    assert colours.max() <= 255
    linear = np.where(colours / 255 <= 0.04045, colours / 255 / 12.92, ((colours / 255 + 0.055) / 1.055) ** 2.4)
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    lightness = np.where(luminance > 0.008856, 116 * np.cbrt(luminance) - 16, 903.3 * luminance)
    steps = np.diff(lightness)
    assert steps.min() > 0.5 * steps.mean()
    assert steps.max() < 1.6 * steps.mean()


def test_shares_are_by_rank() -> None:
    found = importance_shares(np.array([5.0, np.nan, 1.0, 500.0, 1.0]))
    np.testing.assert_array_equal(found, [0.5, np.nan, 0, 1, 0])
    np.testing.assert_array_equal(importance_shares(np.array([3.0, 3.0])), [0, 0])
