"""Measuring: what comes out and what goes wrong. How long anything takes is tested nowhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from helpers.bundles import edit
from helpers.errors import refused
from helpers.processes import HANG_S

from ztdeploy.core.errors import EngineMismatchError, EnvironmentLacksError
from ztdeploy.target.measure.latency import Configuration, Measurement, Worker, measure_latency
from ztdeploy.target.measure.protocol import Order


def measurement(*rounds):
    return Measurement(Configuration(".", "dense", "cpu"), 1.0, 2.0, 3.0, [list(samples) for samples in rounds])


# -------------------- arithmetic, on made-up samples


def test_the_median_is_over_all_samples():
    assert measurement([1.0, 2.0], [9.0]).median_ms == 2.0
    assert measurement([1.0, 2.0], [3.0, 100.0]).median_ms == 2.5


def test_the_speedup_is_the_median_of_the_rounds_ratios():
    """The machine slows down threefold in the last round: a ratio per round does not see it."""
    slow = measurement([4.0, 4.0, 5.0], [4.0, 4.0, 4.0], [12.0, 12.0, 12.0])
    fast = measurement([2.0, 2.0, 9.0], [2.0, 2.0, 2.0], [6.0, 6.0, 6.0])
    assert fast.speedup_over(slow) == 2.0
    assert slow.speedup_over(fast) == 0.5
    assert fast.speedup_over(fast) == 1.0


def test_rounds_are_compared_in_pairs():
    with pytest.raises(ValueError, match="zip"):
        measurement([1.0]).speedup_over(measurement([1.0], [1.0]))


# -------------------- the real thing


def test_every_configuration_is_measured(digits_bundle, children):
    configurations = [
        Configuration(digits_bundle, "keep-0.50", "cpu", threads=1, batch=3),
        Configuration(digits_bundle, "dense", "cpu", threads=1),
    ]
    steps = []
    measured = measure_latency(configurations, rounds=2, iterations=3, progress=lambda *step: steps.append(step))
    assert [one.configuration for one in measured] == configurations
    for one in measured:
        assert [len(samples) for samples in one.rounds_ms] == [3, 3]
        assert all(sample > 0 for samples in one.rounds_ms for sample in samples)
        assert min(one.import_ms, one.load_ms, one.first_ms) > 0
        assert 20 < one.peak_rss_mb < 5000
    assert [what for what, _, _ in steps] == [
        "loading keep-0.50",
        "loading dense",
        *(f"measuring, round {turn} of 2" for turn in range(3)),
    ]
    assert all(done < total for _, done, total in steps)
    assert len({child.pid for child in children}) == 2
    assert [child.returncode for child in children] == [0, 0]


def test_nothing_to_measure():
    assert measure_latency([]) == []


def test_a_checkout_measures_from_any_folder(digits_bundle, tmp_path, monkeypatch):
    """`python /somewhere/cli.py quickstart`, not installed: the child must find the package as we did."""
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.chdir(tmp_path)
    (one,) = measure_latency([Configuration(digits_bundle, "dense", "cpu", threads=1)], rounds=1, iterations=1)
    assert len(one.rounds_ms) == 1


# -------------------- what goes wrong


@pytest.mark.parametrize(
    ("damage", "words"),
    [(b"", "has changed since the build"), (b"no graph", "has changed since the build"), (None, "ztdeploy verify")],
    ids=["empty-engine", "garbled-engine", "engine-without-weights"],
)
def test_a_broken_bundle_is_the_bundles_error(bundle_copy, damage, words, children):
    if damage is None:
        (bundle_copy / "graphs" / "weights.safetensors").write_bytes(b"")
    else:
        (bundle_copy / "graphs" / "dense.cpu.onnx").write_bytes(damage)
    refused(lambda: measure_latency([Configuration(bundle_copy, "dense", "cpu", 1)]), "'dense'", words)
    assert all(child.returncode is not None for child in children)


@pytest.mark.parametrize(("variant", "profile"), [("sparse", "cpu"), ("dense", "tpu"), ("dense", "jetson-orin")])
def test_what_the_bundle_does_not_hold_is_the_bundles_error(digits_bundle, variant, profile):
    refused(lambda: measure_latency([Configuration(digits_bundle, variant, profile, 1)]), f"'{variant}'")


def test_one_broken_configuration_ends_the_others(bundle_copy, children):
    (bundle_copy / "graphs" / "dense.cpu.onnx").write_bytes(b"")
    configurations = [Configuration(bundle_copy, name, "cpu", 1) for name in ("keep-0.50", "dense")]
    refused(lambda: measure_latency(configurations), "'dense'")
    assert len(children) == 2
    assert all(child.returncode is not None for child in children)


def test_a_process_that_dies_on_the_way_is_an_error(digits_bundle, children):
    """The kernel kills it for its memory, say. A broken pipe would pass for a reader that went away."""

    def kill(what, _done, _total):
        if what.startswith("measuring, round 1"):
            children[0].kill()
            children[0].wait()

    configuration = Configuration(digits_bundle, "dense", "cpu", 1)
    refused(
        lambda: measure_latency([configuration], rounds=2, iterations=1, progress=kill),
        "'dense' was killed by SIGKILL",
        "memory",
        kind=EnvironmentLacksError,
    )


def test_a_broken_engine_is_explained_by_what_it_said(bundle_copy):
    (bundle_copy / "graphs" / "dense.cpu.onnx").unlink()
    refused(lambda: measure_latency([Configuration(bundle_copy, "dense", "cpu", 1)]), "dense.cpu.onnx", "missing")


def test_the_worker_answers_one_line_per_request(digits_bundle):
    """Its protocol: JSON lines, and it ends when its input does."""
    done = subprocess.run(
        [sys.executable, "-m", "ztdeploy.target.measure.worker", str(digits_bundle), "dense", "cpu", "1", "1"],
        input='{"iterations": 2}\n{"iterations": 1}\n',
        capture_output=True,
        text=True,
        timeout=HANG_S,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    assert done.returncode == 0
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert set(lines[0]["ready"]) == {"process_ms", "import_ms", "load_ms", "first_ms"}
    assert lines[0]["ready"]["process_ms"] is None, "nobody said when the process was ordered"
    assert [len(line["samples_ms"]) for line in lines[1:]] == [2, 1]


def test_an_error_of_ours_comes_out_of_the_process_as_it_is(bundle_copy):
    """With its class, hence its exit code, and its remedy."""

    def age(manifest):
        for variant in manifest["variants"]:
            variant["engines"]["cpu"]["fingerprint"]["runtime_version"] = "0.1"

    configuration = Configuration(edit(bundle_copy, age), "dense", "cpu", 1)
    refused(lambda: measure_latency([configuration]), "'dense'", "0.1", "finalize", kind=EngineMismatchError)


def test_the_worker_counts_by_time_or_by_number(digits_bundle):
    with Worker(Configuration(digits_bundle, "keep-0.50", "cpu", threads=1)) as worker:
        assert worker.cold_start.process_ms is not None
        assert worker.cold_start.total_ms > worker.cold_start.import_ms + worker.cold_start.load_ms
        assert len(worker.measure(Order(seconds=0)).samples_ms) == 1, "at least one"
        assert len(worker.measure(Order(seconds=0.2, lead_in=1)).samples_ms) > 1
        assert len(worker.measure(Order(iterations=3, lead_in=2)).samples_ms) == 3


def test_peak_memory_is_the_workers_own(digits_bundle):
    """The kernel's `ru_maxrss` starts with what the parent had in memory when it forked."""
    ballast = bytearray(os.urandom(1)) * 600_000_000
    with Worker(Configuration(digits_bundle, "dense", "cpu", threads=1)) as worker:
        assert worker.measure(Order(iterations=1)).peak_rss_mb < 500
    assert len(ballast) == 600_000_000
