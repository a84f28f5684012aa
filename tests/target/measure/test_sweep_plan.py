"""What a sweep measures together, what of an earlier one it keeps, and how long it says it will take."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.errors import refused
from helpers.reports import run

from ztdeploy.core.bundle import Bundle, read_bundle
from ztdeploy.core.errors import InputError, ScheduleError
from ztdeploy.core.keep_ratio import uniform_schedule
from ztdeploy.core.model_source import ModelSource
from ztdeploy.core.plan import plan
from ztdeploy.core.preprocess_spec import ImageSize
from ztdeploy.core.progress import in_words
from ztdeploy.target.measure.sweep_plan import (
    MOST_AT_ONCE,
    check_holds,
    check_sweep,
    chosen_variants,
    empty_report,
    kept_runs,
    plan_groups,
    why_not_resumed,
)
from ztdeploy.target.measure.sweep_report import SweepRequest

REQUEST = SweepRequest(
    model=ModelSource(name="vit_digits"), profile="cpu", batches=(1, 8), threads=(1, 2), warmup_s=0, duration_s=2
)


@pytest.fixture
def bundle(digits_bundle):
    return read_bundle(digits_bundle)


def with_methods(bundle: Bundle, *methods: str, ratios=(0.7, 0.5), extra=()) -> Bundle:
    """The bundle as it would be with these variants; only its manifest."""
    manifest = bundle.manifest
    architecture, pattern = manifest.model.architecture, manifest.variants[0]
    schedules = [uniform_schedule(ratio, architecture.depth, method=method) for method in methods for ratio in ratios]
    schedules += extra
    variants = tuple(
        pattern.model_copy(update={"name": one.name, "schedule": one, "plan": plan(one, architecture)})
        for one in schedules
    )
    return Bundle(bundle.root, manifest.model_copy(update={"variants": (*variants, manifest.dense)}))


def test_a_group_is_what_fits_beside_dense_at_one_setting(bundle):
    groups = plan_groups(REQUEST, [with_methods(bundle, "novelty-merge", "slice")], "cpu")
    found = [(one.request.batches, one.request.threads, one.configurations) for one in groups]
    names = ("dense", *(name for ratio in ("0.70", "0.50") for name in (f"keep-{ratio}", f"slice-keep-{ratio}")))
    assert found == [((batch,), (count,), names) for batch in (1, 8) for count in (1, 2)]
    for group in groups:
        assert group.request.reference
        assert (group.request.duration_s, group.request.warmup_s, group.request.profile) == (2, 0, "cpu")
    label = "keep-0.70, slice-keep-0.70, keep-0.50, slice-keep-0.50 at 32 px, batch 1, 1 thread"
    assert groups[0].label == label
    assert "2 threads" in groups[1].label


def test_methods_of_one_ratio_stay_together_where_they_fit(bundle):
    many = with_methods(bundle, "novelty-merge", "slice", "random", ratios=(0.9, 0.7, 0.5))
    groups = plan_groups(SweepRequest(model=None), [many], "cpu")
    ratios = ("0.90", "0.70", "0.50")
    assert [one.request.variants for one in groups] == [
        (f"keep-{ratio}", f"slice-keep-{ratio}", f"random-keep-{ratio}") for ratio in ratios
    ]


def test_defaults(bundle):
    """The profile's smallest batch, and as many threads as `bench` chooses."""
    groups = plan_groups(SweepRequest(model=None), [bundle], "cpu")
    assert [(one.request.batches, one.request.threads) for one in groups] == [((1,), ())]


@pytest.mark.parametrize(("count", "sizes"), [(5, [5]), (6, [3, 3]), (11, [4, 4, 3])])
def test_many_methods_are_split_evenly_each_part_with_dense(count, sizes, bundle):
    schedules = [
        uniform_schedule(0.7, bundle.manifest.model.architecture.depth).model_copy(update={"name": f"own-{number}"})
        for number in range(count)
    ]
    groups = plan_groups(SweepRequest(model=None), [with_methods(bundle, extra=schedules)], "cpu")
    assert [len(group.request.variants) for group in groups] == sizes
    assert all(len(group.configurations) <= MOST_AT_ONCE for group in groups)
    assert sorted(name for group in groups for name in group.request.variants) == sorted(one.name for one in schedules)
    assert empty_report(SweepRequest(model=None), [], "cpu", groups).planned == count + 1


