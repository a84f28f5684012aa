"""Regression checks on made-up runs: what is found, what is not, and what is refused."""

from __future__ import annotations

import json
import random
from pathlib import Path
from statistics import median

import pytest
from helpers.errors import refused
from helpers.reports import run, sweep
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from ztdeploy.core.errors import InputError
from ztdeploy.core.preprocess_spec import ImageSize
from ztdeploy.report.compare.comparison import Criteria, ReportComparison, compare_reports, judge
from ztdeploy.report.compare.entries import Identity, entries
from ztdeploy.report.compare.markdown import markdown
from ztdeploy.target.measure.bench_report import Caution, Failure
from ztdeploy.target.measure.statistics import FEWEST_ROUNDS, Interval, unpaired_ratio_interval
from ztdeploy.target.measure.sweep_report import SCHEMA_VERSION, read_any_report


def judged(baseline, candidate, **criteria) -> ReportComparison:
    return compare_reports(baseline, candidate, Criteria(**criteria), resamples=500)


def pair(comparison: ReportComparison, variant: str):
    (found,) = [one for one in comparison.pairs if one.setting.variant == variant]
    return found


# -------------------- the interval


above_zero = st.lists(st.floats(1e-3, 1e5), min_size=FEWEST_ROUNDS, max_size=30)


@given(above_zero, above_zero)
def test_an_unpaired_interval_lies_within_what_the_values_allow(numerator, denominator):
    found = unpaired_ratio_interval(numerator, denominator, resamples=200)
    assert found is not None
    low, high = min(numerator) / max(denominator), max(numerator) / min(denominator)
    assert low * (1 - 1e-9) <= found.low <= found.high <= high * (1 + 1e-9)
    assert found == unpaired_ratio_interval(numerator, denominator, resamples=200)


@given(above_zero, st.sampled_from([0.5, 4.0]))
def test_an_unpaired_interval_scales(values, factor):
    """Powers of two, so that nothing is rounded."""
    plain = unpaired_ratio_interval(values, values[::-1], resamples=200)
    scaled = unpaired_ratio_interval([factor * value for value in values], values[::-1], resamples=200)
    assert plain is not None
    assert scaled is not None
    assert (scaled.low, scaled.high) == pytest.approx((factor * plain.low, factor * plain.high))


def test_rounds_of_separate_runs_are_not_taken_in_pairs():
    """The same values in the same order: in pairs every ratio would be 1, and the interval a point."""
    values = [10.0, 11.0, 12.0, 13.0, 14.0, 15.0, 16.0]
    found = unpaired_ratio_interval(values, values)
    assert found is not None
    assert found.low < 0.9 < 1.1 < found.high


def test_an_unpaired_interval_covers_the_truth():
    generator, hits = random.Random(1), 0
    for trial in range(200):
        above, below = ([generator.gauss(centre, 0.3) for _ in range(12)] for centre in (11, 10))
        found = unpaired_ratio_interval(above, below, seed=trial, resamples=400)
        hits += found is not None and found.contains(1.1)
    assert 0.9 <= hits / 200 <= 0.99


@pytest.mark.parametrize("counts", [(FEWEST_ROUNDS - 1, 20), (20, FEWEST_ROUNDS - 1)])
def test_too_few_rounds_on_either_side_give_no_interval(counts):
    assert unpaired_ratio_interval([1.0] * counts[0], [1.0] * counts[1]) is None


def test_many_rounds_are_drawn_in_parts_with_the_same_result(monkeypatch):
    values = [float(1 + index % 7) for index in range(50)]
    whole = unpaired_ratio_interval(values, values[:20])
    monkeypatch.setattr("ztdeploy.target.measure.statistics._DRAWN_AT_ONCE", 1000)
    assert unpaired_ratio_interval(values, values[:20]) == whole


# -------------------- one interval against a threshold


@pytest.mark.parametrize(
    ("low", "high", "outcome"),
    [
        (1.051, 1.2, "worse"),
        (1.04, 1.2, "unsure"),
        (0.5, 2.0, "unsure"),
        (1.01, 1.04, "holds"),
        (0.9, 1.05, "holds"),
        (0.9, 0.951, "better"),
        (0.9, 0.953, "holds"),
    ],
)
def test_outcomes(low, high, outcome):
    assert judge(Interval(low=low, high=high, confidence=0.95), 0.05, larger_is_worse=True) == outcome
    turned = Interval(low=1 / high, high=1 / low, confidence=0.95)
    assert judge(turned, 0.05, larger_is_worse=False) == outcome, "as a factor, in both directions"


