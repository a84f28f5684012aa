"""Whether something became slower between two runs: `compare_reports` is the job on one screen. Pure.

Two runs differ by more than their rounds show: another day's clocks, another placement of memory. Hence two figures
are judged, which fail in different ways, and both against a threshold that such differences should stay below:

- **Latency**, the ratio of the runs' medians. It sees everything, also a machine that is slower today.
- **Speed-up over dense**, a ratio within each run. A slower machine does not change it; a slower variant does.

No round of one run belongs to a round of the other, so intervals resample the rounds of each by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Literal

from ztdeploy.core.errors import InputError
from ztdeploy.core.records import Record
from ztdeploy.core.text import printable
from ztdeploy.report.compare.entries import FIELDS, Entry, Setting, bench_runs, entries, telling_fields
from ztdeploy.report.compare.machine_facts import Difference, differences
from ztdeploy.target.measure.bench_report import BenchReport
from ztdeploy.target.measure.statistics import FEWEST_ROUNDS, RESAMPLES, Interval, unpaired_ratio_interval
from ztdeploy.target.measure.sweep_report import SweepReport

SCHEMA_VERSION: Literal[1] = 1
KIND: Literal["ztdeploy-compare"] = "ztdeploy-compare"
Side = Literal["baseline", "candidate"]
#: "worse" and "better" lie beyond the threshold with the whole interval, "holds" shows that it is not worse than
#: that; an "unsure" interval lies on both sides.
Outcome = Literal["worse", "better", "holds", "unsure", "too few rounds"]
#: Memory and sizes that change by less are not worth a word.
_GROWTH = 0.05
#: Relative difference of GMACs from which on two variants are not the same schedule.
_OTHER_WORK = 1e-3


class Criteria(Record):
    """What counts as a regression. Shares of 1: 0.05 is 5 %."""

    max_slowdown: float = 0.05
    max_memory_growth: float | None = None  #: None: memory and sizes are noted, not judged
    speedup_only: bool = False  #: latencies are shown, not judged
    any_machine: bool = False
    match: tuple[str, ...] = FIELDS
    seed: int = 0  #: of the bootstrap


class Change(Record):
    """A figure in both runs."""

    baseline: float
    candidate: float
    ratio: float  #: candidate over baseline
    interval: Interval | None  #: of the ratio; None: too few rounds
    outcome: Outcome


class Growth(Record):
    """Memory or a file that changed by more than a little, in MB of 10^6 bytes."""

    what: str
    baseline_mb: float
    candidate_mb: float
    regression: bool

    def __str__(self) -> str:
        percent = 100 * (self.candidate_mb / self.baseline_mb - 1)
        return f"{self.what} {self.baseline_mb:.4g} -> {self.candidate_mb:.4g} MB ({percent:+.0f} %)"


class Pair(Record):
    """One configuration in both runs."""

    setting: Setting
    label: str  #: what tells it from the others, in words
    dense: bool
    latency_ms: Change  #: medians of the rounds' medians
    speedup: Change | None  #: over dense in the same run; None where one of the runs has no such figure
    growths: tuple[Growth, ...]
    notes: tuple[str, ...]  #: why the two may not be the same thing
    regressions: tuple[str, ...]  #: in words; empty where there is none
    verdict: str  #: in a word or two


class Missing(Record):
    """A configuration without figures in one of the runs."""

    setting: Setting
    label: str
    side: Side  #: where it has none
    reason: str

    def __str__(self) -> str:
        return f"{self.label}: {self.reason} in the {self.side}"


class ReportComparison(Record):
    kind: Literal["ztdeploy-compare"] = KIND
    schema_version: Literal[1] = SCHEMA_VERSION
    baseline: str  #: the reports' names
    candidate: str
    criteria: Criteria
    differences: tuple[Difference, ...]
    pairs: tuple[Pair, ...]
    missing: tuple[Missing, ...]
    cautions: tuple[str, ...]
    regressed: bool
    conclusion: str


def compare_reports(
    baseline: BenchReport | SweepReport,
    candidate: BenchReport | SweepReport,
    criteria: Criteria | None = None,
    *,
    names: tuple[str, str] = ("baseline", "candidate"),
    resamples: int = RESAMPLES,
) -> ReportComparison:
    """Judge every configuration that both reports hold.

    Raises:
        InputError: nothing in common, too few rounds to judge any of it, different machines, or damaged figures.
    """
    criteria = criteria or Criteria()
    _check_criteria(criteria)
    before, after = entries(baseline, names[0], criteria.match), entries(candidate, names[1], criteria.match)
    found = differences(bench_runs(baseline), bench_runs(candidate))
    shared = [setting for setting in before if setting in after and _measured(before[setting], after[setting])]
    if not shared:
        raise _nothing_in_common(before, after, names)
    _check_machine(found, criteria)
    telling = telling_fields({**before, **after})
    pairs = tuple(
        _pair(before[setting], after[setting], setting.label(telling), criteria, resamples) for setting in shared
    )
    if not any(_judged(pair, criteria) for pair in pairs):
        raise InputError(
            "there is not one configuration whose rounds suffice for an interval",
            f"{FEWEST_ROUNDS} rounds or more in both reports" + (", with dense" if criteria.speedup_only else ""),
            f"measure again with --rounds {FEWEST_ROUNDS} or more",
        )
    regressed = any(pair.regressions for pair in pairs)
    return ReportComparison(
        baseline=printable(names[0]),
        candidate=printable(names[1]),
        criteria=criteria,
        differences=found,
        pairs=pairs,
        missing=tuple(_missing(before, after, telling)),
        cautions=(*_cautions(baseline, candidate), *_unsure(pairs, criteria)),
        regressed=regressed,
        conclusion=_conclusion(pairs, criteria),
    )


def judge(ratio: Interval | None, threshold: float, *, larger_is_worse: bool) -> Outcome:
    """An interval of candidate over baseline against a threshold, which counts as a factor in both directions.

    Args:
        threshold: 0.05 stands for the factor 1.05.
    """
    if ratio is None:
        return "too few rounds"
    low, high = (ratio.low, ratio.high) if larger_is_worse else (1 / ratio.high, 1 / ratio.low)
    if low > 1 + threshold:
        return "worse"
    if high < 1 / (1 + threshold):
        return "better"
    return "holds" if high <= 1 + threshold else "unsure"


def times(change: Change) -> str:
    """Such as "1.12x (1.09 to 1.14)"."""
    span = f" ({change.interval.low:.3f} to {change.interval.high:.3f})" if change.interval else ""
    return f"{change.ratio:.3f}x{span}"


def _check_criteria(criteria: Criteria) -> None:
    for option, share in (
        ("--max-slowdown", criteria.max_slowdown),
        ("--max-memory-growth", criteria.max_memory_growth),
    ):
        if share is not None and not 0 <= share <= 10:  # also refuses what is no number
            raise InputError(f"{option} {100 * share:g}", "percent, 0 to 1000", f"give for instance {option} 5")


def _check_machine(found: Sequence[Difference], criteria: Criteria) -> None:
    others = [str(one) for one in found if one.other_machine]
    if others and not criteria.any_machine:
        raise InputError(
            f"not the same machine: {'; '.join(others)}",
            "two runs on one machine",
            "measure both on one, or give --any-machine to see the figures all the same",
        )


def _measured(*sides: Entry) -> bool:
    return all(one.measured.turns for one in sides)


def _nothing_in_common(
    before: Mapping[Setting, Entry], after: Mapping[Setting, Entry], names: tuple[str, str]
) -> InputError:
    sides = []
    for name, side in zip(names, (before, after), strict=True):
        held = [str(setting) for setting, entry in side.items() if _measured(entry)]
        more = f" and {len(held) - 3} more" if len(held) > 3 else ""
        sides.append(f"{name} holds {'; '.join(held[:3]) + more if held else 'no figures'}")
    return InputError(
        f"no configuration was measured in both: {', '.join(sides)}",
        "reports with the same variants, batch sizes and threads",
        "measure the same ones, or say with --match what makes two the same",
    )


def _pair(before: Entry, after: Entry, label: str, criteria: Criteria, resamples: int) -> Pair:
    latency = _change(before.round_medians_ms, after.round_medians_ms, criteria, resamples, larger_is_worse=True)
    speedup = None
    if before.comparison and after.comparison and before.comparison.reference == after.comparison.reference:
        speedup = _change(before.round_speedups, after.round_speedups, criteria, resamples, larger_is_worse=False)
    growths = tuple(_growths(before, after, criteria))
    pair = Pair(
        setting=before.setting,
        label=label,
        dense=before.dense or after.dense,
        latency_ms=latency,
        speedup=speedup,
        growths=growths,
        notes=tuple(_notes(before, after)),
        regressions=(),
        verdict="",
    )
    found = _regressions(pair, criteria)
    verdict = ", ".join(name for name, _ in found) or _verdict(pair, criteria)
    return pair.model_copy(update={"regressions": tuple(words for _, words in found), "verdict": verdict})


def _regressions(pair: Pair, criteria: Criteria) -> list[tuple[str, str]]:
    """What became worse than it may: in a word, and in a sentence's second half."""
    found = []
    if pair.latency_ms.outcome == "worse" and not criteria.speedup_only:
        found.append(("SLOWER", f"takes {times(pair.latency_ms)} as long"))
    if pair.speedup is not None and pair.speedup.outcome == "worse":
        old, new = pair.speedup.baseline, pair.speedup.candidate
        found.append(
            ("LESS SPEED-UP", f"its speed-up fell from {old:.2f}x to {new:.2f}x, to {times(pair.speedup)} of it")
        )
    grown = [str(growth) for growth in pair.growths if growth.regression]
    return [*found, *([("MORE MEMORY", f"takes more memory ({', '.join(grown)})")] if grown else [])]


