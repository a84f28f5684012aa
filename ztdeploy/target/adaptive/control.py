"""The rule of a governor: latencies of calls in, decisions out. Pure: it reads no clock and touches no engine.

**Down.** The target is missed if more than 5 % of the calls take longer. A cumulative sum over the calls (E. S. Page,
"Continuous inspection schemes", Biometrika 41 (1954), 100-115) tells that at once and without a window: every slow
call adds log(p1 / p0), every other call adds log((1 - p1) / (1 - p0)), and a sum below 0 is set to 0. With p0 = 0.05,
p1 = 0.15 and a limit of 4 it takes four slow calls in a row; one slow call, or two among twenty, lead nowhere. Where
exactly 5 % of the calls are slow, it errs about once in a thousand calls. The calls since the sum was 0 are those under
the new load.

**Where to.** Another variant is expected at the p95 of now, times the ratio of the two variants' latencies at load. The
best variant that is expected below the target by the margin is taken; the fastest one, where none is.

**Up.** A better variant is tried once its expected p95 has been below the target by the margin, over all calls of the
hold time. That alone would flap under a load that fast variants feel less than slow ones. So two thirds of the slowdown
that led down must also have gone (`EASED`), unless waiting for that has lasted for some time (`PATIENCE` hold times).
If the target is missed again soon, the climb has failed: the wait doubles, and the slowdown at which the climb began
tells how much of the load the faster variant hides.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from ztdeploy.target.adaptive.governor import Cause, Governor, GovernorDecision
from ztdeploy.target.measure.statistics import percentile

#: Shares of slow calls that are told apart: what the target allows, and what is surely too much.
ALLOWED, TOO_MANY, LIMIT = 0.05, 0.15, 4.0
_SLOW, _FAST = math.log(TOO_MANY / ALLOWED), math.log((1 - TOO_MANY) / (1 - ALLOWED))
#: Calls behind a change that are not counted: caches hold another engine's weights.
SETTLE = 1
#: Fewest calls that say what a variant takes, and how many values are kept of a hold time.
FEWEST, _KEPT = 10, 200
#: Hold times: how long a climb is on trial, after which waiting for less load is given up, and the longest wait.
TRIAL, PATIENCE, LONGEST = 2.0, 10.0, 32.0
#: A pause after which nothing of what was measured before holds, in seconds.
STALE_S = 60.0
#: What may be left of the slowdown for a better variant to be tried, and how much of it a variant can hide.
EASED, _MOST_HIDDEN = 0.35, 4.0


class Rung(NamedTuple):
    """A variant that a governor may choose."""

    variant: str
    latency_ms: float  #: p95 of a call, measured at load
    fidelity: float | None  #: recorded agreement with the baseline, or mean cosine to it; 1 of the baseline


def robust_p95(samples: Sequence[float]) -> float:
    """The 95th percentile; of fewer than 20 samples the second highest, since one slow call is no load."""
    if len(samples) >= 20:
        return percentile(samples, 95)
    return sorted(samples)[-2:][0]


class Control:
    """Which variant runs now. `rungs` go from the most faithful, 0, to the fastest."""

    _calls: int  #: on this rung so far
    _sum: float
    _under_load: int  #: calls since the sum was 0
    _recent: deque[float]  #: latencies of the latest calls
    _kept: deque[tuple[float, float]]  #: when a call ended, and its latency; thinned out where calls are many
    _next_look: float
    _next_kept: float

    def __init__(self, rungs: Sequence[Rung], governor: Governor, now: float) -> None:
        """
        Args:
            rungs: each slower than the next.
            now: seconds, by the clock of all other calls.
        """
        self.rungs, self._target, self._hold_s = tuple(rungs), governor.latency_ms, governor.hold_s
        self._goal = governor.latency_ms * (1 - governor.margin)
        self.begun = self.changed = self._latest = self._next_told = now
        self.best = 0  #: the most faithful rung that may run
        self.at = self._first(1.0, 0)  #: the rung that runs
        self._waits = [governor.hold_s] * len(rungs)
        self._calm, self._hidden = 1.0, 1.0
        self._ceiling, self._ceiling_until = math.inf, now
        self._climbed: tuple[float, float] | None = None  #: when, and the slowdown then
        self._begin(now)

    @property
    def start(self) -> GovernorDecision:
        """The choice at load."""
        rung = self.rungs[self.at]
        holds = rung.latency_ms <= self._goal
        why = "the best variant that is expected to hold the target" if holds else "the fastest variant"
        reason = f"{rung.variant} took {rung.latency_ms:.4g} ms at load (p95) and is {why} of {self._target:g} ms"
        return self._decision(None, self.at, "start", reason, rung.latency_ms, self.begun)

    def observe(self, rung: int, latency_ms: float, now: float) -> GovernorDecision | None:
        """Count a call that has ended, and decide.

        Args:
            rung: that the call ran on; a call that was under way during a change does not count.
            latency_ms: a value that cannot be, such as a negative one, does not count.
        """
        if rung != self.at or not 0 <= latency_ms < math.inf:
            return None
        if now - self._latest > STALE_S:
            self._begin(now)
        self._latest = now
        self._calls += 1
        if self._calls <= SETTLE:
            return None
        self._recent.append(latency_ms)
        if now >= self._next_kept:
            self._next_kept = now + self._hold_s / _KEPT
            self._kept.append((now, latency_ms))
        self._sum = max(0.0, self._sum + (_SLOW if latency_ms > self._target else _FAST))
        self._under_load = self._under_load + 1 if self._sum else 0
        if self._sum >= LIMIT:
            return self._missed(now)
        if now >= self._next_look and self.at > self.best:
            self._next_look = now + self._hold_s / 8
            return self._room(now)
        return None

    def limit(self, best: int, cause: Cause, reason: str, now: float) -> GovernorDecision | None:
        """Let no better rung run than `best` from now on; 0 lets all run again."""
        self.best = min(best, len(self.rungs) - 1)
        if self.at >= self.best:
            return None
        p95 = self.p95_ms
        return self._change(
            self.best, cause, f"{reason}; {self.rungs[self.best].variant} is the best that may run", p95, now
        )

    @property
    def p95_ms(self) -> float:
        """Of the latest calls; what was measured at load, where there were hardly any."""
        return robust_p95(self._recent) if len(self._recent) >= 4 else self.rungs[self.at].latency_ms

    @property
    def slowdown(self) -> float:
        return self.p95_ms / self.rungs[self.at].latency_ms

    def _begin(self, now: float) -> None:
        """Forget the latencies so far: another rung runs, or the machine has slept."""
        self._calls, self._sum, self._under_load = 0, 0.0, 0
        self._recent = deque(maxlen=32)
        self._kept = deque(maxlen=_KEPT)
        self._next_look, self._next_kept = now + self._hold_s, now

    def _expected(self, rung: int, slowdown: float) -> float:
        return slowdown * self.rungs[rung].latency_ms

    def _first(self, slowdown: float, start: int) -> int:
        """The best rung from `start` on that is expected to hold the target; the fastest where none is."""
        rungs = range(start, len(self.rungs))
        return next((one for one in rungs if self._expected(one, slowdown) <= self._goal), len(self.rungs) - 1)

    def _missed(self, now: float) -> GovernorDecision | None:
        """Go down to where the target is expected to be held."""
        calls = list(self._recent)[-max(4, self._under_load) :]
        p95 = robust_p95(calls)
        slowdown = p95 / self.rungs[self.at].latency_ms
        self._sum = 0.0
        missed = (
            f"p95 of the last {len(calls)} calls on {self.rungs[self.at].variant} is {p95:.4g} ms, above the target of"
        )
        missed += f" {self._target:g} ms"
        if self.at == len(self.rungs) - 1:
            return self._out_of_reach(missed, p95, now)
        if self._climbed and now - self._climbed[0] < TRIAL * self._hold_s:
            self._climb_failed(slowdown, self._climbed[1])
        else:
            self._waits[: self.at + 1] = [self._hold_s] * (self.at + 1)
            self._hidden = max(1.0, 0.9 * self._hidden)
        self._ceiling = self._calm + EASED * max(0.0, slowdown - self._calm) / self._hidden
        self._ceiling_until = now + PATIENCE * self._waits[self.at]
        to = self._first(slowdown, self.at + 1)
        expected = self._expected(to, slowdown)
        return self._change(
            to, "missed", f"{missed}; {self.rungs[to].variant} is expected at {expected:.4g} ms", p95, now
        )

    def _climb_failed(self, slowdown: float, at_climb: float) -> None:
        for rung in range(self.at + 1):
            self._waits[rung] = min(2 * self._waits[rung], LONGEST * self._hold_s)
        hidden = (slowdown - self._calm) / max(0.01, at_climb - self._calm)
        if hidden <= _MOST_HIDDEN:  # more than that is a load that came only after the climb
            self._hidden = max(self._hidden, hidden)

    def _out_of_reach(self, missed: str, p95: float, now: float) -> GovernorDecision | None:
        if now < self._next_told:
            return None
        self._next_told = now + PATIENCE * self._hold_s
        return self._decision(self.at, self.at, "out of reach", f"{missed}, and there is no faster one", p95, now)

    def _room(self, now: float) -> GovernorDecision | None:
        """Go up to the best rung that is expected to hold the target."""
        held = [latency for at, latency in self._kept if at > now - self._hold_s]
        if len(held) < FEWEST:
            held = [latency for _, latency in self._kept][-FEWEST:]
        if len(held) < FEWEST:
            return None
        p95 = robust_p95(held)
        slowdown = p95 / self.rungs[self.at].latency_ms
        self._calm = min(self._calm, slowdown)
        if slowdown > self._ceiling and now < self._ceiling_until:
            return None
        for rung in range(self.best, self.at):
            expected = self._expected(rung, slowdown)
            if expected <= self._goal and now - self.changed >= self._waits[rung]:
                self._climbed = (now, slowdown)
                reason = (
                    f"p95 on {self.rungs[self.at].variant} is {p95:.4g} ms; {self.rungs[rung].variant} is expected at"
                )
                return self._change(
                    rung, "room", f"{reason} {expected:.4g} ms, below the target of {self._target:g} ms", p95, now
                )
        return None

    def _change(self, to: int, cause: Cause, reason: str, p95: float, now: float) -> GovernorDecision:
        decision = self._decision(self.at, to, cause, reason, p95, now)
        if cause != "room":
            self._climbed = None
        self.at, self.changed = to, now
        self._begin(now)
        return decision

    def _decision(
        self, before: int | None, after: int, cause: Cause, reason: str, p95: float, now: float
    ) -> GovernorDecision:
        reference = self.rungs[after if before is None else before]
        return GovernorDecision(
            at_s=round(now - self.begun, 6),
            before=None if before is None else self.rungs[before].variant,
            after=self.rungs[after].variant,
            cause=cause,
            reason=reason,
            target_ms=self._target,
            p95_ms=round(p95, 4),
            slowdown=round(p95 / reference.latency_ms, 4),
        )
