"""What a replayed load is and what became of it: records, and the pure functions that judge them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field, ValidationError

from ztdeploy.core.data import errors_of, read_settings
from ztdeploy.core.errors import InputError, did_you_mean
from ztdeploy.core.records import FiniteRecord, Record
from ztdeploy.core.verdict import Verdict
from ztdeploy.target.adaptive.governor import GovernorDecision
from ztdeploy.target.measure.statistics import percentile

#: Seconds behind a change of the load that do not count: what a governor may take to notice it. Where calls are long,
#: it is so many calls at the target.
REACTION_S, REACTION_CALLS = 1.0, 10
#: Share of the seconds that a target is to be held in.
HELD = 0.9
_LOADS = Path(__file__).with_name("loads")
_DAY_S = 24 * 3600


class LoadPhase(FiniteRecord):
    """What else the machine does for some time."""

    seconds: float = Field(gt=0, le=_DAY_S)
    busy: int = Field(default=0, ge=0, le=64)  #: threads of another process that compute all the time
    slowdown: float = Field(default=1.0, ge=1, le=100)  #: how many times longer a call takes, by sleeping

    @property
    def kind(self) -> tuple[int, float]:
        """Phases of one kind load the machine alike."""
        return self.busy, self.slowdown


class LoadTimeline(FiniteRecord):
    """Phases, one behind the other."""

    title: str = ""
    phase: tuple[LoadPhase, ...] = Field(min_length=1, max_length=10_000)

    @property
    def seconds(self) -> float:
        return sum(one.seconds for one in self.phase)

    @property
    def starts(self) -> tuple[float, ...]:
        """Seconds from the beginning to each phase."""
        return tuple(sum(one.seconds for one in self.phase[:at]) for at in range(len(self.phase)))

    @property
    def changes(self) -> tuple[float, ...]:
        """When the load changes."""
        starts = self.starts
        return tuple(starts[at] for at in range(1, len(starts)) if self.phase[at].kind != self.phase[at - 1].kind)

    def lasting(self, seconds: float | None) -> LoadTimeline:
        """The same for so long: cut off, or repeated from its beginning."""
        if seconds is None:
            return self
        phases, left = list[LoadPhase](), seconds
        while left > 1e-9:
            phase = self.phase[len(phases) % len(self.phase)]
            phases.append(phase.model_copy(update={"seconds": min(phase.seconds, left)}))
            left -= phase.seconds
        return self.model_copy(update={"phase": tuple(phases)})


def read_load(path: Path | None) -> LoadTimeline:
    """
    Args:
        path: a TOML or JSON file, or the name of a shipped load; None for the first of these.

    Raises:
        InputError: there is no such file, or it is no load, with the reason.
    """
    shipped = {file.stem: file for file in sorted(_LOADS.glob("*.toml"))}
    file = shipped["one-core"] if path is None else shipped.get(str(path), path)
    if not file.exists() and not file.suffix:
        raise InputError(
            f"load '{file}'", "a TOML or JSON file, or the name of a load", did_you_mean(str(file), shipped)
        )
    data = read_settings(file, what="load file", expected="a TOML or JSON file")
    if not data:
        raise InputError(f"load file '{file}' is empty", "[[phase]] tables", "give the file that was meant")
    try:
        return LoadTimeline.model_validate(data)
    except ValidationError as error:
        first = errors_of(error)[0]
        where, wrong = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Input should be ")
        if first["type"] == "extra_forbidden":
            known = LoadPhase.model_fields if "phase" in first["loc"] else LoadTimeline.model_fields
            given = f"load file '{file}' has the unknown key '{where}'"
            raise InputError(given, "known keys only", did_you_mean(str(first["loc"][-1]), known)) from error
        wrong = "[[phase]] tables" if first["type"] in ("missing", "too_short") and where == "phase" else wrong
        given = f"load file '{file}' at '{where or 'the top'}'"
        raise InputError(given, wrong, "see 'Hold a latency' in the documentation for an example") from error


class ReplaySecond(Record):
    """The calls that ended within one second."""

    second: int  #: since the beginning
    calls: int
    p95_ms: float
    variant: str  #: that most of them ran on
    counted: bool  #: whether it lies behind the reaction time


class ReplayRun(Record):
    """The whole timeline with one variant, or with a governor. `ended_s`, `latency_ms`, `variant`: a value per call.

    Where a governor chooses the number of threads as well, a variant's name is followed by it: "dense on 1 thread".
    """

    name: str  #: a variant's, or "governor"
    variants: tuple[str, ...]  #: that may run, from the most faithful to the fastest
    ended_s: tuple[float, ...]  #: since the beginning of the timeline
    latency_ms: tuple[float, ...]
    variant: tuple[int, ...]  #: by call, its position in `variants`
    decisions: tuple[GovernorDecision, ...]  #: `at_s` since the beginning of the timeline
    peak_rss_mb: float
    seconds: tuple[ReplaySecond, ...] = ()
    held: float | None = None  #: share of the counted seconds whose p95 is within the target
    p95_ms: float | None = None  #: of all calls
    changes: tuple[int, ...] = ()  #: of the variant, behind the beginning and behind each change of the load

    @property
    def governed(self) -> bool:
        return bool(self.decisions)

    @property
    def last(self) -> str | None:
        """The variant of the last call."""
        return self.variants[self.variant[-1]] if self.variant else None


class LoadReplay(Record):
    """One load, replayed with static variants and with a governor, one after the other."""

    load: LoadTimeline
    target_ms: float
    min_fidelity: float | None
    batch: int
    threads: int | None
    reaction_s: float
    runs: tuple[ReplayRun, ...]


def reaction_s(target_ms: float) -> float:
    """The reaction time that is granted behind a change of the load."""
    return max(REACTION_S, REACTION_CALLS * target_ms / 1000)


def judged(run: ReplayRun, load: LoadTimeline, target_ms: float) -> ReplayRun:
    """The same run with what follows from its calls."""
    by_second: dict[int, list[int]] = {}
    for call, ended in enumerate(run.ended_s):
        by_second.setdefault(int(ended), []).append(call)
    reaction, edges = reaction_s(target_ms), (0.0, *load.changes)
    seconds = []
    for second, calls in sorted(by_second.items()):
        seconds.append(
            ReplaySecond(
                second=second,
                calls=len(calls),
                p95_ms=round(percentile([run.latency_ms[call] for call in calls], 95), 4),
                variant=run.variants[Counter(run.variant[call] for call in calls).most_common(1)[0][0]],
                counted=not any(edge - 1 < second < edge + reaction for edge in edges),
            )
        )
    counted = [one for one in seconds if one.counted]
    bounds = [*zip(edges, (*edges[1:], load.seconds + _DAY_S), strict=True)]
    changes = [one.at_s for one in run.decisions if one.is_change]
    return run.model_copy(
        update={
            "seconds": tuple(seconds),
            "held": sum(one.p95_ms <= target_ms for one in counted) / len(counted) if counted else None,
            "p95_ms": percentile(run.latency_ms, 95) if run.latency_ms else None,
            "changes": tuple(sum(start <= at < end for at in changes) for start, end in bounds),
        }
    )


def verdict_of_replay(replay: LoadReplay) -> Verdict:
    """Whether a governor is worth it under this load."""
    governed = next((run for run in replay.runs if run.governed), None)
    static = [run for run in replay.runs if not run.governed]
    if governed is None or governed.held is None:
        return Verdict(
            decision="open", sentence="The replay was too short to say how well a governor holds the target."
        )
    others = [f"{run.name} in {100 * (run.held or 0):.0f} %" for run in static]
    kept = f"p95 within {replay.target_ms:g} ms in {100 * governed.held:.0f} % of the seconds"
    against = f" ({', '.join(others)})" if others else ""
    most, ends = max(governed.changes, default=0), governed.last
    times = f"{most} time{'' if most == 1 else 's'} for each change of the load"
    switched = f"it changed variant or threads at most {times}, and ended"
    enough = next((run for run in static if (run.held or 0) >= HELD), None)
    if enough is not None and enough.name == static[0].name:
        return Verdict(
            decision="baseline",
            sentence=f"No governor is needed: {enough.name} alone keeps {kept.partition(' in ')[0]} in "
            f"{100 * (enough.held or 0):.0f} % of the seconds under this load.",
            variant=enough.name,
        )
    if governed.held >= HELD:
        return Verdict(decision="deploy", sentence=f"Use the governor: it keeps {kept}{against}; {switched} on {ends}.")
    return Verdict(
        decision="open",
        sentence=f"The governor keeps {kept} only{against}; raise the target, or build smaller keep ratios.",
    )


def runs_as_rows(runs: Sequence[ReplayRun]) -> list[tuple[str, ...]]:
    """A row of words for each run: name, share of seconds held, p95, slowest second, changes, last variant, memory."""
    return [
        (
            run.name,
            "-" if run.held is None else f"{100 * run.held:.0f} %",
            "-" if run.p95_ms is None else f"{run.p95_ms:.1f}",
            f"{max((one.p95_ms for one in run.seconds), default=0):.1f}",
            f"{sum(run.changes)}",
            f"{max(run.changes, default=0)}",
            run.last or "-",
            f"{run.peak_rss_mb:.0f}",
        )
        for run in runs
    ]


ROW_HEADS = ("", "seconds held", "p95, ms", "slowest second, ms", "changes", "most per change of load", "ends on", "MB")
