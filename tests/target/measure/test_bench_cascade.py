"""A cascade in a benchmark: compared by means, with the static variant that takes as long, on images like others."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.bench import configuration
from helpers.errors import refused

from ztdeploy.core.bundle import read_bundle
from ztdeploy.core.cascade import CASCADE, Guarantee
from ztdeploy.core.errors import ImageError, InputError
from ztdeploy.target.measure import worker
from ztdeploy.target.measure.bench import run_bench
from ztdeploy.target.measure.bench_report import BenchRequest, CascadeFacts, read_report
from ztdeploy.target.measure.comparing import cautions, compare
from ztdeploy.target.measure.plan import check_request, plan_bench
from ztdeploy.target.measure.same_latency import same_latencies
from ztdeploy.target.verdict import quality_of_guarantee, spoken

GUARANTEE = Guarantee(data="digits", data_sha256="0" * 64, images=1000, asked=0.98, failures=8, bound=0.985)
#: 80 of 100 images take 10 ms, the others 30.
CASCADED = configuration(CASCADE, [[10.0] * 8 + [30.0] * 2] * 10, gmacs=0.6, answered=(8, 2))
DENSE = configuration("dense", [[20.0] * 10] * 10)
PRUNED = configuration("keep-0.70", [[12.0] * 10] * 10, gmacs=0.6)


def report(*configurations, images=1000, expected=0.2):
    facts = CascadeFacts(
        stages=("keep-0.50", "dense"), shares=(1.0, expected), guarantee=GUARANTEE, data="photos", images=images
    )
    old = read_report(Path(__file__).with_name("bench_report_v1.json"))
    return old.model_copy(update={"configurations": configurations, "comparisons": (), "cascade": facts})


def test_means_are_compared():
    found = compare(CASCADED, DENSE, seed=0)
    assert found.speedup == pytest.approx(20 / 14), "the median would say 2"
    assert "by means" in found.verdict


@pytest.mark.parametrize(
    ("static", "between", "agreement", "gmacs"),
    [
        ([PRUNED, DENSE], ("keep-0.70", "dense"), 0.75 * 0.96 + 0.25, 0.7),
        ([DENSE], ("dense",), 1.0, 1.0),
        ([configuration("keep-0.30", [[5.0]] * 10, gmacs=0.3), PRUNED], ("keep-0.70",), 0.96, 0.6),
        ([configuration("keep-0.60", [[13.0]] * 10, gmacs=0.5), DENSE], ("keep-0.60", "dense"), None, 0.5 + 0.5 / 7),
    ],
)
def test_the_static_variant_of_the_same_latency(static, between, agreement, gmacs):
    other = configuration("dense", [[1.0]] * 10, batch=8)
    (found,) = same_latencies(report(*static, CASCADED, other), {"dense": 1.0, "keep-0.70": 0.96})
    assert (found.mean_ms, found.between) == (pytest.approx(14), between)
    assert found.gmacs == pytest.approx(gmacs)
    assert found.agreement == (None if agreement is None else pytest.approx(agreement))
    assert all(name in found.sentence for name in (*between, "98.5 %", "14 ms"))
    assert ("interpolated" in found.sentence) == (len(between) == 2)


@pytest.mark.parametrize(
    ("images", "expected", "unlike"),
    [(1000, 0.2, False), (1000, 0.05, True), (5, 0.05, False)],  # few images say nothing, however often they ran
)
def test_images_unlike_those_of_the_calibration(images, expected, unlike):
    found = {one.kind for one in cautions(report(DENSE, CASCADED, images=images, expected=expected), ())}
    assert ("unlike images" in found) == unlike


def test_a_guarantee_is_judged_by_its_bound():
    quality = quality_of_guarantee(GUARANTEE)
    assert quality.changed.value == pytest.approx(0.008)
    assert quality.changed.interval.high == pytest.approx(0.015)
    assert quality.changed.interval.low < 0.008
    assert spoken(CASCADE) == "the cascade"


def test_what_goes_together():
    def asked(**given):
        return lambda: check_request(BenchRequest(bundle=Path("bundle"), **given))

    refused(asked(cascade=True), "--cascade without --data", kind=InputError)
    refused(asked(cascade=True, governor=True), "both --cascade and --governor", kind=InputError)
    refused(asked(data=Path("photos")), "--data without --cascade", kind=InputError)


def test_a_bundle_without_a_cascade(digits_bundle, digit_images):
    request = BenchRequest(bundle=digits_bundle, cascade=True, data=digit_images[0].parent)
    refused(lambda: plan_bench(request, read_bundle(digits_bundle)), "has no cascade", kind=InputError)


def test_a_cascade_in_turns_with_a_static_variant(cascade_bundle, digit_images):
    quick = {"iterations": 12, "rounds": 6, "warmup_s": 0.0, "threads": (1,), "batches": (2,)}
    asked = BenchRequest(
        bundle=cascade_bundle, variants=("keep-0.50",), cascade=True, data=digit_images[0].parent, **quick
    )
    found = run_bench(asked.model_copy(update={"reference": False}))
    static, own = found.configurations
    assert (static.variant, static.answered, own.variant, own.failure) == ("keep-0.50", (), CASCADE, None)
    assert len(own.answered) == len(found.cascade.stages) == 3
    assert sum(own.answered) == 24, "each image of twelve calls at batch 2 once"
    assert own.gmacs >= static.gmacs
    assert [one.between for one in found.same_latency] == [("keep-0.50",)]


class Recording:
    """Stands for a runner: notes the images of each call."""

    def __init__(self, bundle):
        self.bundle, self.calls = bundle, []

    def infer(self, pixels):
        self.calls.append(pixels)


def test_each_call_takes_other_images_and_all_have_their_turn(digits_bundle, digit_images, tmp_path):
    for image in digit_images[:5]:
        shutil.copy(image, tmp_path)
    (tmp_path / "broken.png").write_bytes(b"no image")
    runner = Recording(read_bundle(digits_bundle))
    call = worker._call_on_images(runner, str(tmp_path), 2)
    for _ in range(6):
        call()
    assert all(len(pixels) == 2 for pixels in runner.calls)
    assert all(np.array_equal(one, again) for one, again in zip(runner.calls, runner.calls[3:], strict=False))
    assert len({image.tobytes() for pixels in runner.calls[:3] for image in pixels}) == 5
    for image in tmp_path.glob("*.png"):
        image.write_bytes(b"no image")
    refused(lambda: worker._call_on_images(runner, str(tmp_path), 1), "can be read", kind=ImageError)