def _verdict(pair: Pair, criteria: Criteria) -> str:
    """Of a pair without a regression: what is least certain about it, then what is best."""
    outcomes = {one.outcome for one in _figures(pair, criteria)}
    words: dict[Outcome, str] = {
        "too few rounds": "too few rounds",
        "unsure": "unsure",
        "better": "more speed-up" if criteria.speedup_only else "faster",
        "holds": "holds",
    }
    return next((word for outcome, word in words.items() if outcome in outcomes), "not judged")


def _change(
    baseline: Sequence[float], candidate: Sequence[float], criteria: Criteria, resamples: int, *, larger_is_worse: bool
) -> Change:
    """From one value per round and run."""
    interval = unpaired_ratio_interval(candidate, baseline, seed=criteria.seed, resamples=resamples)
    old, new = median(baseline), median(candidate)
    outcome = judge(interval, criteria.max_slowdown, larger_is_worse=larger_is_worse)
    return Change(baseline=old, candidate=new, ratio=new / old, interval=interval, outcome=outcome)


def _growths(before: Entry, after: Entry, criteria: Criteria) -> list[Growth]:
    limit, old, new = criteria.max_memory_growth, before.measured, after.measured
    known = [
        ("peak memory", old.peak_rss_mb, new.peak_rss_mb),
        ("engine", old.engine_mb, new.engine_mb),
        ("weights", old.model_mb, new.model_mb),
    ]
    found = []
    for what, was, now in known:
        if not was or not now:
            continue
        regression = limit is not None and now > (1 + limit) * was
        if regression or abs(now / was - 1) > _GROWTH:
            found.append(Growth(what=what, baseline_mb=was, candidate_mb=now, regression=regression))
    return found


