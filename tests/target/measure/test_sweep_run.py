"""Measuring group after group: what is saved when, and what is left when something fails. No process is started."""

from __future__ import annotations

import os

import pytest
from helpers.errors import refused
from helpers.reports import run

from ztdeploy.core.bundle import read_bundle
from ztdeploy.core.errors import BundleError, OutputError
from ztdeploy.core.preprocess_spec import ImageSize
from ztdeploy.report.sweep_folder import PREVIOUS, REPORT, read_previous, set_aside, sweep_folder, write_sweep
from ztdeploy.target.measure import sweep as module
from ztdeploy.target.measure.bench_report import BenchReport, write_report
from ztdeploy.target.measure.sweep import measure_groups
from ztdeploy.target.measure.sweep_plan import empty_report, plan_groups
from ztdeploy.target.measure.sweep_report import SweepReport, SweepRequest, rows

REQUEST = SweepRequest(model=None, batches=(1, 8), threads=(1,), duration_s=1)


@pytest.fixture(autouse=True)
def one_beside_dense(monkeypatch):
    """Four groups of two are more to go wrong than two of three."""
    monkeypatch.setattr("ztdeploy.target.measure.sweep_plan.MOST_AT_ONCE", 2)


class Bench:
    """In place of `run_bench`: two rounds of made-up figures, or something else on the calls that a test names."""

    def __init__(self, **on_call):
        self.requests, self.on_call = [], on_call

    def __call__(self, request, *, progress, save) -> BenchReport:
        self.requests.append(request)
        act = self.on_call.get(f"call_{len(self.requests)}", lambda report: report)
        report = run(len(self.requests), request=request, rounds=2, batch=request.batches[0], threads=1)
        report = report.model_copy(
            update={"bundle": report.bundle.model_copy(update={"image_size": ImageSize(32, 32)})}
        )
        names = ("dense", *request.variants)
        report = report.model_copy(
            update={
                "configurations": tuple(one for one in report.configurations if one.variant in names),
                "comparisons": tuple(one for one in report.comparisons if one.variant in names),
            }
        )
        for turn in range(2):
            progress(f"round {turn + 1} of 2", turn, 2)
            save(report.model_copy(update={"progress": "running"}))
        return act(report)


@pytest.fixture
def groups(digits_bundle):
    return plan_groups(REQUEST, [read_bundle(digits_bundle)], "cpu")


@pytest.fixture
def start(digits_bundle, groups):
    return empty_report(REQUEST, [read_bundle(digits_bundle)], "cpu", groups)


@pytest.fixture
def measure(groups, start, monkeypatch):
    """Measures, and returns the report, what was saved, and the steps shown."""

    def call(bench, kept=None):
        saved, steps = [], []
        monkeypatch.setattr(module, "run_bench", bench)
        report = measure_groups(start, groups, kept or {}, progress=lambda *step: steps.append(step), save=saved.append)
        return report, saved, steps

    return call


def test_every_group_in_its_order_and_saved_after_every_round(measure, groups):
    bench = Bench()
    report, saved, steps = measure(bench)
    assert bench.requests == [group.request for group in groups]
    assert report.progress == "complete"
    assert [one.request for one in report.runs] == bench.requests
    assert {one.progress for one in saved} == {"running"}
    assert [len(one.runs) for one in saved] == [0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]
    assert [what.partition(":")[0] for what, _, _ in steps[::2]] == [f"{first} of 6" for first in (1, 3, 4, 6)]
    assert steps[0][0] == "1 of 6: 32 px, batch 1, 1 thread: round 1 of 2"
    assert {total for _, _, total in steps} == {sum(group.seconds for group in groups)}
    assert [done for _, done, _ in steps] == sorted({done for _, done, _ in steps}), "it never goes back"
    assert SweepReport.model_validate_json(report.model_dump_json()) == report


def test_a_row_per_configuration_with_dense_of_all_groups(measure):
    report, _, _ = measure(Bench())
    found = rows(report)
    assert [(one.measured.batch, one.facts.name) for one in found] == [
        (batch, name) for batch in (1, 8) for name in ("dense", "keep-0.70", "keep-0.50")
    ]
    assert [len(one.measured.turns) for one in found] == [4, 2, 2, 4, 2, 2]
    assert [turn.round for turn in found[0].measured.turns] == [0, 1, 2, 3]