@given(st.floats(0.1, 10), st.floats(0, 1), st.floats(0, 1))
def test_a_larger_threshold_never_makes_anything_worse(low, width, threshold):
    interval = Interval(low=low, high=low * (1 + width), confidence=0.95)
    order = ["better", "holds", "unsure", "worse"]
    ranks = [order.index(judge(interval, limit, larger_is_worse=True)) for limit in (threshold, threshold + 0.1)]
    assert ranks[1] <= ranks[0] or ranks == [0, 1]


# -------------------- how often it is right


def _noisy(generator, **slower):
    """Round noise of 2 %, an offset of the whole run and one of each process."""
    seed, offset = generator.randrange(10**9), generator.gauss(0, 0.015)
    return run(seed, noise=0.02, offset=offset, placement=0.004, slower=slower)


def test_runs_that_are_alike_give_no_alarm():
    """Three configurations, five figures judged; each run 1.5 % off (standard deviation), as a whole."""
    generator = random.Random(7)
    alarms = [judged(_noisy(generator), _noisy(generator)).regressed for _ in range(150)]
    assert sum(alarms) <= 0.03 * len(alarms)


def test_ten_percent_are_found():
    generator = random.Random(8)
    found = [judged(_noisy(generator), _noisy(generator, **{"keep-0.70": 1.1})) for _ in range(100)]
    hits = [one for one in found if pair(one, "keep-0.70").regressions]
    assert len(hits) >= 95
    assert sum(bool(pair(one, "keep-0.50").regressions) for one in found) <= 3, "and nothing else is blamed"


def test_an_offset_of_the_whole_run_does_not_touch_the_speedups():
    """A machine that is far slower today: latencies alarm, speed-ups do not."""
    generator = random.Random(9)
    for _ in range(20):
        seeds = generator.randrange(10**9), generator.randrange(10**9)
        found = judged(run(seeds[0]), run(seeds[1], offset=0.15), speedup_only=True)
        assert not found.regressed
        assert judged(run(seeds[0]), run(seeds[1], offset=0.15)).regressed


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.8, 1.25), st.sampled_from(["keep-0.70", "keep-0.50", "dense", "all"]))
def test_what_is_judged_is_what_the_rounds_say(seed, factor, variant):
    before, after = run(seed), run(seed + 1, slower={variant: factor})
    found = judged(before, after)
    for one in found.pairs:
        old, new = (
            median(median(turn.samples_ms) for turn in own.turns)
            for report in (before, after)
            for own in report.configurations
            if own.variant == one.setting.variant
        )
        assert one.latency_ms.ratio == pytest.approx(new / old)
        expected = factor if variant in ("all", one.setting.variant) else 1.0
        assert one.latency_ms.ratio == pytest.approx(expected, rel=0.03)
    assert found.regressed == any(one.regressions for one in found.pairs)
    assert compare_reports(before, before).regressed is False


# -------------------- which figure, and why


def test_a_slower_variant_is_found_by_both_figures():
    found = judged(run(1), run(2, slower={"keep-0.50": 1.12}))
    one = pair(found, "keep-0.50")
    assert (one.latency_ms.outcome, one.verdict) == ("worse", "SLOWER, LESS SPEED-UP")
    assert one.speedup is not None
    assert one.speedup.outcome == "worse"
    assert found.regressed
    assert "regression in 1 of 3: keep-0.50 at batch 1, 2 threads takes 1.1" in found.conclusion
    assert "its speed-up fell from 2.0" in found.conclusion
    assert pair(found, "keep-0.70").verdict == pair(found, "dense").verdict == "holds"


def test_another_machine_or_runtime_is_told_from_the_pruning():
    found = judged(run(1), run(2, slower={"all": 1.2}))
    assert found.regressed
    assert {one.verdict for one in found.pairs} == {"SLOWER"}
    assert "dense at batch 1, 2 threads itself takes 1.19x as long while" in found.conclusion
    assert found.conclusion.endswith("the speed-ups hold: the machine or the runtime is different, not the pruning")
    alone = judged(run(1), run(2, slower={"all": 1.2}), speedup_only=True)
    assert not alone.regressed
    assert alone.conclusion.startswith("no regression")
    assert alone.conclusion.endswith("not the pruning")


def test_a_faster_dense_takes_speedup_away_and_says_so():
    found = judged(run(1), run(2, slower={"dense": 0.85}))
    assert pair(found, "keep-0.70").verdict == "LESS SPEED-UP"
    assert pair(found, "dense").verdict == "faster"
    assert "dense at batch 1, 2 threads itself takes 0.8" in found.conclusion
    assert found.conclusion.endswith("a speed-up over it can fall without a variant being slower")