def _notes(before: Entry, after: Entry) -> list[str]:
    old, new, notes = before.measured, after.measured, []
    if abs(new.gmacs / old.gmacs - 1) > _OTHER_WORK:
        notes.append(f"another schedule or model: {old.gmacs:.4g} -> {new.gmacs:.4g} GMACs")
    if old.batch != new.batch:
        notes.append(f"batch {old.batch} -> {new.batch}")
    if old.threads != new.threads:
        notes.append(f"{old.threads or '-'} -> {new.threads or '-'} threads")
    if (before.comparison is None) != (after.comparison is None) and not (before.dense or after.dense):
        notes.append("only one of the runs has its speed-up over dense")
    for side, one in (("baseline", old), ("candidate", new)):
        if one.failure is not None:
            notes.append(f"it ended early in the {side}: {printable(one.failure.message)}")
    return notes


def _missing(before: Mapping[Setting, Entry], after: Mapping[Setting, Entry], telling: Sequence[str]) -> list[Missing]:
    sides: tuple[tuple[Side, Mapping[Setting, Entry]], ...] = (("baseline", before), ("candidate", after))
    found = []
    for setting in {**before, **after}:
        for name, side in sides:
            entry = side.get(setting)
            if entry is not None and _measured(entry):
                continue
            failure = entry.measured.failure if entry is not None else None
            reason = f"failed ({printable(failure.message)})" if failure else "not measured"
            found.append(Missing(setting=setting, label=setting.label(telling), side=name, reason=reason))
    return found