def test_schedules_without_a_keep_ratio_come_last(bundle):
    depth = bundle.manifest.model.architecture.depth
    own = [
        uniform_schedule(0.7, depth).model_copy(update={"name": name, "keep_ratio": None}) for name in ("mine", "yours")
    ]
    groups = plan_groups(SweepRequest(model=None), [with_methods(bundle, "slice", extra=own)], "cpu")
    assert [one.request.variants for one in groups] == [("slice-keep-0.70", "slice-keep-0.50", "mine", "yours")]


def test_dense_alone(bundle):
    (group,) = plan_groups(SweepRequest(model=None, keep_ratios=(1.0,)), [bundle], "cpu")
    assert group.configurations == ("dense",)
    assert group.request.variants == ("dense",)


def test_what_is_chosen_of_a_bundle(bundle):
    many = with_methods(bundle, "novelty-merge", "slice", ratios=(0.5, 0.9, 0.7))

    def chosen(**asked):
        return [one.name for one in chosen_variants(SweepRequest(model=None, **asked), many)]

    assert chosen(methods=("slice",)) == ["slice-keep-0.90", "slice-keep-0.70", "slice-keep-0.50"]
    assert chosen(keep_ratios=(1.0, 0.9)) == ["keep-0.90", "slice-keep-0.90"]
    assert chosen(keep_ratios=(0.5,), methods=("novelty-merge",)) == ["keep-0.50"]
    refused(lambda: check_holds(SweepRequest(model=None, keep_ratios=(0.6,)), many), "keep ratio 0.6", kind=InputError)
    refused(
        lambda: check_holds(SweepRequest(model=None, methods=("slize",)), many), "slize", "'slice'", kind=InputError
    )


def test_a_variant_that_drops_nothing_is_not_measured_beside_dense(bundle):
    """0.999 of 64 patches is 64."""
    groups = plan_groups(SweepRequest(model=None), [with_methods(bundle, "slice", ratios=(0.999, 0.5))], "cpu")
    assert [one.request.variants for one in groups] == [("slice-keep-0.50",)]


def test_the_report_before_anything_is_measured(bundle):
    groups = plan_groups(REQUEST, [bundle], "cpu")
    report = empty_report(REQUEST, [bundle], "cpu", groups)
    assert (report.progress, report.runs, report.planned) == ("running", (), 3 * 2 * 2)
    assert [one.name for one in report.variants] == ["dense", "keep-0.70", "keep-0.50"]
    dense = report.facts("dense", ImageSize(32, 32))
    assert set(dense.tokens_per_block) == {65}
    assert report.facts("keep-0.50", ImageSize(32, 32)).gmacs < dense.gmacs


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"keep_ratios": (0.0,)}, ScheduleError),
        ({"keep_ratios": (1.1,)}, ScheduleError),
        ({"rounds": 0}, InputError),
        ({"duration_s": 0.0}, InputError),
        ({"duration_s": float("nan")}, InputError),
        ({"warmup_s": -1.0}, InputError),
        ({"batches": (0,)}, InputError),
        ({"threads": (0,)}, InputError),
        ({"threads": (2000,)}, InputError),
    ],
)
def test_values_out_of_range(changes, kind):
    refused(lambda: check_sweep(REQUEST.model_copy(update=changes)), kind=kind)


# What is kept of an earlier sweep.


def earlier(bundle, **changes):
    """A complete sweep of the bundle, and its groups."""
    groups = plan_groups(REQUEST, [bundle], "cpu")
    runs = tuple(run(request=group.request, bundle={"image_size": ImageSize(32, 32)}) for group in groups)
    start = empty_report(REQUEST, [bundle], "cpu", groups)
    return start.model_copy(update={"runs": runs, "progress": "complete", **changes}), groups