def test_what_is_kept_is_not_measured(measure, groups):
    first, _, _ = measure(Bench())
    bench = Bench()
    report, saved, _ = measure(bench, {0: first.runs[0], 2: first.runs[2]})
    assert bench.requests == [groups[1].request, groups[3].request]
    assert len(saved[0].runs) == 2, "on disk from the start"
    assert (report.runs[0], report.runs[2]) == (first.runs[0], first.runs[2])
    nothing = Bench()
    report, _, _ = measure(nothing, dict(enumerate(first.runs)))
    assert (nothing.requests, report.progress, report.runs) == ([], "complete", first.runs)


def test_a_group_that_cannot_be_measured_is_a_failure(measure, groups):
    def fail(_report):
        raise BundleError("an engine that is broken", "a whole one", "build again")

    bench = Bench(call_2=fail)
    report, saved, _ = measure(bench)
    assert len(bench.requests) == 4
    assert report.progress == "complete"
    assert [one.request for one in report.runs] == [groups[index].request for index in (0, 2, 3)]
    (failure,) = report.failures
    assert failure.exit_code == 4
    assert failure.message.startswith("keep-0.50 at 32 px, batch 1, 1 thread: an engine that is broken")
    assert saved[-1].failures == report.failures


def interrupted(report):
    return report.model_copy(update={"progress": "interrupted"})


def ctrl_c(_report):
    raise KeyboardInterrupt


@pytest.mark.parametrize("act", [interrupted, ctrl_c])
def test_ctrl_c_ends_it_with_what_there_is(act, measure):
    bench = Bench(call_2=act)
    report, _, _ = measure(bench)
    assert len(bench.requests) == 2
    assert report.progress == "interrupted"
    assert report.runs[0].progress == "complete"
    assert report.runs[1].progress in ("interrupted", "running"), "the rounds that were measured are there"


# The folder.


def test_a_new_folder(start, tmp_path):
    out = tmp_path / "new" / "sweep"
    with sweep_folder(out):
        assert read_previous(out) == (None, None)
        write_sweep(start, out)
    assert read_previous(out) == (start, None)
    assert [path.name for path in out.iterdir()] == [REPORT]


def test_a_folder_that_stays_empty_goes_again(tmp_path):
    out = tmp_path / "sweep"

    def fail():
        with sweep_folder(out):
            raise BundleError("a", "b", "c")

    refused(fail)
    assert not out.exists()


def test_two_sweeps_in_one_folder(start, tmp_path):
    out = tmp_path / "sweep"
    with sweep_folder(out):
        write_sweep(start, out)
        refused(lambda: sweep_folder(out).__enter__(), "another sweep is writing", "--out", kind=OutputError)
    with sweep_folder(out):
        pass


def bench_report(out):
    write_report(run(), out / REPORT)


@pytest.mark.parametrize(
    "prepare",
    [
        lambda out: (out / "thesis.txt").write_text("years of work"),
        lambda out: (out / REPORT).write_text("{}"),
        lambda out: (out / REPORT).write_text("[" * 100_000),
        lambda out: (out / REPORT).mkdir(),
        bench_report,
    ],
)
def test_nothing_of_value_is_overwritten(prepare, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    prepare(out)
    before = sorted(out.iterdir())
    refused(lambda: sweep_folder(out).__enter__(), "something else than a sweep", "--out", kind=OutputError)
    assert sorted(out.iterdir()) == before


def test_a_file_is_no_folder(tmp_path):
    path = tmp_path / "sweep"
    path.write_text("")
    for out, words in ((path, "is a file"), (path / "below", "lies below the file")):
        refused(lambda out=out: sweep_folder(out).__enter__(), words, "--out", kind=OutputError)
    assert path.read_text() == ""


@pytest.mark.parametrize("text", ['{"kind": "ztdeploy-sweep", "schema_version": 99}', '{"kind": "ztdeploy-sweep"}'])
def test_a_sweep_that_cannot_be_read_is_one_all_the_same(text, tmp_path):
    (tmp_path / REPORT).write_text(text)
    with sweep_folder(tmp_path):
        report, reason = read_previous(tmp_path)
        assert report is None
        assert reason is not None
        assert "schema version" in reason
        set_aside(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [PREVIOUS]
    assert (tmp_path / PREVIOUS).read_text() == text


def test_a_folder_that_cannot_be_written(start, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with sweep_folder(tmp_path):
        monkeypatch.setattr(os, "replace", full)
        refused(lambda: write_sweep(start, tmp_path), "the disk is full", kind=OutputError)
    assert list(tmp_path.iterdir()) == []
