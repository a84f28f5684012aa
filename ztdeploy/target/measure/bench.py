"""Benchmarking a bundle: every configuration in a process of its own, in rounds, until done, interrupted or dead.

`run_bench` is the job on one screen; what was measured before something went wrong is in the report all the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ztdeploy.core.bundle import read_bundle
from ztdeploy.core.errors import ZtdeployError
from ztdeploy.target.measure.advice import Facts, cautions
from ztdeploy.target.measure.bench_report import BenchReport, BenchRequest, ConfigurationReport, Failure, Turn
from ztdeploy.target.measure.environment import Machine, State, read_machine, read_state, throttled_by, usable_cores
from ztdeploy.target.measure.latency import Worker
from ztdeploy.target.measure.load import Accounts
from ztdeploy.target.measure.order import turn_orders
from ztdeploy.target.measure.plan import DEFAULT_DURATION_S, Plan, plan_bench
from ztdeploy.target.measure.protocol import Answer, ColdStart, Order
from ztdeploy.target.measure.statistics import summarise
from ztdeploy.target.measure.verdict import compare

_ROOT = Path("/")
#: How long the machine is watched before anything is started.
_WATCH_S = 0.5
#: Calls at the start of a turn that are not counted: another process has just had the caches and the cores.
_LEAD_IN = 1

Step = Callable[[str, int, int], None]


def run_bench(
    request: BenchRequest,
    *,
    progress: Step = lambda _what, _done, _total: None,
    save: Callable[[BenchReport], None] | None = None,
    root: Path = _ROOT,
) -> BenchReport:
    """Measure.

    A configuration whose process cannot load its engine, or dies, is reported as failed while the others go on. On
    Ctrl-C the report holds what there is, and says "interrupted".

    Args:
        save: called with the report so far before the first round and after each one.
        root: where `/proc`, `/sys` and `/etc` lie, for tests.

    Raises:
        InputError, BundleError, EnvironmentLacksError: the request cannot be met; nothing was measured.
        ZtdeployError: no configuration at all could be loaded; the first one's reason.
    """
    plan = plan_bench(request, read_bundle(request.bundle))
    recording = _begin(request, plan, root)
    if save:
        save(recording.report("running"))
    try:
        with ExitStack() as stack:
            workers = _start(recording, stack, progress)
            if not workers:
                raise next(error for error in recording.errors.values())
            _warm_up(recording, workers, progress)
            for turn, order in enumerate(turn_orders(len(plan.entries), request.rounds, request.seed)):
                _round(recording, workers, turn, order, progress)
                if save:
                    save(recording.report("running"))
        return recording.report("complete")
    except KeyboardInterrupt:
        return recording.report("interrupted")


@dataclass
class _Recording:
    """What has been measured so far; the one thing here that changes."""

    request: BenchRequest
    plan: Plan
    root: Path
    machine: Machine
    before: State
    quiet_cores: float | None
    starts: dict[int, ColdStart] = field(default_factory=dict)
    turns: dict[int, list[Turn]] = field(default_factory=dict)
    peaks_mb: dict[int, float] = field(default_factory=dict)
    errors: dict[int, ZtdeployError] = field(default_factory=dict)
    throttled_by: set[str] = field(default_factory=set)

    def report(self, progress: Literal["running", "complete", "interrupted"]) -> BenchReport:
        entries, after = self.plan.entries, read_state(self.machine.usable_cores, self.root)
        measured = tuple(self._configuration(index) for index in range(len(entries)))
        pairs = [
            (own, measured[entry.reference])
            for own, entry in zip(measured, entries, strict=True)
            if entry.reference is not None
        ]
        found = [compare(own, reference, seed=self.request.seed) for own, reference in pairs]
        facts = Facts(
            machine=self.machine,
            before=self.before,
            after=after,
            quiet_cores=self.quiet_cores,
            throttled_by=tuple(sorted(self.throttled_by | set(self.before.throttled_by))),
            spins=self.plan.bundle.backend == "onnxruntime",
            compares=bool(pairs),
            configurations=measured,
        )
        return BenchReport(
            progress=progress,
            request=self.request,
            bundle=self.plan.bundle,
            machine=self.machine,
            before=self.before,
            after=after,
            quiet_cores=self.quiet_cores,
            configurations=measured,
            comparisons=tuple(comparison for comparison in found if comparison is not None),
            warnings=cautions(facts),
        )

    def _configuration(self, index: int) -> ConfigurationReport:
        turns, error = self.turns.get(index, []), self.errors.get(index)
        samples = [sample for turn in turns for sample in turn.samples_ms]
        latency = summarise(samples) if samples else None
        planned = self.plan.entries[index].report
        return planned.model_copy(
            update={
                "cold_start": self.starts.get(index),
                "latency": latency,
                "images_per_s": planned.batch * 1000 / latency.mean_ms if latency else None,
                "peak_rss_mb": self.peaks_mb.get(index),
                "turns": tuple(turns),
                "failure": Failure(message=str(error), exit_code=error.exit_code) if error else None,
            }
        )


def _begin(request: BenchRequest, plan: Plan, root: Path) -> _Recording:
    """Look at the machine while nothing of ours runs on it."""
    cores = usable_cores()
    machine, before = read_machine(cores, root), read_state(cores, root)
    accounts, begun = Accounts(cores, [], root), time.monotonic()
    time.sleep(_WATCH_S)
    (own_s, spent), wall_s = accounts.so_far(), time.monotonic() - begun
    quiet = round(max(0.0, spent.busy_s - own_s) / wall_s, 3) if spent else None
    return _Recording(request, plan, root, machine, before, quiet)


def _start(recording: _Recording, stack: ExitStack, progress: Step) -> dict[int, Worker]:
    """Start one process after the other; each waits while the next one loads."""
    workers = {}
    for index, entry in enumerate(recording.plan.entries):
        progress(f"loading {entry.configuration.variant}", index, len(recording.plan.entries))
        try:
            worker = stack.enter_context(Worker(entry.configuration))
        except ZtdeployError as error:
            recording.errors[index] = error
            continue
        workers[index] = worker
        recording.starts[index] = worker.cold_start
    return workers


def _warm_up(recording: _Recording, workers: dict[int, Worker], progress: Step) -> None:
    seconds = recording.request.warmup_s
    for done, index in enumerate(sorted(workers) if seconds else []):
        progress(f"warming up {recording.plan.entries[index].configuration.variant}", done, len(recording.plan.entries))
        _measure(recording, workers, index, Order(seconds=seconds))


def _round(recording: _Recording, workers: dict[int, Worker], turn: int, order: list[int], progress: Step) -> None:
    request = recording.request
    progress(f"round {turn + 1} of {request.rounds}", turn, request.rounds)
    for place, index in enumerate([index for index in order if index in workers]):
        pids = [worker.pid for worker in workers.values()]
        accounts, begun = Accounts(recording.machine.usable_cores, pids, recording.root), time.monotonic()
        answer = _measure(recording, workers, index, _order(request, turn))
        if answer is None:
            continue
        (own_s, spent), wall_s = accounts.so_far(), time.monotonic() - begun
        recording.turns.setdefault(index, []).append(
            Turn(
                round=turn,
                place=place,
                samples_ms=tuple(answer.samples_ms),
                wall_s=round(wall_s, 4),
                own_cpu_s=round(own_s, 2),
                busy_cpu_s=round(spent.busy_s, 2) if spent else None,
                stolen_s=round(spent.stolen_s, 2) if spent else None,
                clock_mhz=answer.clock_mhz,
                gpu_clock_mhz=answer.gpu_clock_mhz,
            )
        )
    recording.throttled_by |= set(throttled_by(recording.root))


def _measure(recording: _Recording, workers: dict[int, Worker], index: int, order: Order) -> Answer | None:
    """One order; None where the process died of it, which is on record then."""
    try:
        answer = workers[index].measure(order)
    except ZtdeployError as error:
        recording.errors[index] = error
        del workers[index]
        return None
    recording.peaks_mb[index] = answer.peak_rss_mb
    return answer


def _order(request: BenchRequest, turn: int) -> Order:
    """A round's share of the whole."""
    if request.iterations is None:
        return Order(seconds=(request.duration_s or DEFAULT_DURATION_S) / request.rounds, lead_in=_LEAD_IN)
    share, more = divmod(request.iterations, request.rounds)
    return Order(iterations=share + (turn < more), lead_in=_LEAD_IN)
