"""The governor's rule against simulated engines under simulated loads, by a simulated clock."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from ztdeploy.target.adaptive.control import Control, Rung, robust_p95
from ztdeploy.target.adaptive.governor import Governor, GovernorDecision

#: Milliseconds of a call on a quiet machine of two cores, on two threads and on one.
THREADED = {"dense": (16, 25), "keep-0.70": (14.5, 21), "keep-0.60": (14, 18), "keep-0.50": (12.5, 16)}
#: Milliseconds of a call on a quiet machine, on one number of threads.
LADDER = {"dense": 20.0, "keep-0.85": 16.0, "keep-0.70": 12.5, "keep-0.50": 9.0, "keep-0.40": 7.0}
TARGET = 28.0
Load = Callable[[float], float]


@dataclass
class Replay:
    """What became of a simulated run."""

    rungs: tuple[Rung, ...]
    target_ms: float
    calls: list[tuple[float, float, int]] = field(default_factory=list)  #: when a call ended, milliseconds, rung
    decisions: list[GovernorDecision] = field(default_factory=list)

    @property
    def changes(self) -> list[GovernorDecision]:
        return [one for one in self.decisions if one.is_change]

    def changes_between(self, start: float, end: float) -> int:
        return sum(start <= one.at_s < end for one in self.changes)

    def held(self, without: Callable[[float], bool]) -> float:
        """Share of the seconds whose p95 is within the target, but for some."""
        seconds: dict[int, list[float]] = {}
        for at, latency, _ in self.calls:
            seconds.setdefault(int(at), []).append(latency)
        counted = [samples for second, samples in seconds.items() if not without(second)]
        return sum(robust_p95(samples) <= self.target_ms for samples in counted) / len(counted)


def replay(
    load: Load,
    seconds: float,
    *,
    noise: float = 0.05,
    hides: float = 0.0,
    every_s: float = 0.0,
    outlier: Callable[[int], float] = lambda _call: 0.0,
    seed: int = 0,
    governor: Governor | None = None,
    busy: Load | None = None,
    kernel: bool = True,
) -> Replay:
    """Calls one after the other.

    Args:
        load: by the second, how many times longer a call of the slowest variant takes.
        noise: deviation of the logarithm of a call's time.
        hides: how much less of the load the fastest variant feels, from 0 to 1.
        every_s: seconds from the start of one call to the next, where a call is not longer.
        outlier: milliseconds that a call takes longer, by its number.
        busy: the share of one of two cores that others use, by the second; the rungs are those of `THREADED`.
        kernel: whether the kernel says what others use.
    """
    generator, now = random.Random(seed), 0.0
    tail = math.exp(1.645 * noise)
    rungs = [Rung(name, ms, None) for name, ms in LADDER.items()]
    if busy is not None:
        rungs = [Rung(name, ms, None, 2 - at) for name, pair in THREADED.items() for at, ms in enumerate(pair)]
    used = busy or (lambda _now: 0.0)
    free = (lambda: 2 - used(now)) if kernel else (lambda: math.inf)
    measured = [rung._replace(latency_ms=rung.latency_ms * tail) for rung in rungs]
    control = Control(measured, governor or Governor(TARGET), now, free)
    found, since = Replay(tuple(measured), control.start.target_ms), 0
    for call in range(10**6):
        if now > seconds:
            break
        felt = 1 - hides * control.at / (len(rungs) - 1)
        crowd = used(now) if rungs[control.at].threads == 2 else 0.0  # its threads wait for each other
        slowdown = (1 + (load(now) - 1) * felt) * (1 + crowd)
        if busy is not None:
            slowdown *= {0: 1.7, 1: 1.3}.get(since, 1.0)  # caches and threads have to warm up
        random_part = generator.lognormvariate(0, noise + 0.3 * crowd)
        latency = rungs[control.at].latency_ms * slowdown * random_part + outlier(call)
        begun, rung = now, control.at
        now += latency / 1000
        found.calls.append((now, latency, rung))
        decision = control.observe(rung, latency, now)
        since = since + 1 if control.at == rung else 0
        if decision:
            found.decisions.append(decision)
        now = max(now, begun + every_s)
    return found


def half_of_the_time(now: float) -> float:
    """From 10 to 20 s of every 20."""
    return 2.0 if now % 20 >= 10 else 1.0


def after_a_change(second: float) -> bool:
    """The governor's reaction time is one second."""
    return second % 10 < 1


