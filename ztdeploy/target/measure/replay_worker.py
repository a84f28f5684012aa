"""The process in which a load is replayed: one engine, or a governor with all of its own; nothing else runs in it.

Started by `measure.replay`. It says when it is ready, then answers each `ReplayOrder` with a `PhaseCalls`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ztdeploy.core.manifest import VariantRecord
from ztdeploy.core.processes import peak_rss_mb
from ztdeploy.core.records import Record, from_json
from ztdeploy.target.adaptive.control import Rung
from ztdeploy.target.adaptive.governed import GovernedRunner
from ztdeploy.target.adaptive.governor import Governor, GovernorDecision, on_threads
from ztdeploy.target.backends.base import Array, Runner
from ztdeploy.target.measure.worker import prepare, reply
from ztdeploy.target.runtime.runner import BundleRunner, opening


class ReplayTask(Record):
    """What such a process runs."""

    bundle: str
    profile: str
    threads: int  #: 0: as the profile says
    batch: int
    variant: str | None  #: None: a governor
    target_ms: float
    min_fidelity: float | None


class ReplayOrder(Record):
    """Call for so long."""

    seconds: float
    slowdown: float = 1.0
    counted: bool = True  #: whether it is a part of the timeline, rather than the warm-up


class PhaseCalls(Record):
    """The calls of one order, one after the other; seconds count from the first order that is counted."""

    ended_s: list[float]
    latency_ms: list[float]
    variant: list[str]  #: with the number of threads, where there are several: "dense on 1 thread"
    ladder: list[str]  #: all that may run, from the most faithful to the fastest
    decisions: list[GovernorDecision]  #: since the last answer
    peak_rss_mb: float


@dataclass
class _Throttle:
    slowdown: float = 1.0


class _ThrottledEngine:
    """An engine whose calls take some times longer, as on a processor that has slowed itself down."""

    def __init__(self, runner: Runner, throttle: _Throttle) -> None:
        self._runner, self._throttle, self.signature = runner, throttle, runner.signature

    def infer(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        before = time.monotonic()
        outputs = self._runner.infer(feeds)
        if self._throttle.slowdown > 1:
            time.sleep((self._throttle.slowdown - 1) * (time.monotonic() - before))
        return outputs

    def close(self) -> None:
        self._runner.close()


class _Throttling(BundleRunner):
    throttle: _Throttle

    def _load(self, variant: VariantRecord, threads: int | None = None) -> Runner:
        return _ThrottledEngine(super()._load(variant, threads), self.throttle)


class _ThrottledGoverned(GovernedRunner, _Throttling):
    pass


class _Replaying:
    """Calls of a runner, and where they stand in the timeline."""

    def __init__(self, task: ReplayTask) -> None:
        threads = task.threads or None
        opened = opening(task.bundle, profile=task.profile, threads=threads, memory="speed", verify=False)
        self._throttle = _Throttling.throttle = _Throttle()
        self._runner: BundleRunner
        if task.variant is None:
            governor = Governor(task.target_ms, min_fidelity=task.min_fidelity, batch=task.batch, strict=False)
            self._runner = _ThrottledGoverned(governor, clock=time.monotonic, **opened)
        else:
            self._runner = _Throttling(**opened)
            self._runner.switch(variant=task.variant)
        shape = self._runner.bundle.manifest.preprocess.shape
        self._pixels = np.random.default_rng(0).integers(0, 256, (task.batch, *shape), dtype=np.uint8)
        rungs = self._runner.rungs if isinstance(self._runner, GovernedRunner) else ()
        self._several = len({rung.threads for rung in rungs}) > 1
        self._ladder = [self._name(rung) for rung in rungs] or [self._runner.variant.name]
        self._begun: float | None = None
        self._told = 0

    def answer(self, order: ReplayOrder) -> PhaseCalls:
        found = PhaseCalls(ended_s=[], latency_ms=[], variant=[], ladder=self._ladder, decisions=[], peak_rss_mb=0)
        self._throttle.slowdown = order.slowdown
        now = time.monotonic()
        if order.counted and self._begun is None:
            self._begun = now
        until = now + order.seconds
        while now < until:
            name = self._name(self._runner.rung) if isinstance(self._runner, GovernedRunner) else self._ladder[0]
            before = time.monotonic()
            self._runner.infer(self._pixels)
            now = time.monotonic()
            found.ended_s.append(round(now - (self._begun or 0), 4))
            found.latency_ms.append(round(1000 * (now - before), 4))
            found.variant.append(name)
        found.decisions.extend(self._decisions())
        return found.model_copy(update={"peak_rss_mb": peak_rss_mb()})

    def _name(self, rung: Rung) -> str:
        return on_threads(rung.variant, rung.threads if self._several else None)

    def _decisions(self) -> list[GovernorDecision]:
        """Those since the last answer, by the time of the timeline."""
        if not isinstance(self._runner, GovernedRunner) or self._begun is None:
            return []
        shift = self._runner.begun - self._begun
        fresh = self._runner.decisions[self._told :]
        self._told += len(fresh)
        return [one.model_copy(update={"at_s": round(one.at_s + shift, 4)}) for one in fresh]


def main() -> None:
    """Load, then call as ordered until standard input ends."""
    answers = prepare()
    task = from_json(ReplayTask, sys.argv[1])
    started: list[_Replaying] = []

    def start() -> PhaseCalls:
        started.append(_Replaying(task))
        return started[0].answer(ReplayOrder(seconds=0, counted=False))

    reply(answers, start)
    for line in sys.stdin if started else ():
        reply(answers, lambda line=line: started[0].answer(from_json(ReplayOrder, line)))  # type: ignore[misc]


if __name__ == "__main__":
    main()
