"""What is measured, and what is refused before anything is."""

from __future__ import annotations

import pytest
from helpers.bundles import edit
from helpers.errors import refused

from ztdeploy.core.bundle import read_bundle
from ztdeploy.core.errors import BundleError, InputError
from ztdeploy.core.kernel_files import usable_threads
from ztdeploy.target.measure.bench_report import BenchRequest
from ztdeploy.target.measure.plan import check_request, plan_bench


def planned(bundle, **given):
    plan = plan_bench(BenchRequest(bundle=bundle, **given), read_bundle(bundle))
    return [(one.report.variant, one.report.batch, one.report.threads, one.reference) for one in plan.entries]


def test_the_default_is_the_first_variant_against_dense(digits_bundle):
    threads = usable_threads()
    assert planned(digits_bundle) == [("dense", 1, threads, None), ("keep-0.70", 1, threads, 0)]


def test_all_at_every_batch_and_number_of_threads(digits_bundle):
    found = planned(digits_bundle, all_variants=True, batches=(1, 8), threads=(2, 1))
    assert found == [
        (variant, batch, threads, None if variant == "dense" else 3 * block)
        for block, (batch, threads) in enumerate([(1, 2), (1, 1), (8, 2), (8, 1)])
        for variant in ("dense", "keep-0.70", "keep-0.50")
    ]


def test_variants_by_ratio_and_name_each_once(digits_bundle):
    found = planned(digits_bundle, keep_ratios=(0.5, 0.5), variants=("keep-0.50", "keep-0.70"), threads=(1,))
    assert [variant for variant, *_ in found] == ["dense", "keep-0.50", "keep-0.70"]


def test_without_a_reference(digits_bundle):
    assert planned(digits_bundle, reference=False, threads=(1,)) == [("keep-0.70", 1, 1, None)]
    assert planned(digits_bundle, reference=False, all_variants=True, threads=(1,))[0] == ("dense", 1, 1, None)
    assert planned(digits_bundle, keep_ratios=(1.0,), threads=(1,)) == [("dense", 1, 1, None)]


def test_facts_and_sizes(digits_bundle):
    bundle = read_bundle(digits_bundle)
    plan = plan_bench(BenchRequest(bundle=digits_bundle), bundle)
    assert (plan.bundle.model, plan.bundle.profile, plan.bundle.backend) == ("vit_digits", "cpu", "onnxruntime")
    (dense, _) = plan.entries
    assert dense.report.engine_mb == pytest.approx((digits_bundle / "graphs/dense.cpu.onnx").stat().st_size / 1e6, 1e-2)
    assert dense.report.shared_weights_mb > dense.report.engine_mb > 0
    assert dense.report.gmacs == bundle.manifest.dense.gmacs


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"duration_s": 1.0, "iterations": 5}, ["both a duration of 1 s and 5 iterations"]),
        ({"duration_s": 0.0}, ["--duration 0"]),
        ({"duration_s": float("nan")}, ["--duration nan"]),
        ({"duration_s": float("inf")}, ["--duration inf"]),
        ({"warmup_s": -1.0}, ["--warmup -1"]),
        ({"rounds": 0}, ["--rounds = 0"]),
        ({"iterations": 0}, ["0 iterations in 10 rounds"]),
        ({"iterations": 9}, ["9 iterations in 10 rounds", "--iterations 10"]),
        ({"batches": (0,)}, ["--batch = 0"]),
        ({"batches": (1, 9)}, ["--batch 9", "at most 8"]),
        ({"threads": (0,)}, ["--threads = 0"]),
        ({"threads": (5000,)}, ["--threads = 5000", "from 1 to"]),
    ],
)
def test_requests_that_make_no_sense(request_, words, digits_bundle):
    refused(lambda: planned(digits_bundle, **request_), *words, kind=InputError)


def test_what_the_bundle_does_not_hold(digits_bundle):
    refused(lambda: planned(digits_bundle, keep_ratios=(0.6,)), "keep ratio 0.6", "0.7, 0.5, 1", kind=InputError)
    refused(lambda: planned(digits_bundle, variants=("sparse",)), "'sparse'", kind=InputError)
    refused(lambda: planned(digits_bundle, profile="tpu"), "'tpu'", kind=InputError)
    refused(
        lambda: planned(digits_bundle, profile="jetson-orin"), "no engine for profile 'jetson-orin'", kind=InputError
    )
    refused(
        lambda: planned(digits_bundle, profile="jetson-orin", threads=(1,)), "--threads", "on a GPU", kind=InputError
    )


def test_a_bundle_without_engines(bundle_copy):
    def strip(manifest):
        for variant in manifest["variants"]:
            variant["engines"] = {}

    refused(lambda: planned(edit(bundle_copy, strip)), "holds no engine", kind=InputError)


def test_a_fixed_batch(bundle_copy):
    def fix(manifest):
        for variant in manifest["variants"]:
            variant["graphs"]["cpu"]["batch"] = 4

    edit(bundle_copy, fix)
    assert [batch for _, batch, *_ in planned(bundle_copy)] == [4, 4]
    for batch in (1, 8):
        words = (f"--batch {batch}", "fixed at batch 4", f"build with --batch {batch}")
        refused(lambda batch=batch: planned(bundle_copy, batches=(batch,)), *words, kind=InputError)


def test_what_was_not_proved_is_not_measured(bundle_copy):
    file = bundle_copy / "graphs" / "keep-0.70.cpu.onnx"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    refused(lambda: planned(bundle_copy), "keep-0.70.cpu.onnx", "has changed", kind=BundleError)
    assert len(planned(bundle_copy, keep_ratios=(0.5,))) == 2, "others are not read"


def test_a_plain_request_is_fine(tmp_path):
    check_request(BenchRequest(bundle=tmp_path))
    check_request(BenchRequest(bundle=tmp_path, iterations=10, warmup_s=0))