def test_a_slower_machine_hides_no_slower_variant():
    """Everything is 20 % faster, one variant only 5 %: its latency is fine, its speed-up is not."""
    found = judged(run(1), run(2, slower={"all": 0.8, "keep-0.70": 1.19}))
    one = pair(found, "keep-0.70")
    assert (one.latency_ms.outcome, one.verdict) == ("holds", "LESS SPEED-UP")
    assert [len(other.regressions) for other in found.pairs] == [0, 1, 0]


def test_the_threshold_is_what_was_asked_for():
    before, after = run(1), run(2, slower={"keep-0.70": 1.1})
    assert not judged(before, after, max_slowdown=0.2).regressed
    assert judged(before, after, max_slowdown=0.0).regressed


def test_without_dense_latency_alone_is_judged():
    found = judged(run(1, variants=("keep-0.70",)), run(2, variants=("keep-0.70",), slower={"all": 1.2}))
    assert pair(found, "keep-0.70").speedup is None
    assert found.regressed
    assert "dense" not in found.conclusion
    one_sided = judged(run(1), run(2, variants=("keep-0.70",)))
    assert pair(one_sided, "keep-0.70").notes == ("only one of the runs has its speed-up over dense",)


def test_noise_that_hides_a_regression_is_said():
    found = judged(run(1, noise=0.15), run(2, noise=0.15))
    assert not found.regressed
    assert "unsure" in {one.verdict for one in found.pairs}
    assert any("too noisy to tell from a regression" in caution for caution in found.cautions)


def test_too_few_rounds_judge_nothing():
    refused(lambda: judged(run(rounds=5), run()), "not one configuration", "--rounds 6", kind=InputError)
    refused(
        lambda: judged(run(variants=("keep-0.70",)), run(variants=("keep-0.70",)), speedup_only=True),
        "with dense",
        kind=InputError,
    )


# -------------------- memory


def test_memory_is_noted_and_judged_only_when_asked():
    grown = run(2, measured={"peak_rss_mb": 120.0, "engine_mb": 0.5})
    found = judged(run(1), grown)
    assert not found.regressed
    assert [str(growth) for growth in found.pairs[0].growths] == [
        "peak memory 100 -> 120 MB (+20 %)",
        "engine 1 -> 0.5 MB (-50 %)",
    ]
    strict = judged(run(1), grown, max_memory_growth=0.1)
    assert {one.verdict for one in strict.pairs} == {"MORE MEMORY"}
    assert strict.regressed
    assert not judged(run(1), grown, max_memory_growth=0.3).regressed
    small = run(2, measured={"peak_rss_mb": 104.0})
    assert judged(run(1), small).pairs[0].growths == ()
    assert judged(run(1), small, max_memory_growth=0.02).regressed


# -------------------- what is not alike


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"processor": "Other"}, "processor: AMD EPYC -> Other"),
        ({"architecture": "aarch64"}, "architecture: x86_64 -> aarch64"),
        ({"cores_online": 8}, "cores: 2 -> 8"),
    ],
)
def test_another_machine_is_refused_unless_asked_for(fields, what):
    other = run(2, machine=fields)
    refused(lambda: judged(run(1), other), "not the same machine", what, "--any-machine", kind=InputError)
    found = judged(run(1), other, any_machine=True)
    assert [str(one) for one in found.differences if one.other_machine] == [what]


@pytest.mark.parametrize(
    ("machine", "bundle", "what"),
    [
        ({"governors": ("performance",)}, {}, None),
        ({"kernel": "7.0"}, {}, "kernel: 6.18.44-fc-v595 -> 7.0"),
        ({"quota_cores": 1.5}, {}, "quota of cores: none -> 1.5"),
        ({"usable_cores": (0,)}, {}, "cores in use: 0, 1 -> 0"),
        ({"python": "3.13.1"}, {}, "Python: 3.11.7 -> 3.13.1"),
        ({"versions": {"numpy": "3.0"}}, {}, "numpy: 2.4.6 -> 3.0"),
        ({}, {"runtime": "onnxruntime 1.40"}, "runtime: onnxruntime 1.32.0 -> onnxruntime 1.40"),
        ({}, {"weights": "random"}, "weights: shipped -> random"),
        ({}, {"profile": "slim"}, "profile: cpu -> slim"),
    ],
)
def test_what_differs_is_listed(machine, bundle, what):
    """What one of the two could not read, as the governor here, is no difference."""
    found = judged(run(1), run(2, machine=machine, bundle=bundle))
    assert [str(one) for one in found.differences] == ([what] if what else [])


