"""Measuring: what comes out and what goes wrong. How long anything takes is tested nowhere."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.bundles import edit
from helpers.errors import refused
from helpers.processes import HANG_S, started, wait_for

from ztdeploy.core.errors import BundleError, EngineMismatchError, EnvironmentLacksError, InputError
from ztdeploy.core.kernel_files import table
from ztdeploy.target.measure.bench_report import ColdStart
from ztdeploy.target.measure.orders import Refusal, Timing, TimingOrder, Worker
from ztdeploy.target.measure.turns import Configuration, measure_latency
from ztdeploy.target.measure.worker import reply


def worker_of(configuration: Configuration) -> Worker:
    return Worker(configuration.variant, configuration.command())


def test_every_configuration_is_measured(digits_bundle, children):
    configurations = [
        Configuration(digits_bundle, "keep-0.50", "cpu", threads=1, batch=3),
        Configuration(digits_bundle, "dense", "cpu", threads=1),
    ]
    steps = []
    measured = measure_latency(configurations, rounds=2, iterations=3, progress=lambda *step: steps.append(step))
    assert [one.subject for one in measured] == configurations
    for one in measured:
        assert [turn.round for turn in one.turns] == [0, 1]
        assert [len(turn.samples_ms) for turn in one.turns] == [3, 3]
        assert all(sample > 0 for turn in one.turns for sample in turn.samples_ms)
        assert min(one.start.import_ms, one.start.load_ms, one.start.first_ms) > 0
        assert 20 < one.peak_rss_mb < 5000
    first, _ = measured
    assert first.speedup_over(first) == 1
    assert [what for what, _, _ in steps] == [
        *(f"{what} {name}" for what in ("loading", "warming up") for name in ("keep-0.50", "dense")),
        "round 1 of 2",
        "round 2 of 2",
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
    assert len(one.turns) == 1


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
    refused(
        lambda: measure_latency([Configuration(digits_bundle, variant, profile, 1)]), f"'{variant}'", kind=InputError
    )


def test_one_broken_configuration_ends_the_others(bundle_copy, children):
    (bundle_copy / "graphs" / "dense.cpu.onnx").write_bytes(b"")
    configurations = [Configuration(bundle_copy, name, "cpu", 1) for name in ("keep-0.50", "dense")]
    refused(lambda: measure_latency(configurations), "'dense'")
    assert len(children) == 2
    assert all(child.returncode is not None for child in children)


def test_a_process_that_dies_on_the_way_is_an_error(digits_bundle, children):
    """The kernel kills it for its memory, say. A broken pipe would pass for a reader that went away."""

    def kill(what, _done, _total):
        if what == "round 1 of 2":
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
        [sys.executable, "-m", "ztdeploy.target.measure.worker", str(digits_bundle), "dense", "cpu", "1", "1", ""],
        input='{"iterations": 2}\n{"iterations": 1}\n',
        capture_output=True,
        text=True,
        timeout=HANG_S,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    assert done.returncode == 0
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert set(lines[0]) == {"process_ms", "import_ms", "load_ms", "first_ms"}
    assert lines[0]["process_ms"] is None, "nobody said when the process was ordered"
    assert [len(line["samples_ms"]) for line in lines[1:]] == [2, 1]


def test_an_error_of_ours_comes_out_of_the_process_as_it_is(bundle_copy):
    """With its class, hence its exit code, and its remedy."""

    def age(manifest):
        for variant in manifest["variants"]:
            variant["engines"]["cpu"]["fingerprint"]["runtime_version"] = "0.1"

    configuration = Configuration(edit(bundle_copy, age), "dense", "cpu", 1)
    refused(lambda: measure_latency([configuration]), "'dense'", "0.1", "finalize", kind=EngineMismatchError)


def test_the_worker_counts_by_time_or_by_number(digits_bundle):
    def samples(**order) -> int:
        return len(worker.carry_out(TimingOrder(**order), Timing).samples_ms)

    with worker_of(Configuration(digits_bundle, "keep-0.50", "cpu", threads=1)) as worker:
        start = worker.answer(ColdStart)
        assert start.process_ms is not None
        assert start.total_ms > start.import_ms + start.load_ms
        assert samples(seconds=0) == 1, "at least one"
        assert samples(seconds=0.2, lead_in=1) > 1
        assert samples(iterations=3, lead_in=2) == 3


def test_peak_memory_is_the_workers_own(digits_bundle):
    """The kernel's `ru_maxrss` starts with what the parent had in memory when it forked."""
    ballast = bytearray(os.urandom(1)) * 600_000_000
    with worker_of(Configuration(digits_bundle, "dense", "cpu", threads=1)) as worker:
        worker.answer(ColdStart)
        assert worker.carry_out(TimingOrder(iterations=1), Timing).peak_rss_mb < 500
    assert len(ballast) == 600_000_000


def test_a_call_that_fails_is_told_and_does_not_end_the_process():
    """One of our own errors is an answer like any other."""
    lines = io.StringIO()

    def fail() -> ColdStart:
        raise InputError("an image", "another", "take another")

    reply(lines, fail)
    error = Refusal.model_validate_json(lines.getvalue()).error("dense")
    assert isinstance(error, InputError)
    assert (error.given, error.expected, error.fix) == ("'dense': an image", "another", "take another")


def test_a_process_that_says_something_else():
    with Worker("dense", [sys.executable, "-c", "print('hello')"]) as worker:
        refused(lambda: worker.answer(Timing), "an answer about 'dense' that is none", kind=BundleError)


ENDLESS = """
import sys
from ztdeploy.target.measure.orders import Worker
with Worker("endless", [sys.executable, "-c", sys.argv[1]]) as worker:
    print(worker.pid, flush=True)
    worker._process.stdout.read()
"""
BUSY = """
from ztdeploy.target.measure.worker import prepare
answers = prepare()
print("ready", file=answers, flush=True)
while True:
    pass
"""


def test_a_worker_ends_with_its_parent_whatever_it_is_doing():
    """It works on an order and reads nothing, so that it does not see its input end."""
    parent = started([sys.executable, "-c", ENDLESS, BUSY])
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    wait_for(lambda: ignores_ctrl_c(pid), parent)
    parent.kill()
    parent.wait(timeout=HANG_S)
    deadline = time.monotonic() + HANG_S
    while lives(pid):
        assert time.monotonic() < deadline, "a worker outlived its parent"
        time.sleep(0.02)


def lives(pid: int) -> bool:
    status = table(Path(f"/proc/{pid}/status"))
    return status.get("State", "Z")[0] not in "ZX"


def ignores_ctrl_c(pid: int) -> bool:
    """Whether a worker has come so far that it is prepared; the time of its death is set right behind."""
    ignored = int(table(Path(f"/proc/{pid}/status")).get("SigIgn", "0"), 16)
    return bool(ignored >> (signal.SIGINT - 1) & 1)