def test_complete_groups_are_kept(bundle):
    report, groups = earlier(bundle)
    assert kept_runs(report, groups) == dict(enumerate(report.runs))
    assert why_not_resumed(report, report, report.runs[0].machine) is None


@pytest.mark.parametrize("progress", ["running", "interrupted"])
def test_groups_that_were_stopped_are_not(progress, bundle):
    report, groups = earlier(bundle)
    stopped = report.runs[3].model_copy(update={"progress": progress})
    report = report.model_copy(update={"runs": (*report.runs[:3], stopped)})
    assert list(kept_runs(report, groups)) == [0, 1, 2]


def test_nor_are_groups_in_which_a_process_died(bundle):
    report, groups = earlier(bundle)
    died = run(
        request=groups[0].request,
        bundle={"image_size": ImageSize(32, 32)},
        measured={"failure": {"message": "", "exit_code": 6}},
    )
    died = type(died).model_validate(died.model_dump())
    assert kept_runs(report.model_copy(update={"runs": (died, *report.runs[1:])}), groups).keys() == {
        *range(1, len(groups))
    }


def test_where_the_bundle_lies_does_not_matter_but_its_content_does(bundle, tmp_path):
    report, groups = earlier(bundle)
    moved = Bundle(tmp_path, bundle.manifest)
    assert kept_runs(report, plan_groups(REQUEST, [moved], "cpu")).keys() == {*range(len(groups))}
    machine = report.runs[0].machine
    assert why_not_resumed(report, empty_report(REQUEST, [moved], "cpu", groups), machine) is None
    name = moved.manifest.dense.engines["cpu"].file
    record = moved.manifest.files[name].model_copy(update={"sha256": "0" * 64})
    files = {**moved.manifest.files, name: record}
    other = Bundle(tmp_path, moved.manifest.model_copy(update={"files": files}))
    reason = why_not_resumed(report, empty_report(REQUEST, [other], "cpu", groups), machine)
    assert reason == "its engines or weights were others"
    blocks = moved.manifest.blocks["cpu"].file
    files = {**moved.manifest.files, blocks: moved.manifest.files[blocks].model_copy(update={"sha256": "0" * 64})}
    other = Bundle(tmp_path, moved.manifest.model_copy(update={"files": files}))
    reason = why_not_resumed(report, empty_report(REQUEST, [other], "cpu", groups), machine)
    assert reason == "its engines or weights were others", "the staircase is measured on the blocks"


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"rounds": 9}, "rounds"), ({"duration_s": 3.0}, "duration"), ({"keep_ratios": (0.7,)}, "keep ratios")],
)
def test_another_request_is_another_sweep(changes, words, bundle):
    report, _ = earlier(bundle)
    asked = REQUEST.model_copy(update=changes)
    now = empty_report(asked, [bundle], "cpu", plan_groups(asked, [bundle], "cpu"))
    assert words in why_not_resumed(report, now, report.runs[0].machine)
    for beside in ({"details": False}, {"data": Path("digits"), "limit": 5}):
        other = report.model_copy(update={"request": REQUEST.model_copy(update=beside)})
        assert why_not_resumed(report, other, report.runs[0].machine) is None, "latencies are the same without it"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"processor": "another"}, "processor"),
        ({"governors": ("powersave",)}, "governors"),
        ({"usable_cores": (0,)}, "cores"),
    ],
)
def test_another_machine_is_another_sweep(changes, words, bundle):
    report, _ = earlier(bundle)
    machine = report.runs[0].machine.model_copy(update=changes)
    assert words in why_not_resumed(report, report, machine)


# Time left.


def test_a_group_takes_at_least_its_rounds_and_its_warm_up(bundle):
    (group, *_) = plan_groups(REQUEST, [bundle], "cpu")
    assert group.seconds > len(group.configurations) * (REQUEST.duration_s + REQUEST.warmup_s)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "about 10 s"),
        (-3, "about 10 s"),
        (31, "about 40 s"),
        (89, "about 90 s"),
        (91, "about 2 min"),
        (7000, "about 1.9 h"),
    ],
)
def test_in_words(seconds, words):
    assert in_words(seconds) == words