def test_another_schedule_under_the_same_name_is_noted():
    found = judged(run(1), run(2, measured={"gmacs": 3.5}))
    assert pair(found, "keep-0.70").notes == ("another schedule or model: 2.9 -> 3.5 GMACs",)


def test_the_reports_own_warnings_are_repeated_once_a_kind():
    busy = [Caution(kind="busy", message=f"busy {index}", remedy="stop it") for index in range(2)]
    found = judged(
        sweep(run(1, warnings=(busy[0],)), run(1, batch=8, warnings=(busy[1],))), run(2, progress="interrupted")
    )
    assert found.cautions == (
        "baseline: busy 0",
        "candidate: its measurement was interrupted; it is compared with what there is",
    )


def test_swapped_reports_are_asked_about():
    early = run(1)
    late = early.model_copy(update={"before": early.before.model_copy(update={"at": "2027-01-01T00:00:00+00:00"})})
    assert judged(late, early).cautions == ("the candidate was measured before the baseline; are they swapped?",)
    assert judged(early, late).cautions == ()


# -------------------- which configurations


def test_what_only_one_report_holds_is_listed():
    broken = run(2)
    dead = broken.configurations[2].model_copy(
        update={"turns": (), "latency": None, "failure": Failure(message="killed\x1b[31m", exit_code=6)}
    )
    broken = broken.model_copy(
        update={"configurations": (*broken.configurations[:2], dead), "comparisons": broken.comparisons[:1]}
    )
    found = judged(run(1), broken)
    assert [str(one) for one in found.missing] == [
        "keep-0.50 at batch 1, 2 threads: failed (killed [31m) in the candidate"
    ]
    found = judged(run(1, variants=("dense", "keep-0.70")), run(2, variants=("dense", "keep-0.50")))
    assert [(one.setting.variant, one.side) for one in found.missing] == [
        ("keep-0.70", "candidate"),
        ("keep-0.50", "baseline"),
    ]
    assert [one.setting.variant for one in found.pairs] == ["dense"]


@pytest.mark.parametrize("change", [{"batch": 8}, {"threads": 1}, {"bundle": {"image_size": ImageSize(384, 384)}}])
def test_nothing_in_common(change):
    refused(lambda: judged(run(1), run(2, **change)), "no configuration was measured in both", kind=InputError)


def test_match_says_what_is_the_same():
    found = judged(run(1), run(2, threads=1), match=("variant", "batch"))
    assert [one.notes for one in found.pairs] == [("2 -> 1 threads",)] * 3
    assert found.pairs[0].label == "dense at batch 1"
    both = sweep(run(1), run(1, batch=8))
    refused(lambda: judged(both, both, match=("variant",)), "several configurations", "variant", kind=InputError)


def test_a_label_says_what_differs():
    identity = Identity(model="deit", image_size=224, variant="keep-0.70", batch=8, threads=1, backend="onnxruntime")
    assert str(identity) == "keep-0.70 at deit, 224 px, batch 8, 1 thread, onnxruntime"
    assert str(identity.only(("variant", "batch"))) == "keep-0.70 at batch 8"
    found = judged(*[sweep(run(seed), run(seed, bundle={"image_size": ImageSize(384, 384)})) for seed in (1, 2)])
    assert found.pairs[0].label == "dense at 32 px, batch 1, 2 threads"


def test_a_sweep_and_a_benchmark_are_compared():
    """Dense took part in two groups; its rounds are pooled."""
    groups = [run(1, variants=("dense", "keep-0.70")), run(2, variants=("dense", "keep-0.50"))]
    found = judged(sweep(*groups), run(3))
    assert [one.setting.variant for one in found.pairs] == ["dense", "keep-0.70", "keep-0.50"]
    assert [one.dense for one in found.pairs] == [True, False, False]
    assert all(one.speedup is not None for one in found.pairs[1:])
    assert not found.regressed
    assert judged(sweep(*groups), run(3, slower={"keep-0.70": 1.15})).regressed


@pytest.mark.parametrize("option", [{"max_slowdown": -0.1}, {"max_slowdown": float("nan")}, {"max_memory_growth": 99}])
def test_percentages_that_make_no_sense(option):
    with pytest.raises(ValidationError):
        Criteria(**option)


# -------------------- reports from elsewhere


def damaged(change):
    report = json.loads(run(1).model_dump_json())
    change(report)
    return type(run(1)).model_validate(report)