@pytest.mark.parametrize("hides", [0.0, 0.3, 0.6])
@pytest.mark.parametrize("noise", [0.02, 0.05, 0.1])
@pytest.mark.parametrize("slow", [1.5, 2.0, 3.0])
def test_a_load_that_comes_and_goes_is_held_with_two_changes_each(noise: float, slow: float, hides: float) -> None:
    found = replay(lambda now: slow if now % 20 >= 10 else 1.0, 60, noise=noise, hides=hides)
    assert found.held(after_a_change) >= 0.9
    assert max(found.changes_between(start, start + 10) for start in range(0, 60, 10)) <= 2
    quiet = [rung for at, _, rung in found.calls if 5 <= at % 20 < 10]
    assert set(quiet) == {0}, "the best variant runs again"
    assert {one.cause for one in found.changes} == {"missed", "room"}


#: name: what is simulated, the most changes, and the least share of seconds that are held.
SCENARIOS: dict[str, tuple[Replay, int, float]] = {
    "quiet": (replay(lambda _now: 1.0, 30, noise=0.1), 0, 1.0),
    "one slow call in 40": (replay(lambda _now: 1.0, 30, outlier=lambda call: 200.0 * (call % 40 == 24)), 0, 1.0),
    "three slow calls in 200": (replay(lambda _now: 1.0, 30, outlier=lambda call: 200.0 * (call % 200 < 3)), 0, 0.7),
    "faster than the reaction": (replay(lambda now: 2.0 if now % 0.4 >= 0.2 else 1.0, 30), 2, 0.9),
    "faster than a climb": (replay(lambda now: 2.0 if now % 2 >= 1 else 1.0, 60), 2, 0.9),
    "a slow ramp": (replay(lambda now: 1 + now / 40, 60), 4, 0.85),
    "more than any variant holds": (replay(lambda now: 1.0 if now < 5 else 10.0, 20), 1, 0.2),
    "two calls a second": (replay(half_of_the_time, 40, every_s=0.5), 3, 0.85),
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_changes_are_few_and_the_target_is_held(name: str) -> None:
    found, most, least = SCENARIOS[name]
    assert len(found.changes) <= most
    assert found.held(lambda _second: False) >= least


def test_waiting_doubles_where_climbs_fail() -> None:
    """Load of three seconds out of six: every climb is tried in vain, so there are fewer and fewer."""
    found = replay(lambda now: 2.0 if now % 6 >= 3 else 1.0, 120)
    assert 2 * found.changes_between(60, 120) <= found.changes_between(0, 60)


def test_what_no_variant_holds_is_said_and_not_repeated() -> None:
    found = [one for one in SCENARIOS["more than any variant holds"][0].decisions if one.cause == "out of reach"]
    assert len(found) == 1
    assert (found[0].before, found[0].after, found[0].is_change) == ("keep-0.40", "keep-0.40", False)


def test_clocks_that_step_and_machines_that_sleep_are_no_load() -> None:
    control = Control([Rung(name, ms, None) for name, ms in LADDER.items()], Governor(TARGET), 0.0)
    for call in range(60):
        assert control.observe(0, -5.0 if call % 2 else math.nan, float(call)) is None  # a clock that steps
    slow = 0
    for call in range(60):  # three slow calls, then a night's sleep
        slow += control.observe(0, 100.0 if call % 4 else 20.0, 100.0 + call // 4 * 36_000 + call % 4) is not None
    assert slow == 0
    assert control.observe(1, 1e6, 1e6) is None  # a call that began ahead of a change
    assert control.at == 0


def test_limits_of_the_machine_hold_at_once_and_end_with_them() -> None:
    control = Control([Rung(name, ms, None) for name, ms in LADDER.items()], Governor(TARGET), 0.0)
    hot = control.limit(2, "heat", "the cpu is hot", 1.0)
    assert hot is not None
    assert (hot.before, hot.after, hot.cause) == ("dense", "keep-0.70", "heat")
    quiet = [control.observe(control.at, LADDER["keep-0.70"], 1 + call / 50) for call in range(500)]
    assert not any(quiet), "nothing better may run"
    assert control.limit(0, "heat", "", 11.0) is None
    found = [one for call in range(200) if (one := control.observe(control.at, LADDER["keep-0.70"], 11 + call / 50))]
    assert [one.after for one in found] == ["dense"]


def test_the_target_decides_what_runs_first() -> None:
    rungs = [Rung(name, ms, None) for name, ms in LADDER.items()]
    starts = {target: Control(rungs, Governor(target), 0.0).start for target in (30, 15, 5)}
    assert [one.after for one in starts.values()] == ["dense", "keep-0.70", "keep-0.40"]
    assert all(one.before is None and not one.is_change for one in starts.values())


# -------------------- threads

HOLDS = Governor(20.7)


def quiet(_now: float) -> float:
    return 1.0


def on_and_off(now: float) -> float:
    """A core is busy from 10 to 20 s of every 20, twice."""
    return 1.0 if now % 20 >= 10 and now < 40 else 0.0


@pytest.mark.parametrize("kernel", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_threads_are_shed_while_a_core_is_busy(seed: int, kernel: bool) -> None:
    found = replay(quiet, 60, governor=HOLDS, busy=on_and_off, kernel=kernel, seed=seed)
    assert found.held(after_a_change) >= 0.9
    assert max(found.changes_between(start, start + 10) for start in range(0, 60, 10)) <= 2
    loaded = {found.rungs[rung] for at, _, rung in found.calls if at % 20 >= 11 and at < 40}
    idle = [found.rungs[rung] for at, _, rung in found.calls if (8 <= at % 20 < 10 if kernel else at > 58)]
    assert {(one.variant, one.threads) for one in idle} == {("dense", 2)}, "the best variant runs again"
    assert not kernel or {(one.variant, one.threads) for one in loaded} == {("keep-0.50", 1)}
    first = found.changes[0]
    assert (first.before, first.before_threads, first.after, first.after_threads) == ("dense", 2, "keep-0.50", 1)
    assert "dense on 2 threads" in first.reason
    assert first.change == "dense on 2 threads -> keep-0.50 on 1 thread"


def test_a_target_that_fewer_threads_hold_costs_no_fidelity() -> None:
    found = replay(quiet, 25, governor=Governor(32), busy=on_and_off)
    assert {found.rungs[rung].variant for _, _, rung in found.calls} == {"dense"}
    assert [one.change for one in found.changes] == [
        "dense on 2 threads -> dense on 1 thread",
        "dense on 1 thread -> dense on 2 threads",
    ]


#: name: what is simulated, the most changes, the least share of seconds that are held, and where it ends.
THREAD_SCENARIOS: dict[str, tuple[Replay, int, float, tuple[str, int] | None]] = {
    "quiet": (replay(quiet, 30, governor=HOLDS, busy=lambda _now: 0.0), 0, 1.0, ("dense", 2)),
    "throttling, where fewer threads do not help": (
        replay(lambda now: 1.25 if now > 5 else 1.0, 60, governor=HOLDS, busy=lambda _now: 0.0), 2, 0.9, None
    ),
    "throttling that ends": (
        replay(lambda now: 1.25 if 5 < now < 25 else 1.0, 60, governor=HOLDS, busy=lambda _now: 0.0),
        4, 0.9, ("dense", 2),
    ),
    "half a core": (
        replay(quiet, 60, governor=HOLDS, busy=lambda now: 0.5 * (now > 5)), 2, 0.9, ("keep-0.50", 1)
    ),
    "a core, for ever": (replay(quiet, 120, governor=HOLDS, busy=lambda now: float(now > 5)), 2, 0.9, ("keep-0.50", 1)),
    "half a core, of which the kernel says nothing": (
        replay(quiet, 60, governor=HOLDS, busy=lambda now: 0.5 * (now > 5), kernel=False), 6, 0.85, None
    ),
    "nothing holds": (
        replay(lambda now: 8.0 if now > 5 else 1.0, 60, governor=HOLDS, busy=lambda _now: 0.0), 3, 0.0, None
    ),
    "a core that comes and goes in no time": (
        replay(quiet, 60, governor=HOLDS, busy=lambda now: float(now % 1 >= 0.5)), 4, 0.85, None
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", THREAD_SCENARIOS)
def test_threads_change_seldom_and_the_target_is_held(name: str) -> None:
    found, most, least, ends = THREAD_SCENARIOS[name]
    assert len(found.changes) <= most
    assert found.held(lambda second: 5 <= second < 7) >= least
    last = found.rungs[found.calls[-1][2]]
    assert ends is None or (last.variant, last.threads) == ends


def test_a_clock_that_steps_ends_no_governing() -> None:
    rungs = [Rung("dense", 16, None, 2), Rung("dense", 25, None, 1), Rung("keep-0.50", 16, None, 1)]
    control, at = Control(rungs, HOLDS, 1e5), 1e5
    for step in (0.0, -1e4, 1e6):
        at += step
        for call in range(40):
            control.observe(control.at, 45.0 if control.at == 0 else 16.0, at + call / 50)
        assert control.at == 2
        at += 1
        for call in range(400):
            control.observe(control.at, 16.0, at + call / 50)
        assert control.at == 0
        at += 8
