"""Whether something became slower between two runs: `compare_reports` is the job on one screen. Pure.

Two runs differ by more than their rounds show: another day's clocks, another placement of memory. Hence two figures
are judged, which fail in different ways, and both against a threshold that such differences should stay below:

- **Latency**, the ratio of the runs' medians. It sees everything, also a machine that is slower today.
- **Speed-up over the baseline model**, a ratio within each run. A slower machine does not change it; a slower variant
  does.

No round of one run belongs to a round of the other, so intervals resample the rounds of each by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Literal

from pydantic import Field

from ztdeploy.core.errors import InputError
from ztdeploy.core.records import Record
from ztdeploy.core.text import printable
from ztdeploy.report.compare.entries import FIELDS, Compared, Identity, bench_runs, entries, telling_fields
from ztdeploy.report.compare.machine_facts import Difference, differences
from ztdeploy.target.measure.bench_report import BenchReport
from ztdeploy.target.measure.statistics import FEWEST_ROUNDS, RESAMPLES, Interval, unpaired_ratio_interval
from ztdeploy.target.measure.sweep_report import SweepReport

SCHEMA_VERSION: Literal[1] = 1
KIND: Literal["ztdeploy-compare"] = "ztdeploy-compare"
Side = Literal["baseline", "candidate"]
#: "worse" and "better" lie beyond the threshold with the whole interval, "holds" shows that it is not worse than
#: that; an "unsure" interval lies on both sides.
Judgement = Literal["worse", "better", "holds", "unsure", "too few rounds"]
#: Memory and sizes that change by less are not worth a word.
_GROWTH = 0.05
#: Relative difference of GMACs from which on two variants are not the same schedule.
_OTHER_WORK = 1e-3
#: What is to be done about figures that are not certain enough.
_REMEDIES: dict[Judgement, str] = {
    "unsure": "is too noisy to tell from a regression; measure both for longer (--rounds, --duration)",
    "too few rounds": f"has too few rounds to be judged; measure with --rounds {FEWEST_ROUNDS} or more",
}


class Criteria(Record):
    """What counts as a regression. Shares of 1: 0.05 is 5 %."""

    max_slowdown: float = Field(default=0.05, ge=0, le=10)
    max_memory_growth: float | None = Field(default=None, ge=0, le=10)  #: None: memory and sizes are noted, not judged
    speedup_only: bool = False  #: latencies are shown, not judged
    any_machine: bool = False
    match: tuple[str, ...] = FIELDS
    seed: int = 0  #: of the bootstrap


class RatioChange(Record):
    """A figure in both runs."""

    baseline: float
    candidate: float
    ratio: float  #: candidate over baseline
    interval: Interval | None  #: of the ratio; None: too few rounds
    outcome: Judgement

    def __str__(self) -> str:
        """Such as "1.120x (1.090 to 1.140)"."""
        return f"{self.ratio:.3f}x" + (f" ({self.interval:.3f})" if self.interval else "")


class Growth(Record):
    """Memory or a file that changed by more than a little, in MB of 10^6 bytes."""

    what: str
    baseline_mb: float
    candidate_mb: float
    regression: bool

    def __str__(self) -> str:
        percent = 100 * (self.candidate_mb / self.baseline_mb - 1)
        return f"{self.what} {self.baseline_mb:.4g} -> {self.candidate_mb:.4g} MB ({percent:+.0f} %)"


class ConfigurationPair(Record):
    """One configuration in both runs."""

    setting: Identity
    label: str  #: what tells it from the others, in words
    dense: bool
    latency_ms: RatioChange  #: medians of the rounds' medians
    speedup: RatioChange | None  #: over dense in the same run; None where one of the runs has no such figure
    growths: tuple[Growth, ...]
    notes: tuple[str, ...]  #: why the two may not be the same thing
    regressions: tuple[str, ...] = ()  #: in words; empty where there is none
    verdict: str = ""  #: in a word or two

    @property
    def remarks(self) -> list[str]:
        """What is to be said beside the figures; what is a regression is said in the conclusion."""
        return [*self.notes, *(str(growth) for growth in self.growths if not growth.regression)]

    def judged(self, criteria: Criteria) -> list[RatioChange]:
        """The figures that are judged."""
        return [one for one in (None if criteria.speedup_only else self.latency_ms, self.speedup) if one is not None]


class Missing(Record):
    """A configuration without figures in one of the runs."""

    setting: Identity
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
    pairs: tuple[ConfigurationPair, ...]
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
    before, after = entries(baseline, names[0], criteria.match), entries(candidate, names[1], criteria.match)
    found = differences(bench_runs(baseline), bench_runs(candidate))
    shared = [one for one in before if one in after and before[one].measured.turns and after[one].measured.turns]
    if not shared:
        raise _nothing_in_common(before, after, names)
    others = [str(one) for one in found if one.other_machine]
    if others and not criteria.any_machine:
        raise InputError(
            f"not the same machine: {'; '.join(others)}",
            "two runs on one machine",
            "measure both on one, or give --any-machine to see the figures all the same",
        )
    telling = telling_fields({**before, **after})
    pairs = tuple(_pair(before[one], after[one], str(one.only(telling)), criteria, resamples) for one in shared)
    if not any(change.interval for pair in pairs for change in pair.judged(criteria)):
        raise InputError(
            "there is not one configuration whose rounds suffice for an interval",
            f"{FEWEST_ROUNDS} rounds or more in both reports" + (", with dense" if criteria.speedup_only else ""),
            f"measure again with --rounds {FEWEST_ROUNDS} or more",
        )
    return ReportComparison(
        baseline=printable(names[0]),
        candidate=printable(names[1]),
        criteria=criteria,
        differences=found,
        pairs=pairs,
        missing=tuple(_missing(before, after, telling)),
        cautions=(*_cautions(baseline, candidate), *_unsure(pairs, criteria)),
        regressed=any(pair.regressions for pair in pairs),
        conclusion=_conclusion(pairs, criteria),
    )


def judge(ratio: Interval | None, threshold: float, *, larger_is_worse: bool) -> Judgement:
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


def _nothing_in_common(
    before: Mapping[Identity, Compared], after: Mapping[Identity, Compared], names: tuple[str, str]
) -> InputError:
    sides = []
    for name, side in zip(names, (before, after), strict=True):
        held = [str(identity) for identity, entry in side.items() if entry.measured.turns]
        more = f" and {len(held) - 3} more" if len(held) > 3 else ""
        sides.append(f"{name} holds {'; '.join(held[:3]) + more if held else 'no figures'}")
    return InputError(
        f"no configuration was measured in both: {', '.join(sides)}",
        "reports with the same variants, batch sizes and threads",
        "measure the same ones, or say with --match what makes two the same",
    )


def _pair(before: Compared, after: Compared, label: str, criteria: Criteria, resamples: int) -> ConfigurationPair:
    def change(old: Sequence[float], new: Sequence[float], *, larger_is_worse: bool) -> RatioChange:
        interval = unpaired_ratio_interval(new, old, seed=criteria.seed, resamples=resamples)
        outcome = judge(interval, criteria.max_slowdown, larger_is_worse=larger_is_worse)
        was, now = median(old), median(new)
        return RatioChange(baseline=was, candidate=now, ratio=now / was, interval=interval, outcome=outcome)

    speedup, old, new = None, before.comparison, after.comparison
    if old and new and old.reference == new.reference:
        speedup = change(old.ratios, new.ratios, larger_is_worse=False)
    pair = ConfigurationPair(
        setting=before.identity,
        label=label,
        dense=before.dense or after.dense,
        latency_ms=change(before.round_medians_ms, after.round_medians_ms, larger_is_worse=True),
        speedup=speedup,
        growths=tuple(_growths(before, after, criteria)),
        notes=tuple(_notes(before, after)),
    )
    found = dict(_regressions(pair, criteria))
    verdict = ", ".join(found) or _verdict(pair, criteria)
    return pair.model_copy(update={"regressions": tuple(found.values()), "verdict": verdict})


def _regressions(pair: ConfigurationPair, criteria: Criteria) -> Iterator[tuple[str, str]]:
    """What became worse than it may: in a word, and in a sentence's second half."""
    if pair.latency_ms.outcome == "worse" and not criteria.speedup_only:
        yield "SLOWER", f"takes {pair.latency_ms} as long"
    if pair.speedup is not None and pair.speedup.outcome == "worse":
        old, new = pair.speedup.baseline, pair.speedup.candidate
        yield "LESS SPEED-UP", f"its speed-up fell from {old:.2f}x to {new:.2f}x, to {pair.speedup} of it"
    grown = [str(growth) for growth in pair.growths if growth.regression]
    if grown:
        yield "MORE MEMORY", f"takes more memory ({', '.join(grown)})"


