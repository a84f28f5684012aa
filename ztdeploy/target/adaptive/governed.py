"""A runner that switches between the variants of a bundle, so that its calls keep within a latency."""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ztdeploy.core.errors import InputError
from ztdeploy.core.manifest import VariantRecord
from ztdeploy.target.adaptive.conditions import EVERY_S, Condition, Conditions, FreeCores
from ztdeploy.target.adaptive.control import Control, Rung
from ztdeploy.target.adaptive.governor import Governor, GovernorDecision, on_threads
from ztdeploy.target.adaptive.ladder import (
    candidates,
    check_target,
    fidelity_of,
    joined,
    ladder,
    thread_counts,
    warm_up,
)
from ztdeploy.target.backends import get_backend
from ztdeploy.target.measure.statistics import percentile
from ztdeploy.target.runtime.interface import Outputs
from ztdeploy.target.runtime.runner import BundleRunner, OpenEngine, Opening

if TYPE_CHECKING:
    from typing_extensions import Unpack

_log = logging.getLogger("ztdeploy.governor")
#: How many decisions a runner remembers.
MOST_DECISIONS = 1000


class GovernedRunner(BundleRunner):
    """One bundle's engines behind one call, whose latency is held by switching between them.

    Each variant has an engine on the threads that were asked for, and on fewer threads if it holds the target so on a
    quiet machine: an engine with a thread for every core stalls when others take one of the cores. All are open from
    the start, so a switch takes microseconds; each has its weights packed for its kernels, or with memory "shared" all
    read one copy, at some cost in speed. It has no thread of its own: what a call measured is counted when its engine
    has ended, and a decision holds for the calls that begin afterwards, of any thread. The latency is that of the
    engine with normalisation; reading image files does not count, since no variant changes that.

        runner = ztdeploy.load("deit_s-cpu", latency_ms=30)
        runner("photo.jpg")
        print(runner.variant.name, [decision.reason for decision in runner.decisions])
    """

    def __init__(
        self, governor: Governor, *, clock: Callable[[], float] = time.perf_counter, **options: Unpack[Opening]
    ) -> None:
        """
        Args:
            clock: seconds, from a clock that never steps.

        Raises:
            InputError: fewer than two variants to choose from, a batch that is not the engines', or a target that the
                fastest variant misses.
        """
        super().__init__(**options)
        self.governor, self._clock, self._counting = governor, clock, Lock()
        self.batch = self._batch(governor.batch)  #: images in one call of an engine whose latency is held
        self._told_batches = set[int]()
        self._variants = candidates(self.bundle, self.profile, governor)
        try:
            rungs = self._opened_rungs()
            check_target(rungs, governor, self.bundle.root)
            self._conditions = Conditions(governor, rungs)
        except BaseException:
            self.close()
            raise
        self._rungs = {_name(rung): index for index, rung in enumerate(rungs)}
        self._control = Control(rungs, governor, clock(), FreeCores())
        self._next_condition = clock() if self._conditions.any else float("inf")
        self._state = Condition()
        if len(rungs) == 1:
            _log.warning("no variant is faster than '%s' here, so there is nothing to switch to", rungs[0].variant)
        self._decisions, self._changes = deque[GovernorDecision](maxlen=MOST_DECISIONS), Counter[str]()
        self._follow()
        self._tell(self._carry_out(self._control.start))

    @property
    def rungs(self) -> tuple[Rung, ...]:
        """What there is to choose from with what was measured at load: variants, from the most faithful to the fastest,
        each on the most threads first.
        """
        return self._control.rungs

    @property
    def rung(self) -> Rung:
        """What the next call runs on."""
        return self._control.rungs[self._control.at]

    @property
    def begun(self) -> float:
        """When the runner was loaded, by its clock; decisions count their seconds from here."""
        return self._control.begun

    @property
    def decisions(self) -> tuple[GovernorDecision, ...]:
        """The latest decisions, the oldest first; the first of all is the choice at load."""
        return tuple(self._decisions)

    @property
    def changes(self) -> dict[str, int]:
        """How often the variant or its threads have changed, by cause."""
        return dict(self._changes)

    @property
    def p95_ms(self) -> float:
        """The 95th percentile of the latest calls."""
        with self._counting:
            return self._control.p95_ms

    def switch(self, keep_ratio: float | None = None, *, variant: str | None = None) -> None:
        """
        Raises:
            InputError: always, because the governor chooses the variant.
        """
        raise InputError(
            "a switch of a runner that a governor switches",
            "a runner without a governor",
            "load the bundle without latency_ms or governor, or narrow the choice with Governor(variants=...)",
        )

    def __repr__(self) -> str:
        return f"Governed{super().__repr__()[:-1]}, latency_ms={self.governor.latency_ms:g})".replace("Bundle", "", 1)

    @property
    def _keeps_all(self) -> bool:
        return True

    def _run(self, variant: VariantRecord) -> None:
        """After `close`: open all engines again."""
        with self._switching:
            for rung in self.rungs:
                if _name(rung) not in self._open:
                    self._open_engine(self.bundle.variant(name=rung.variant), rung.threads)
            self._activate(self._open[_name(self.rung)])

    def _open_engine(self, variant: VariantRecord, threads: int) -> OpenEngine:
        name = on_threads(variant.name, threads or None)
        self._open[name] = self._opened(variant, self._load(variant, threads or None), name=name)
        return self._open[name]

    def _batch(self, wanted: int | None) -> int:
        """
        Raises:
            InputError: the engines take another batch.
        """
        profile, fixed = (
            self.bundle.manifest.profiles[self.profile],
            self.bundle.manifest.dense.graphs[self.profile].batch,
        )
        if wanted is None:
            return fixed or min(profile.batch.sizes)
        if (fixed is not None and wanted != fixed) or wanted > max(profile.batch.sizes):
            most = (
                f"{fixed}, at which the engines are fixed"
                if fixed is not None
                else f"at most {max(profile.batch.sizes)}"
            )
            raise InputError(f"batch = {wanted} with profile '{self.profile}'", most, "give another batch, or none")
        return wanted

    def _opened_rungs(self) -> list[Rung]:
        """Open and measure what may run, and close again what never will.

        On the most threads these are all variants; on fewer those that hold the target on a quiet machine, and the
        fastest: a loaded one makes no engine faster.
        """
        backend = get_backend(self.bundle.manifest.profiles[self.profile].backend)
        most, *fewer = thread_counts(self.threads) if backend.threaded else (0,)
        fidelity = {one.name: fidelity_of(self.bundle, one, self.profile) for one in self._variants}
        found = [ladder(self._variants, self._timed(self._variants, most), fidelity, most)]
        goal = self.governor.latency_ms * (1 - self.governor.margin)
        for threads in fewer:
            samples, few = dict[str, list[float]](), list[VariantRecord]()
            for one in reversed(self._variants):
                samples |= self._timed([one], threads)
                if few and percentile(samples[one.name], 90) > goal:
                    break
                few.insert(0, one)
            found.append(ladder(few, samples, fidelity, threads))
        rungs = joined(found, self._variants)
        for name in self._open.keys() - {_name(rung) for rung in rungs}:
            self._open.pop(name).retire()
        return rungs

    def _timed(self, variants: Sequence[VariantRecord], threads: int) -> dict[str, list[float]]:
        """Milliseconds of a few calls of each variant, whose engines are opened for it."""
        shape = self.bundle.manifest.preprocess.shape
        pixels = np.random.default_rng(0).integers(0, 256, (self.batch, *shape), dtype=np.uint8)
        names = [f"image {at + 1} of the warm-up" for at in range(self.batch)]

        def call_of(engine: OpenEngine) -> Callable[[], object]:
            return lambda: super(GovernedRunner, self)._infer_part(engine, pixels, names)

        calls = {one.name: call_of(self._open_engine(one, threads)) for one in variants}
        return warm_up(calls, self._clock)

    def _infer_part(self, engine: OpenEngine, pixels: NDArray[np.uint8], images: Sequence[str]) -> Outputs:
        begun = self._clock()
        outputs = super()._infer_part(engine, pixels, images)
        now = self._clock()
        if len(pixels) == self.batch or engine.graph.batch is not None:
            self._count(self._rungs.get(engine.name, -1), 1000 * (now - begun), now)
        elif len(pixels) not in self._told_batches:
            self._told_batches.add(len(pixels))
            _log.warning("calls of %d images are not held: the governor holds batch %d", len(pixels), self.batch)
        return outputs

    def _count(self, rung: int, latency_ms: float, now: float) -> None:
        with self._counting:
            decision = self._control.observe(rung, latency_ms, now)
            decided = None if decision is None else self._carry_out(decision)
            if self._control.at != self._running:  # a decision, or a try of a better rung
                self._follow()
            due = now >= self._next_condition
            if due:
                self._next_condition = now + EVERY_S
        if decided is not None:
            self._tell(decided)
        if due:
            self._look(now)

    def _look(self, now: float) -> None:
        """Read the machine's state, and limit what may run."""
        state = self._conditions.read()
        with self._counting:
            self._state = state
            decision = self._control.limit(*self._conditions.limit(state), now)
            decided = None if decision is None else self._carry_out(decision)
            self._follow()
        if decided is not None:
            self._tell(decided)

    def _carry_out(self, decision: GovernorDecision) -> GovernorDecision:
        """Note what was decided; whoever calls it counts alone."""
        state = self._state
        known = {"temperature_c": state.celsius, "battery": state.battery, "power_mode": state.mode}
        decided = decision.model_copy(update=known)
        if decided.is_change:
            self._changes[decided.cause] += 1
        self._decisions.append(decided)
        return decided

    def _follow(self) -> None:
        """Have calls use the rung that the rule says; whoever calls it counts alone."""
        self._running = self._control.at
        with self._switching:
            engine = self._open.get(_name(self.rung))
            if engine is not None:
                self._activate(engine)
            else:  # closed; the next call opens all engines again
                self._variant = self.bundle.variant(name=self.rung.variant)

    def _tell(self, decision: GovernorDecision) -> None:
        level = logging.WARNING if decision.cause == "out of reach" else logging.INFO
        _log.log(level, "%s: %s", decision.change, decision.reason)
        if self.governor.on_decision is not None:
            try:
                self.governor.on_decision(decision)
            except Exception:  # of whatever kind: an image is being answered, and the answer is right
                _log.exception("on_decision failed")


def _name(rung: Rung) -> str:
    """Of the rung's engine."""
    return on_threads(rung.variant, rung.threads or None)
