"""The rule of a governor: latencies of calls in, decisions out. Pure: it reads no clock and touches no engine.

A rung is a variant on a number of threads, so there are two ways to be faster: fewer tokens, or, while others use the
cores, fewer threads. An engine with as many threads as cores waits for its slowest thread after each operator.

**Down.** The target is missed if more than 5 % of the calls take longer. A cumulative sum over the calls (E. S. Page,
"Continuous inspection schemes", Biometrika 41 (1954), 100-115) tells that at once and without a window: every slow
call adds log(p1 / p0), every other call adds log((1 - p1) / (1 - p0)), and a sum below 0 is set to 0. With p0 = 0.05,
p1 = 0.15 and a limit of 4 it takes four slow calls in a row; one slow call, or two among twenty, lead nowhere. Where
exactly 5 % of the calls are slow, it errs about once in a thousand calls. The calls since the sum was 0 are those under
the new load.

**Where to.** A load stretches the calls of all variants alike that run on one number of threads, by `_stretch`. That of
fewer threads is not known until they have run: they are expected to take what they took at load. The most faithful
rung that is expected below the target by the margin is taken; the fastest one, where none is.

**Up.** A better rung that has been expected to hold the target for the hold time is tried: the next calls run on it,
and it stays if `TRY` of them hold the target. The first one that does not ends the try and tells the stretch, which is
believed for a while, for longer each time. So a load that fewer threads or fewer tokens hide costs a few slow calls
now and then, and no change. Where the kernel says what others use, more threads are not tried while no cores are free.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ztdeploy.target.adaptive.governor import Cause, Governor, GovernorDecision, on_threads
from ztdeploy.target.measure.statistics import percentile

#: Shares of slow calls that are told apart: what the target allows, and what is surely too much.
ALLOWED, TOO_MANY, LIMIT = 0.05, 0.15, 4.0
_SLOW, _FAST = math.log(TOO_MANY / ALLOWED), math.log((1 - TOO_MANY) / (1 - ALLOWED))
#: Calls behind a change that are not counted: another engine's were in the caches, and threads have to wake up.
SETTLE = 2
#: Calls that a try takes, and the fewest on the rung that runs which say what it takes.
TRY, FEWEST = 4, 10
#: Calls from a try that failed to the next one, at least: 2 % of the calls are slow then, where the target allows 5 %.
SPARE = 50 * (SETTLE + 1)
#: Hold times: how soon a miss means that the change before was wrong, and the time between two words on a target that
#: is out of reach.
TRIAL, PATIENCE = 2.0, 10.0
#: Hold times that a stretch is believed: at first, and at most behind wrong changes and behind failed tries.
FIRST, LONGEST, LONGEST_TRIED = 0.5, 32.0, 8.0
#: Looks for a better rung in a hold time.
_LOOKS = 5
#: A pause after which nothing of what was measured before holds, in seconds.
STALE_S = 60.0
#: With fewer threads, the stretch must at least be so much less for still fewer threads to be worth trying.
_HELPED = 0.8
#: How much of a core that a thread needs others may use.
_SHARED = 0.3


class Rung(NamedTuple):
    """A variant on a number of threads, which a governor may choose."""

    variant: str
    latency_ms: float  #: p95 of a call, measured at load
    fidelity: float | None  #: recorded agreement with the baseline, or mean cosine to it; 1 of the baseline
    threads: int = 0  #: 0: the runtime takes no number of threads


@dataclass
class _Stretch:
    """How many times longer than at load the calls on a number of threads took."""

    wait_s: float  #: for how long it is believed
    value: float = 1.0
    until: float = -math.inf
    measured: float = -math.inf


class _Try(NamedTuple):
    """What a try of a better rung began with."""

    back: int  #: the rung that runs again if it fails
    p95_ms: float  #: of the latest calls on that
    spare_s: float  #: to the next try if it fails, at least


def robust_p95(samples: Sequence[float]) -> float:
    """The 95th percentile; of fewer than 20 samples the second highest, since one slow call is no load."""
    if len(samples) >= 20:
        return percentile(samples, 95)
    return sorted(samples)[-2:][0]


class Control:
    """Which rung runs now. `rungs` go from the most faithful, 0, down; of one variant from most to fewest threads."""

    _calls: int  #: on this rung so far
    _settling: int  #: calls that do not count
    _sum: float
    _under_load: int  #: calls since the sum was 0
    _recent: deque[float]  #: latencies of the latest calls
    _next_look: float
    _room_since: float | None  #: since when a better rung is expected to hold the target
    _stuck: bool  #: whether the target is out of reach

    def __init__(
        self,
        rungs: Sequence[Rung],
        governor: Governor,
        now: float,
        free_cores: Callable[[], float] = lambda: math.inf,
    ) -> None:
        """
        Args:
            rungs: of one number of threads, each is faster than the one before.
            now: seconds, by the clock of all other calls.
            free_cores: how many cores other processes have left free of late; infinity if nobody knows.
        """
        self.rungs, self._target, self._hold_s = tuple(rungs), governor.latency_ms, governor.hold_s
        self._goal = governor.latency_ms * (1 - governor.margin)
        self.begun = self.changed = self._latest = self._next_told = now
        self.best = 0  #: the most faithful rung that may run
        self._free_cores = free_cores
        self._try: _Try | None = None
        self._stretches = {rung.threads: _Stretch(FIRST * governor.hold_s) for rung in rungs}
        self.at = 0  #: the rung that runs
        self._begin(now)
        self.at = self._first(now)

    @property
    def start(self) -> GovernorDecision:
        """The choice at load."""
        rung = self.rungs[self.at]
        holds = rung.latency_ms <= self._goal
        why = "the best choice that is expected to hold the target" if holds else "the fastest choice"
        reason = f"{self.name(self.at)} took {rung.latency_ms:.4g} ms at load (p95) and is {why} of {self._target:g} ms"
        return self._decision(None, self.at, "start", reason, rung.latency_ms, self.begun)

    def name(self, rung: int) -> str:
        """Such as "keep-0.70 on 1 thread"; without threads where there is one number of them only."""
        return on_threads(self.rungs[rung].variant, self._threads(rung))

    def _threads(self, rung: int) -> int | None:
        return self.rungs[rung].threads if len(self._stretches) > 1 else None

    def observe(self, rung: int, latency_ms: float, now: float) -> GovernorDecision | None:
        """Count a call that has ended, and decide.

        Args:
            rung: that the call ran on; a call that was under way during a change does not count.
            latency_ms: a value that cannot be, such as a negative one, does not count.
        """
        if not 0 <= latency_ms < math.inf:
            return None
        if not -1 <= now - self._latest <= STALE_S:  # other threads may have read the clock a little earlier
            self._begin(now)
            self.changed = self._next_told = now
            self._stretches = {threads: _Stretch(FIRST * self._hold_s) for threads in self._stretches}
        self._latest = now
        if rung != self.at:
            return None
        self._calls += 1
        if self._settling:
            self._settling -= 1
            return None
        self._recent.append(latency_ms)
        if self._try is not None:
            return self._tried(self._try, latency_ms, now)
        self._sum = max(0.0, self._sum + (_SLOW if latency_ms > self._target else _FAST))
        self._under_load = self._under_load + 1 if self._sum else 0
        if self._sum >= LIMIT:
            return self._missed(now)
        if now >= self._next_look and self.at > self.best:
            self._look(now)
        return None

    def limit(self, best: int, cause: Cause, reason: str, now: float) -> GovernorDecision | None:
        """Let no better rung run than `best` from now on; 0 lets all run again."""
        self.best = min(best, len(self.rungs) - 1)
        if self.at >= self.best:
            return None
        p95, to = self.p95_ms, self._first(now)
        return self._change(to, cause, f"{reason}; {self.name(to)} is the best that may run", p95, now)

    @property
    def p95_ms(self) -> float:
        """Of the latest calls; what was measured at load, where there were hardly any."""
        return robust_p95(self._recent) if len(self._recent) >= 4 else self.rungs[self.at].latency_ms

    @property
    def slowdown(self) -> float:
        return self.p95_ms / self.rungs[self.at].latency_ms

    def _begin(self, now: float) -> None:
        """Forget the latencies so far: another rung runs, or the machine has slept."""
        self._calls, self._settling, self._sum, self._under_load = 0, SETTLE, 0.0, 0
        self._recent = deque(maxlen=32)
        self._next_look, self._room_since, self._stuck = now + self._hold_s / _LOOKS, None, False

    def _believe(self, latency_ms: float, now: float, most: float, least_s: float = 0.0) -> None:
        """Calls on this rung took so long, which is above the target; soon after a change, that was wrong."""
        rung = self.rungs[self.at]
        one = self._stretches[rung.threads]
        wrong = self.begun < self.changed and now - self.changed < TRIAL * self._hold_s
        one.wait_s = max(one.wait_s, min(2 * one.wait_s, most * self._hold_s)) if wrong else FIRST * self._hold_s
        one.value, one.measured = latency_ms / rung.latency_ms, now
        one.until = now + max(one.wait_s, least_s)

    def _stretch(self, threads: int, now: float) -> float:
        """How many times longer than at load a call on so many threads is expected to take."""
        known = {count: one.value for count, one in self._stretches.items() if now < one.until}
        if len(self._recent) >= 4:
            here = self.rungs[self.at].threads
            known[here] = max(self.slowdown, known.get(here, 0.0))
        fewer = [value for count, value in known.items() if count <= threads]
        if fewer:
            return max(fewer)  # what slows down few threads slows down more of them as well
        more = [known[count] for count in sorted(known)]
        if len(more) > 1 and more[0] > _HELPED * more[1]:
            return more[0]  # they do not wait for each other: all is slow
        return min([1.0, *more])

    def _expected(self, rung: int, now: float) -> float:
        return self._stretch(self.rungs[rung].threads, now) * self.rungs[rung].latency_ms

    def _first(self, now: float) -> int:
        """The best rung that may run and is expected to hold the target; the fastest where none is."""
        expected = {rung: self._expected(rung, now) for rung in range(self.best, len(self.rungs))}
        return next(
            (rung for rung, ms in expected.items() if ms <= self._goal), min(expected, key=expected.__getitem__)
        )

    def _missed(self, now: float) -> GovernorDecision | None:
        """Go to where the target is expected to be held."""
        calls = list(self._recent)[-max(4, self._under_load) :]
        p95, self._sum = robust_p95(calls), 0.0
        self._believe(p95, now, LONGEST)
        missed = f"p95 of the last {len(calls)} calls on {self.name(self.at)} is {p95:.4g} ms, above the target of"
        missed += f" {self._target:g} ms"
        to = self.at if self._stuck else self._first(now)
        if to == self.at:
            return self._out_of_reach(missed, p95, now)
        reason = f"{missed}; {self.name(to)} is expected at {self._expected(to, now):.4g} ms"
        return self._change(to, "missed", reason, p95, now)

    def _out_of_reach(self, missed: str, p95: float, now: float) -> GovernorDecision | None:
        self._stuck = True
        if now < self._next_told:
            return None
        self._next_told = now + PATIENCE * self._hold_s
        return self._decision(self.at, self.at, "out of reach", f"{missed}, and nothing faster may run", p95, now)

    def _look(self, now: float) -> None:
        """Try the best rung, if a better one than this has been expected to hold for the hold time."""
        self._next_look = now + self._hold_s / _LOOKS
        self._note_crowd(now)
        if len(self._recent) < FEWEST:
            return
        self._stuck = self._stuck and self.p95_ms > self._target
        to = self._first(now)
        if to >= self.at:
            self._room_since = None
            return
        self._room_since = now if self._room_since is None else self._room_since
        if now - self._room_since >= self._hold_s * (1 - 1 / _LOOKS):
            spare_s = SPARE * (now - self.changed) / self._calls
            self._try = _Try(self.at, self.p95_ms, spare_s)
            self._run(to, now)

    def _note_crowd(self, now: float) -> None:
        """While others leave too few cores, go on believing what was measured on more threads than run now."""
        here = self.rungs[self.at].threads
        more = [(count, one) for count, one in self._stretches.items() if count > here]
        free = self._free_cores() if more else math.inf
        for count, one in more:
            if count > free + _SHARED and now - one.measured < LONGEST * self._hold_s:
                one.until = max(one.until, now + self._hold_s / 2)

    def _tried(self, begun: _Try, latency_ms: float, now: float) -> GovernorDecision | None:
        """Go back at the first slow call of a try; stay once it has taken its calls."""
        tried, p95 = self.at, begun.p95_ms
        if latency_ms > self._target:
            self._try = None
            self._believe(latency_ms, now, LONGEST_TRIED, begun.spare_s)
            self._run(begun.back, now)
            reason = f"a call on {self.name(tried)} took {latency_ms:.4g} ms, above the target of {self._target:g} ms"
            return self._decision(self.at, self.at, "tried", reason, p95, now)
        if len(self._recent) < TRY:
            return None
        self._try = None
        reason = f"p95 on {self.name(begun.back)} was {p95:.4g} ms; {TRY} calls on {self.name(tried)} took"
        reason += f" {max(self._recent):.4g} ms at most, within the target of {self._target:g} ms"
        return self._decision(begun.back, tried, "room", reason, p95, now)

    def _change(self, to: int, cause: Cause, reason: str, p95: float, now: float) -> GovernorDecision:
        decision = self._decision(self.at, to, cause, reason, p95, now)
        self._try = None
        self._run(to, now)
        return decision

    def _run(self, rung: int, now: float) -> None:
        self.at, self.changed = rung, now
        self._begin(now)

    def _decision(
        self, before: int | None, after: int, cause: Cause, reason: str, p95: float, now: float
    ) -> GovernorDecision:
        reference = self.rungs[after if before is None else before]
        return GovernorDecision(
            at_s=round(now - self.begun, 6),
            before=None if before is None else self.rungs[before].variant,
            before_threads=None if before is None else self._threads(before),
            after=self.rungs[after].variant,
            after_threads=self._threads(after),
            cause=cause,
            reason=reason,
            target_ms=self._target,
            p95_ms=round(p95, 4),
            slowdown=round(p95 / reference.latency_ms, 4),
        )