def _verdict(pair: ConfigurationPair, criteria: Criteria) -> str:
    """Of a pair without a regression: what is least certain about it, then what is best."""
    outcomes = {one.outcome for one in pair.judged(criteria)}
    words: dict[Judgement, str] = {
        "too few rounds": "too few rounds",
        "unsure": "unsure",
        "better": "more speed-up" if criteria.speedup_only else "faster",
        "holds": "holds",
    }
    return next((word for outcome, word in words.items() if outcome in outcomes), "not judged")


def _growths(before: Compared, after: Compared, criteria: Criteria) -> Iterator[Growth]:
    limit, fields = (
        criteria.max_memory_growth,
        {"peak_rss_mb": "peak memory", "engine_mb": "engine", "model_mb": "weights"},
    )
    for field, what in fields.items():
        was, now = getattr(before.measured, field), getattr(after.measured, field)
        if not was or not now:
            continue
        regression = limit is not None and now > (1 + limit) * was
        if regression or abs(now / was - 1) > _GROWTH:
            yield Growth(what=what, baseline_mb=was, candidate_mb=now, regression=regression)


def _notes(before: Compared, after: Compared) -> Iterator[str]:
    old, new = before.measured, after.measured
    if abs(new.gmacs / old.gmacs - 1) > _OTHER_WORK:
        yield f"another schedule or model: {old.gmacs:.4g} -> {new.gmacs:.4g} GMACs"
    if old.batch != new.batch:
        yield f"batch {old.batch} -> {new.batch}"
    if old.threads != new.threads:
        yield f"{old.threads or '-'} -> {new.threads or '-'} threads"
    if (before.comparison is None) != (after.comparison is None) and not (before.dense or after.dense):
        yield "only one of the runs has its speed-up over dense"
    for side, one in (("baseline", old), ("candidate", new)):
        if one.failure is not None:
            yield f"it ended early in the {side}: {printable(one.failure.message)}"


