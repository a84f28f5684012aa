"""The rule that says what to deploy: borderline intervals, few images, no labels, embeddings, nothing that pays."""

from __future__ import annotations

import pytest

from ztdeploy.core.manifest import GateLimits
from ztdeploy.target.measure.bench_report import Comparison
from ztdeploy.target.measure.comparing import outcome_of
from ztdeploy.target.measure.statistics import Interval, wilson_interval
from ztdeploy.target.verdict import JudgedVariant, Quality, Spread, conclude, images_needed, standing


def between(low: float, high: float) -> Interval:
    return Interval(low=low, high=high, confidence=0.95)


def changed(count: int, images: int, top1: tuple[float, float, float] | None = None) -> Quality:
    """So many answers changed; top-1's change with its interval, in points."""
    figure = Spread(count / images, wilson_interval(count, images))
    change = None if top1 is None else Spread(top1[0] / 100, between(top1[1] / 100, top1[2] / 100))
    return Quality(images, figure, None, change)


def cosine(value: float, low: float, high: float, images: int = 100) -> Quality:
    return Quality(images, None, Spread(value, between(low, high)), None)


def maps(error: float, iou: tuple[float, float, float] | None = None, images: int = 100) -> Quality:
    """A mean error within 0.002, and a mean overlap with its interval."""
    overlap = None if iou is None else Spread(iou[0], between(iou[1], iou[2]))
    return Quality(images, None, None, None, Spread(error, between(error - 0.002, error + 0.002)), overlap)


def speed(value: float, low: float | None = None, high: float | None = None, rounds: int = 10) -> Comparison:
    interval = None if low is None or high is None else between(low, high)
    return Comparison(
        variant="keep-0.70",
        reference="dense",
        batch=1,
        threads=1,
        speedup=value,
        interval=interval,
        ratios=(value,) * rounds,
        work_ratio=1.6,
        outcome=outcome_of(interval),
        verdict="",
    )


FAST = speed(1.5, 1.45, 1.55)


@pytest.mark.parametrize(
    ("quality", "expected"),
    [
        (changed(26, 1000), "within"),
        (changed(40, 1000), "open"),  # 4.0 %, but up to 5.4
        (changed(60, 1000), "open"),  # 6.0 %, but from 4.7
        (changed(80, 1000), "beyond"),
        (changed(0, 72), "open"),
        (changed(0, 74), "within"),
        (changed(26, 1000, (-0.6, -1.7, 0.4)), "within"),  # nobody knows that it costs a point
        (changed(26, 1000, (-2.0, -3.0, -1.01)), "beyond"),  # that is known
        (changed(26, 1000, (-2.0, -3.0, -1.0)), "within"),
        (cosine(0.97, 0.95, 0.99), "within"),
        (cosine(0.95, 0.94, 0.96), "open"),
        (cosine(0.93, 0.92, 0.949), "beyond"),
        (maps(0.2, (0.96, 0.95, 0.97)), "within"),  # where maps overlap, that counts
        (maps(0.01, (0.95, 0.94, 0.96)), "open"),
        (maps(0.04), "within"),
        (maps(0.051), "open"),
        (maps(0.06), "beyond"),
    ],
)
def test_intervals_decide_and_not_figures(quality: Quality, expected: str) -> None:
    assert standing(quality) == expected


@pytest.mark.parametrize(("count", "images"), [(0, 20), (4, 200), (40, 1000), (60, 1000), (8, 100)])
def test_as_many_images_as_are_said_to_be_needed_decide(count: int, images: int) -> None:
    quality = changed(count, images)
    assert standing(quality) == "open"
    needed = images_needed(quality)
    assert needed is not None
    assert needed > images
    interval = wilson_interval(round(count / images * needed), needed)
    assert interval.high <= 0.051 or interval.low >= 0.049, "rounding to whole images aside"


def test_no_number_of_images_is_said_where_the_figure_is_the_limit() -> None:
    assert images_needed(changed(50, 1000)) is None
    assert images_needed(cosine(0.95, 0.94, 0.96)) is None
    assert images_needed(cosine(0.96, 0.94, 0.98, images=100)) in (400, 410)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"max_error": 0.02}, "within"),
        ({"max_error": 0.005}, "beyond"),
        ({"min_iou": 0.9}, "within"),
        ({"min_iou": 0.94}, "open"),
        ({"min_iou": 0.9, "max_error": 0.01}, "open"),
        ({"min_iou": 0.99, "max_error": 0.01}, "beyond"),
    ],
)
def test_maps_are_held_to_all_that_is_asked_of_them(asked: dict[str, float], expected: str) -> None:
    quality = maps(0.01, (0.94, 0.93, 0.95))
    assert standing(quality, 0.95, GateLimits(**asked)) == expected
    if expected == "open":
        assert images_needed(quality, 0.95, GateLimits(**asked)) is None, "it lies at a limit"


