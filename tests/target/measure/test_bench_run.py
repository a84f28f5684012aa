"""The benchmark itself, with real processes: what comes out, and what is left when something dies."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from helpers.bench import faked
from helpers.errors import refused
from helpers.machines import CONTAINER, LAPTOP, plant

from ztdeploy.core.errors import EngineMismatchError, InputError, OutputError
from ztdeploy.target.measure.bench import run_bench
from ztdeploy.target.measure.bench_report import (
    SCHEMA_VERSION,
    BenchReport,
    BenchRequest,
    check_report_path,
    read_report,
    write_report,
)
from ztdeploy.target.measure.machine import usable_cores

QUICK = {"warmup_s": 0.0, "threads": (1,)}


@pytest.fixture(scope="module")
def report(digits_bundle):
    """Two variants at two batches, timed by number."""
    request = BenchRequest(bundle=digits_bundle, batches=(1, 2), iterations=15, rounds=7, **QUICK)
    return run_bench(request)


def by_name(report):
    return {(one.variant, one.batch): one for one in report.configurations}


def test_everything_is_in_the_report(report):
    assert (report.progress, report.schema_version, report.failures) == ("complete", SCHEMA_VERSION, ())
    found = by_name(report)
    assert list(found) == [("dense", 1), ("keep-0.70", 1), ("dense", 2), ("keep-0.70", 2)]
    for (_, batch), one in found.items():
        assert [len(turn.samples_ms) for turn in one.turns] == [3, 2, 2, 2, 2, 2, 2]
        assert [turn.round for turn in one.turns] == list(range(7))
        assert one.latency.samples == 15
        assert one.images_per_s == pytest.approx(batch * 1000 / one.latency.mean_ms)
        assert min(one.peak_rss_mb, one.engine_mb, one.model_mb, one.shared_weights_mb) > 0
        start = one.cold_start
        assert min(start.process_ms, start.import_ms, start.load_ms, start.first_ms) > 0
        assert one.threads == 1
    assert report.machine.usable_cores == tuple(sorted(os.sched_getaffinity(0)))
    assert report.before.at <= report.after.at


def test_every_variant_is_compared_with_dense_at_its_own_batch(report):
    assert [(one.variant, one.reference, one.batch) for one in report.comparisons] == [
        ("keep-0.70", "dense", 1),
        ("keep-0.70", "dense", 2),
    ]
    for one in report.comparisons:
        assert len(one.ratios) == 7
        assert one.interval.low <= one.speedup <= one.interval.high
        assert one.work_ratio > 1
        assert f"batch {one.batch}, 1 thread" in one.verdict


def test_turns_change_places(report):
    for one in report.configurations:
        places = [turn.place for turn in one.turns]
        assert set(places) <= set(range(4))
        assert sum(places[:6]) == 9, "pairs of rounds are even"


def test_processes_are_told_apart_from_others(report):
    for one in report.configurations:
        for turn in one.turns:
            assert turn.wall_s > 0
            assert turn.own_cpu_s >= 0


def test_a_report_is_json_and_back(report, tmp_path):
    out = tmp_path / "new folder" / "report.json"
    write_report(report, out)
    assert read_report(out) == report
    assert BenchReport.model_validate_json(report.model_dump_json()) == report
    write_report(report, out)
    assert [path.name for path in out.parent.iterdir()] == ["report.json"]


def paths(schema):
    """Every key that a report can have, as a path."""
    definitions, found = schema.get("$defs", {}), set()

    def walk(node, prefix, seen):
        for choice in (node, *node.get("anyOf", ())):
            name = choice.get("$ref", "").rpartition("/")[2]
            target = definitions[name] if name and name not in seen else choice
            for key, value in target.get("properties", {}).items():
                found.add(f"{prefix}{key}")
                walk(value, f"{prefix}{key}.", seen | {name})
            if "items" in target:
                walk(target["items"], prefix, seen | {name})

    walk(schema, "", frozenset())
    return sorted(found)


def test_the_schema_is_stable():
    """Whoever changes a key changes this list and, where old reports can no longer be read, `SCHEMA_VERSION`."""
    known = (Path(__file__).with_name("bench_report_keys.txt")).read_text().split()
    assert paths(BenchReport.model_json_schema()) == known


def test_an_old_report_can_still_be_read(tmp_path):
    """One that version 1 wrote."""
    old = Path(__file__).with_name("bench_report_v1.json")
    report = read_report(old)
    assert report.schema_version == 1
    assert json.loads(report.model_dump_json(exclude_unset=True)) == json.loads(old.read_text())


# Time, order and warnings.


def test_rounds_by_time_and_the_steps_shown(digits_bundle):
    steps, saved = [], []
    request = BenchRequest(bundle=digits_bundle, duration_s=0.1, rounds=2, warmup_s=0.01, threads=(1,))
    report = run_bench(request, progress=lambda *step: steps.append(step), save=saved.append)
    assert all(turn.samples_ms for one in report.configurations for turn in one.turns)
    assert [what for what, _, _ in steps] == [
        "loading dense",
        "loading keep-0.70",
        "warming up dense",
        "warming up keep-0.70",
        "round 1 of 2",
        "round 2 of 2",
    ]
    assert all(done < total for _, done, total in steps)
    assert [one.progress for one in saved] == ["running"] * 3
    assert [len(one.configurations[0].turns) for one in saved] == [0, 1, 2]
    assert all(one.interval is None for one in report.comparisons)
    assert "few rounds" in {caution.kind for caution in report.warnings}


@pytest.mark.parametrize(
    ("files", "kinds"), [(LAPTOP, {"governor", "capped", "battery", "throttled"}), (CONTAINER, {"quota"})]
)
def test_warnings_of_the_machine_it_runs_on(files, kinds, digits_bundle, tmp_path):
    request = BenchRequest(bundle=digits_bundle, iterations=1, rounds=1, reference=False, warmup_s=0, threads=(2,))
    with faked(plant(tmp_path, files), usable_cores()):
        report = run_bench(request)
    assert kinds <= {caution.kind for caution in report.warnings}
    assert report.comparisons == ()


# What dies.


def at(step, act):
    """A progress callback that acts once, at a step."""
    done = []

    def progress(what, _done, _total):
        if what == step and not done:
            done.append(what)
            act()

    return progress


def test_a_killed_process_leaves_what_it_measured(digits_bundle, children):
    request = BenchRequest(bundle=digits_bundle, all_variants=True, iterations=4, rounds=4, **QUICK)

    def kill():
        children[1].kill()
        children[1].wait()

    report = run_bench(request, progress=at("round 3 of 4", kill))
    dense, killed, other = report.configurations
    assert report.progress == "complete"
    assert [len(one.turns) for one in (dense, killed, other)] == [4, 2, 4]
    assert killed.latency.samples == 2
    assert "was killed by SIGKILL" in killed.failure.message
    assert killed.failure.exit_code == 6
    assert [len(one.ratios) for one in report.comparisons] == [2, 4]
    assert BenchReport.model_validate_json(report.model_dump_json()) == report
    assert all(child.returncode is not None for child in children)


def test_without_its_reference_a_variant_is_still_measured(digits_bundle, children):
    request = BenchRequest(bundle=digits_bundle, iterations=2, rounds=2, **QUICK)

    def kill():
        children[0].kill()
        children[0].wait()

    report = run_bench(request, progress=at("round 1 of 2", kill))
    assert report.comparisons == ()
    assert [len(one.turns) for one in report.configurations] == [0, 2]


def test_an_engine_that_cannot_be_loaded_leaves_the_others(bundle_copy, children):
    from helpers.bundles import edit

    def age(manifest):
        engine = next(v for v in manifest["variants"] if v["name"] == "keep-0.70")["engines"]["cpu"]
        engine["fingerprint"]["runtime_version"] = "0.1"

    request = BenchRequest(bundle=edit(bundle_copy, age), iterations=1, rounds=1, **QUICK)
    dense, broken = run_bench(request).configurations
    assert dense.latency.samples == 1
    assert (broken.latency, broken.cold_start, broken.failure.exit_code) == (None, None, 6)
    only = request.model_copy(update={"reference": False})
    refused(lambda: run_bench(only), "'keep-0.70'", "0.1", "finalize", kind=EngineMismatchError)
    assert all(child.returncode is not None for child in children)


def test_ctrl_c_leaves_what_was_measured(digits_bundle, children):
    request = BenchRequest(bundle=digits_bundle, iterations=4, rounds=4, **QUICK)
    report = run_bench(request, progress=at("round 3 of 4", lambda: os.kill(os.getpid(), signal.SIGINT)))
    assert report.progress == "interrupted"
    assert [len(one.turns) for one in report.configurations] == [2, 2]
    assert report.failures == ()
    assert len(report.comparisons) == 1
    assert all(child.returncode is not None for child in children)


def test_ctrl_c_before_anything_was_measured(digits_bundle, children):
    request = BenchRequest(bundle=digits_bundle, iterations=1, rounds=1, **QUICK)
    report = run_bench(request, progress=at("loading keep-0.70", lambda: os.kill(os.getpid(), signal.SIGINT)))
    assert (report.progress, report.measured, report.comparisons) == ("interrupted", (), ())
    assert all(child.returncode is not None for child in children)


# Files.


def test_nothing_of_value_is_overwritten(report, tmp_path):
    thesis = tmp_path / "thesis.json"
    thesis.write_text('{"kind": "years of work"}')
    for path in (thesis, tmp_path):
        refused(lambda path=path: check_report_path(path), "--out", kind=OutputError)
    refused(lambda: write_report(report, thesis), "no report", kind=OutputError)
    refused(lambda: write_report(report, thesis / "report.json"), "--out", kind=OutputError)
    assert thesis.read_text() == '{"kind": "years of work"}'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, ["cannot be read"]),
        ("{", ["cannot be read"]),
        ("[" * 100_000, ["cannot be read"]),
        ("[]", ["no report"]),
        ('{"kind": "ztdeploy-bench", "schema_version": 2}', ["schema version 2", "version 1"]),
        ('{"kind": "ztdeploy-bench", "schema_version": 1}', ["damaged at progress"]),
    ],
)
def test_reports_that_are_none(text, words, tmp_path):
    path = tmp_path / "report.json"
    if text is not None:
        path.write_text(text)
    refused(lambda: read_report(path), *words, kind=InputError)


def test_no_bundle(tmp_path):
    refused(lambda: run_bench(BenchRequest(bundle=tmp_path)), "manifest.json", kind=InputError)