@pytest.mark.parametrize(
    "change",
    [
        lambda report: report["configurations"][1]["turns"][0].update(samples_ms=[0.0]),
        lambda report: report["configurations"][1]["turns"][0].update(samples_ms=[-1.0]),
        lambda report: report["configurations"][1]["turns"][0].update(samples_ms=[float("nan")]),
        lambda report: report["configurations"][1]["turns"][0].update(samples_ms=[]),
        lambda report: report["configurations"][1]["turns"][1].update(round=0),
        lambda report: report["configurations"][1].update(turns=[]),
        lambda report: report["configurations"][1].update(latency=None),
        lambda report: report["configurations"][1].update(gmacs=0.0),
        lambda report: report["configurations"][1].update(peak_rss_mb=float("inf")),
        lambda report: report["configurations"][1].update(engine_mb=float("nan")),
        lambda report: report["comparisons"][0].update(ratios=[]),
        lambda report: report["comparisons"][0].update(ratios=[0.0]),
    ],
)
def test_figures_that_no_measurement_gives_are_refused(change):
    for reports in ((damaged(change), run(1)), (run(1), damaged(change))):
        refused(lambda reports=reports: judged(*reports), "'keep-0.70'", "measure again", kind=InputError)


def test_a_sweep_that_does_not_describe_its_variants_is_refused():
    whole = sweep(run(1))
    refused(
        lambda: judged(whole.model_copy(update={"variants": whole.variants[:1]}), run(1)),
        "'keep-0.70'",
        kind=InputError,
    )


def test_a_sweep_in_which_nothing_was_measured_yet():
    refused(lambda: judged(sweep(progress="running"), run(1)), "baseline holds no figures", kind=InputError)


def test_either_kind_is_read(tmp_path: Path):
    for name, report in (("bench", run(1)), ("sweep", sweep(run(1)))):
        (tmp_path / name).write_text(report.model_dump_json())
        assert read_any_report(tmp_path / name) == report
    text = sweep(run(1)).model_dump_json()
    for spoiled, words in (
        (text.replace(f'"schema_version":{SCHEMA_VERSION}', '"schema_version":9', 1), "schema version 9"),
        (text.replace('"planned":3', '"planned":"many"'), "damaged at planned"),
        (text[:-9], "cannot be read"),
        ("[]", "is no report"),
        ('{"kind": ["ztdeploy-sweep"]}', "is no report"),
        (
            '{"kind": "ztdeploy-eval"}',
            "a report of the kind 'ztdeploy-eval'; expected a report of 'ztdeploy bench --out'",
        ),
        ("[" * 100_000, "cannot be read"),
    ):
        (tmp_path / "spoiled").write_text(spoiled)
        refused(lambda: read_any_report(tmp_path / "spoiled"), words, kind=InputError)
    refused(lambda: read_any_report(tmp_path / "none"), "cannot be read", kind=InputError)


# -------------------- Markdown


def test_names_in_a_report_are_no_markup():
    """A report of somebody else's, shown where others read it."""
    nasty = "a|b <img src=x onerror=y> `c` [d](http://e) *f* @team #1\nrow\x1b[2J"
    report = run(1)
    named = report.model_copy(
        update={
            "configurations": tuple(one.model_copy(update={"variant": nasty}) for one in report.configurations[:1]),
            "comparisons": (),
        }
    )
    text = markdown(judged(named, named))
    (row,) = [line for line in text.splitlines() if line.startswith("| a")]
    assert row.replace(r"\|", "").count("|") == 9
    assert "<" not in text
    assert "@team" not in text
    assert "\x1b" not in text
    assert r"\[d\](http" in row


@pytest.mark.parametrize("seed", range(3))
def test_the_table_holds_what_was_judged(seed):
    found = judged(run(seed), run(seed + 1, slower={"keep-0.70": 1.3}, machine={"kernel": "7"}, progress="running"))
    lines = markdown(found).splitlines()
    assert lines[0].startswith("**Regression** in 1 of 3: keep-0.70 at batch 1, 2 threads takes 1.")
    assert "- kernel: 6.18.44-fc-v595 -&gt; 7" in lines
    table = [line for line in lines if line.startswith("| ")]
    assert len(table) == 2 + len(found.pairs)
    assert {line.count("|") for line in table} == {9}
    for one, line in zip(found.pairs, table[2:], strict=True):
        assert f"| {one.latency_ms.ratio:.3f} |" in line
        assert one.verdict in line
    assert lines[-1].startswith("- warning: candidate: its measurement was cut off")


def test_a_comparison_survives_json():
    found = judged(run(1), run(2))
    assert ReportComparison.model_validate_json(found.model_dump_json()) == found
    assert set(entries(run(1), "baseline")) == {one.setting for one in found.pairs}