def _cautions(baseline: BenchReport | SweepReport, candidate: BenchReport | SweepReport) -> list[str]:
    """What the runs say of themselves; of several warnings of one kind, the first."""
    found = []
    for name, report in (("baseline", baseline), ("candidate", candidate)):
        if report.progress != "complete":
            state = "was interrupted" if report.progress == "interrupted" else "was cut off, or still runs"
            found.append(f"{name}: its measurement {state}; it is compared with what there is")
        seen = {caution.kind: caution for run in reversed(bench_runs(report)) for caution in reversed(run.warnings)}
        found += [f"{name}: {printable(caution.message)}" for caution in reversed(seen.values())]
    if bench_runs(candidate)[0].before.at < bench_runs(baseline)[0].before.at:
        found.append("the candidate was measured before the baseline; are they swapped?")
    return found


def _figures(pair: Pair, criteria: Criteria) -> list[Change]:
    """Those that are judged."""
    return [one for one in (None if criteria.speedup_only else pair.latency_ms, pair.speedup) if one is not None]


def _judged(pair: Pair, criteria: Criteria) -> bool:
    return any(one.interval is not None for one in _figures(pair, criteria))


def _unsure(pairs: Sequence[Pair], criteria: Criteria) -> list[str]:
    found = []
    remedies = {
        "unsure": "is too noisy to tell from a regression; measure both for longer (--rounds, --duration)",
        "too few rounds": f"has too few rounds to be judged; measure with --rounds {FEWEST_ROUNDS} or more",
    }
    for outcome, remedy in remedies.items():
        of_those = [pair for pair in pairs if outcome in {one.outcome for one in _figures(pair, criteria)}]
        settings = [pair.label for pair in of_those if not pair.regressions]
        if settings:
            more = f" (and {len(settings) - 1} more)" if len(settings) > 1 else ""
            found.append(f"{settings[0]}{more} {remedy}")
    return found


def _conclusion(pairs: Sequence[Pair], criteria: Criteria) -> str:
    """One line: whether there is a regression, of what, and what to make of it."""
    regressed = [pair for pair in pairs if pair.regressions]
    what, percent = "speed-ups" if criteria.speedup_only else "configurations", f"{100 * criteria.max_slowdown:g} %"
    if regressed:
        each = "; ".join(f"{pair.label} {' and '.join(pair.regressions)}" for pair in regressed[:3])
        more = f"; and {len(regressed) - 3} more" if len(regressed) > 3 else ""
        first = f"regression in {len(regressed)} of {len(pairs)}: {each}{more}"
    else:
        judged = [pair for pair in pairs if _judged(pair, criteria)]
        first = f"no regression: none of {len(judged)} {what} was shown to be more than {percent} slower"
    return "; ".join([first, *_explanation(pairs)])


def _explanation(pairs: Sequence[Pair]) -> list[str]:
    """Where dense itself has changed: what that says of the variants."""
    moved = [pair for pair in pairs if pair.dense and pair.latency_ms.outcome in ("worse", "better")]
    if not moved:
        return []
    example = f"{moved[0].label} itself takes {moved[0].latency_ms.ratio:.2f}x as long"
    outcomes = {pair.speedup.outcome for pair in pairs if pair.speedup is not None}
    if outcomes == {"holds"}:
        return [f"{example} while the speed-ups hold: the machine or the runtime is different, not the pruning"]
    if "worse" in outcomes and moved[0].latency_ms.outcome == "better":
        return [f"{example}: a speed-up over it can fall without a variant being slower"]
    return [example]