def _missing(
    before: Mapping[Identity, Compared], after: Mapping[Identity, Compared], telling: Sequence[str]
) -> Iterator[Missing]:
    sides: dict[Side, Mapping[Identity, Compared]] = {"baseline": before, "candidate": after}
    for identity in {**before, **after}:
        for name, side in sides.items():
            measured = side[identity].measured if identity in side else None
            if measured is not None and measured.turns:
                continue
            failure = measured.failure if measured is not None else None
            reason = f"failed ({printable(failure.message)})" if failure else "not measured"
            yield Missing(setting=identity, label=str(identity.only(telling)), side=name, reason=reason)


def _cautions(baseline: BenchReport | SweepReport, candidate: BenchReport | SweepReport) -> Iterator[str]:
    """What the runs say of themselves; of several warnings of one kind, the first."""
    for name, report in (("baseline", baseline), ("candidate", candidate)):
        if report.progress != "complete":
            state = "was interrupted" if report.progress == "interrupted" else "was cut off, or still runs"
            yield f"{name}: its measurement {state}; it is compared with what there is"
        seen = {caution.kind: caution for run in reversed(bench_runs(report)) for caution in reversed(run.warnings)}
        yield from (f"{name}: {printable(caution.message)}" for caution in reversed(seen.values()))
    if bench_runs(candidate)[0].before.at < bench_runs(baseline)[0].before.at:
        yield "the candidate was measured before the baseline; are they swapped?"


def _unsure(pairs: Sequence[ConfigurationPair], criteria: Criteria) -> Iterator[str]:
    for outcome, remedy in _REMEDIES.items():
        labels = [
            pair.label
            for pair in pairs
            if not pair.regressions and any(one.outcome == outcome for one in pair.judged(criteria))
        ]
        if labels:
            more = f" (and {len(labels) - 1} more)" if len(labels) > 1 else ""
            yield f"{labels[0]}{more} {remedy}"


def _conclusion(pairs: Sequence[ConfigurationPair], criteria: Criteria) -> str:
    """One line: whether there is a regression, of what, and what to make of it."""
    regressed = [pair for pair in pairs if pair.regressions]
    if regressed:
        each = "; ".join(f"{pair.label} {' and '.join(pair.regressions)}" for pair in regressed[:3])
        more = f"; and {len(regressed) - 3} more" if len(regressed) > 3 else ""
        first = f"regression in {len(regressed)} of {len(pairs)}: {each}{more}"
    else:
        count = sum(any(one.interval for one in pair.judged(criteria)) for pair in pairs)
        what = "speed-ups" if criteria.speedup_only else "configurations"
        percent = f"{100 * criteria.max_slowdown:g} %"
        first = f"no regression: none of {count} {what} was shown to be more than {percent} slower"
    return "; ".join([first, *_explanation(pairs)])


def _explanation(pairs: Sequence[ConfigurationPair]) -> list[str]:
    """Where the baseline model itself has changed: what that says of the variants."""
    moved = next((pair for pair in pairs if pair.dense and pair.latency_ms.outcome in ("worse", "better")), None)
    if moved is None:
        return []
    example = f"{moved.label} itself takes {moved.latency_ms.ratio:.2f}x as long"
    outcomes = {pair.speedup.outcome for pair in pairs if pair.speedup is not None}
    if outcomes == {"holds"}:
        return [f"{example} while the speed-ups hold: the machine or the runtime is different, not the pruning"]
    if "worse" in outcomes and moved.latency_ms.outcome == "better":
        return [f"{example}: a speed-up over it can fall without a variant being slower"]
    return [example]
