"""Values that a caller hands over: clear errors for what is none, whichever way it comes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.errors import refused

import ztdeploy
from ztdeploy.core import arguments
from ztdeploy.core.errors import ImageError, InputError, ScheduleError
from ztdeploy.core.keep_ratio import check_keep_ratio


class Odd:
    """An object that cannot even be shown."""

    def __repr__(self):
        raise RuntimeError("no")


NO_COUNT = [
    0,
    -1,
    2.5,
    2.0,
    arguments.THREADS.most + 1,
    10**4,
    10**20,
    10**5000,
    True,
    "2",
    b"2",
    None,
    float("nan"),
    float("inf"),
    [2],
    Odd(),
]


@pytest.mark.parametrize("value", NO_COUNT, ids=lambda value: type(value).__name__)
def test_threads_are_a_whole_number_above_none(digits_bundle, value):
    refused(lambda: arguments.threads(value), "threads = ", str(arguments.THREADS), kind=InputError)
    if value is not None:  # which means the default
        refused(lambda: ztdeploy.load(digits_bundle, threads=value), "threads = ", kind=InputError)


@pytest.mark.parametrize("value", [1, 2, np.int64(3), 64])
def test_numbers_of_threads_are_taken(value):
    assert arguments.threads(value) == value
    assert type(arguments.threads(value)) is int


@pytest.mark.parametrize("value", [-1, 1.5, True, "5", None, 10**20])
def test_top_is_a_whole_number(digits_bundle, digit_images, value):
    with ztdeploy.load(digits_bundle, threads=1) as runner:
        refused(lambda: runner(digit_images[0], top=value), "top = ", kind=InputError)


@pytest.mark.parametrize("value", ["zzz", "Speed", "", None, 3, True, ["speed"], b"speed"])
def test_memory_is_one_of_two_words(digits_bundle, value):
    refused(lambda: ztdeploy.load(digits_bundle, memory=value), "memory = ", "speed, shared", kind=InputError)


@pytest.mark.parametrize("value", [True, "0.7", [0.7], b"x", 1j, np.bool_(True), Odd()])
def test_a_keep_ratio_is_a_number(digits_bundle, value):
    refused(lambda: ztdeploy.load(digits_bundle, keep_ratio=value), "keep_ratio = ", "a number", kind=InputError)
    refused(lambda: check_keep_ratio(value), "keep ratio = ", "a number", kind=ScheduleError)
    with ztdeploy.load(digits_bundle, threads=1) as runner:
        refused(lambda: runner.switch(value), "keep_ratio = ", kind=InputError)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0, -0.5, 1.5, 10**400, np.float32(2)])
def test_a_keep_ratio_out_of_range_is_no_variants(digits_bundle, value):
    refused(
        lambda: ztdeploy.load(digits_bundle, keep_ratio=value), "keep ratio ", "one of: 0.7, 0.5, 1", kind=InputError
    )
    refused(lambda: check_keep_ratio(value), "keep ratio ", "(0, 1]", kind=ScheduleError)


@pytest.mark.parametrize("value", [None, b"x", 3, 2.5, True, ["bundle"], {}, Odd()])
def test_a_bundle_is_a_path(value):
    refused(lambda: ztdeploy.load(value), "bundle = ", "path of a folder", kind=InputError)


@pytest.mark.parametrize("value", ["", "nowhere", "a\0b", "x" * 5000, Path("/dev/null"), Path("/dev/null/x")])
def test_a_path_without_a_bundle_is_refused(value):
    refused(lambda: ztdeploy.load(value), "manifest.json", kind=InputError)


@pytest.mark.parametrize("value", ["sparse", "", "DENSE", "../dense", "x" * 10**5])
def test_an_unknown_variant_lists_those_there_are(digits_bundle, value):
    refused(lambda: ztdeploy.load(digits_bundle, variant=value), "one of: 0.7, 0.5, 1", kind=InputError)


@pytest.mark.parametrize("value", [3, b"dense", ["dense"], Path("dense")])
@pytest.mark.parametrize("name", ["variant", "profile"])
def test_names_are_text(digits_bundle, name, value):
    refused(lambda: ztdeploy.load(digits_bundle, **{name: value}), f"{name} = ", "text", kind=InputError)


@pytest.mark.parametrize("value", [None, 3, 2.5, object(), [None], [[]], {1: 2}])
def test_what_is_no_image_is_refused(digits_bundle, value):
    with ztdeploy.load(digits_bundle, threads=1) as runner:
        refused(lambda: runner(value), "an image of type", kind=ImageError)
        refused(lambda: runner.infer(value), "pixels of type", kind=ImageError)