SLOW, EVEN, FEW = speed(0.9, 0.88, 0.93), speed(1.01, 0.98, 1.04), speed(1.5, rounds=3)
Given = list[tuple[str, Comparison | None, Quality | None]]
RULE: dict[str, tuple[Given, tuple[str, str | None], str]] = {
    "pays and is within": (
        [("keep-0.70", FAST, changed(26, 1000, (-0.6, -1.7, 0.4)))],
        ("deploy", "keep-0.70"),
        "keep 0.70 is 1.50 times as fast and changes 2.6 % of the answers (1.8 to 3.8); "
        "top-1 -0.6 points (-1.7 to +0.4): deploy.",
    ),
    "no labels": ([("keep-0.70", FAST, changed(26, 1000))], ("deploy", "keep-0.70"), "(1.8 to 3.8): deploy."),
    "embeddings": (
        [("keep-0.70", FAST, cosine(0.97, 0.96, 0.98))],
        ("deploy", "keep-0.70"),
        "a mean cosine of 0.9700 to the baseline (0.9600 to 0.9800)",
    ),
    "maps of yes and no": (
        [("keep-0.70", FAST, maps(0.01, (0.97, 0.96, 0.98)))],
        ("deploy", "keep-0.70"),
        "gives maps with a mean IoU of 0.9700 (0.9600 to 0.9800) and a mean error of 0.0100 (0.0080 to 0.0120): deploy",
    ),
    "maps of values": (
        [("keep-0.70", FAST, maps(0.2))],
        ("baseline", None),
        "gives maps with a mean error of 0.2000 (0.1980 to 0.2020): deploy the baseline, for the mean error must be at"
        " most 0.05.",
    ),
    "too few maps": (
        [("keep-0.70", FAST, maps(0.01, (0.96, 0.94, 0.98)))],
        ("open", "keep-0.70"),
        "100 images are too few to decide whether the mean IoU is at least 0.95; about 400 would do.",
    ),
    "the fastest of several": (
        [("keep-0.90", speed(1.1, 1.05, 1.15), changed(0, 1000)), ("keep-0.70", FAST, changed(26, 1000))],
        ("deploy", "keep-0.70"),
        "1.50 times",
    ),
    "a milder one where the fastest is open": (
        [("keep-0.90", speed(1.1, 1.05, 1.15), changed(0, 1000)), ("keep-0.70", FAST, changed(40, 1000))],
        ("deploy", "keep-0.90"),
        "1.10 times",
    ),
    "too few images": ([("keep-0.70", FAST, changed(1, 40))], ("open", "keep-0.70"), "40 images are too few"),
    "one image": ([("keep-0.70", FAST, changed(0, 1))], ("open", "keep-0.70"), "1 image is too few"),
    "at the limit": ([("keep-0.70", FAST, changed(50, 1000))], ("open", "keep-0.70"), "too near to the limit"),
    "nothing known of what changes": ([("keep-0.70", FAST, None)], ("open", "keep-0.70"), "ztdeploy eval"),
    "too much changes": ([("keep-0.50", FAST, changed(200, 1000))], ("baseline", None), "at most 5 % may change"),
    "a point of top-1": (
        [("keep-0.50", FAST, changed(26, 1000, (-2.0, -3.0, -1.5)))],
        ("baseline", None),
        "may fall by 1 point",
    ),
    "slower": ([("keep-0.70", SLOW, changed(0, 1000))], ("baseline", None), "does not pay"),
    "no difference": ([("keep-0.70", EVEN, changed(0, 1000))], ("baseline", None), "no gain was shown"),
    "too few rounds": ([("keep-0.70", FEW, changed(0, 1000))], ("open", "keep-0.70"), "3 rounds, too few"),
    "nothing to compare": ([], ("open", None), "no pruned variant"),
}


@pytest.mark.parametrize("name", RULE)
def test_the_rule(name: str) -> None:
    given, (decision, variant), words = RULE[name]
    found = conclude([JudgedVariant(one, 1.6, *known) for one, *known in given], timed=True)  # type: ignore[arg-type]
    assert (found.decision, found.variant) == (decision, variant)
    assert words in found.sentence
    assert found.sentence.endswith(".")
    assert found.sentence.count(". ") == 0, "one sentence"


def test_without_a_clock_compute_ranks_and_bench_is_named() -> None:
    found = conclude([JudgedVariant("keep-0.70", 1.6, None, changed(0, 1000))], timed=False)
    assert found.decision == "deploy"
    assert "38 % less compute" in found.sentence
    assert "ztdeploy bench" in found.sentence


def test_another_limit() -> None:
    candidate = JudgedVariant("keep-0.70", 1.6, FAST, changed(80, 1000))
    assert conclude([candidate], timed=True).decision == "baseline"
    assert conclude([candidate], timed=True, min_agreement=0.9).decision == "deploy"


def test_random_weights_say_nothing_of_answers() -> None:
    found = conclude([JudgedVariant("keep-0.70", 1.6, FAST, changed(0, 1000))], timed=True, random_weights=True)
    assert found.decision == "open"
    assert "random" in found.sentence
