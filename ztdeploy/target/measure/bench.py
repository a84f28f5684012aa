"""Benchmarking a bundle: every configuration in a process of its own, in rounds, until done, interrupted or dead.

`run_bench` is the job on one screen; what was measured before something went wrong is in the report all the same.
"""

from __future__ import annotations

from collections.abc import Callable

from ztdeploy.core.bundle import Bundle, read_bundle
from ztdeploy.core.progress import Progress, silent
from ztdeploy.target.adaptive.calibrate import mean_gmacs
from ztdeploy.target.measure.bench_report import BenchReport, BenchRequest, ConfigurationReport, Failure, RunStatus
from ztdeploy.target.measure.comparing import cautions, compare
from ztdeploy.target.measure.machine import read_state, throttled_by
from ztdeploy.target.measure.orders import TimingOrder
from ztdeploy.target.measure.plan import DEFAULT_DURATION_S, Planned, plan_bench
from ztdeploy.target.measure.replay import run_replay
from ztdeploy.target.measure.reporting import begun, carried_out
from ztdeploy.target.measure.same_latency import same_latencies
from ztdeploy.target.measure.turns import Timed, time_in_turns
from ztdeploy.target.verdict import verdicts_of_bench

#: Calls at the start of a turn that are not counted: another process has just had the caches and the cores.
_LEAD_IN = 1


def run_bench(
    request: BenchRequest, *, progress: Progress = silent, save: Callable[[BenchReport], None] = lambda _report: None
) -> BenchReport:
    """Measure.

    A configuration whose process cannot load its engine, or dies, is reported as failed while the others go on. On
    Ctrl-C the report holds what there is, and says "interrupted".

    Args:
        save: called with the report so far before the first round and after each one.

    Raises:
        InputError, BundleError, EnvironmentLacksError: the request cannot be met; nothing was measured.
        ZtdeployError: no configuration at all could be loaded; the first one's reason.
    """
    bundle = read_bundle(request.bundle)
    if request.governor:
        return run_replay(request, bundle, progress, save)
    plan = plan_bench(request, bundle)
    start, timed = begun(request, plan), [Timed(planned.configuration) for planned in plan.entries]
    throttles = set(start.before.throttled_by)

    def report(status: RunStatus) -> BenchReport:
        measured = tuple(_measured(bundle, *both) for both in zip(plan.entries, timed, strict=True))
        found = [
            compare(own, measured[planned.reference], seed=request.seed)
            for own, planned in zip(measured, plan.entries, strict=True)
            if planned.reference is not None
        ]
        comparisons = tuple(comparison for comparison in found if comparison is not None)
        known = {"progress": status, "after": read_state(), "configurations": measured, "comparisons": comparisons}
        told = start.model_copy(update=known)
        told = told.model_copy(update={"same_latency": same_latencies(told, _agreement(bundle, told.bundle.profile))})
        warnings, verdicts = cautions(told, sorted(throttles)), verdicts_of_bench(told, bundle)
        return told.model_copy(update={"warnings": warnings, "verdicts": verdicts})

    def after_round() -> None:
        throttles.update(throttled_by())
        save(report("running"))

    def work() -> None:
        time_in_turns(
            timed,
            lambda turn: _order(request, turn),
            rounds=request.rounds,
            warm_up=TimingOrder(seconds=request.warmup_s) if request.warmup_s else None,
            seed=request.seed,
            progress=progress,
            after_round=after_round,
        )

    return carried_out(work, report, save)


def _measured(bundle: Bundle, planned: Planned, timed: Timed) -> ConfigurationReport:
    known = planned.report.with_turns(timed.turns, timed.peak_rss_mb)
    failure = Failure.of(timed.error) if timed.error else None
    reached = known.reached
    gmacs = mean_gmacs(bundle, [count / reached[0] for count in reached]) if reached else known.gmacs
    return known.model_copy(update={"cold_start": timed.start, "failure": failure, "gmacs": gmacs})


def _agreement(bundle: Bundle, profile: str) -> dict[str, float]:
    """How often variants agree with the baseline, where an evaluation of these very engines is on record."""
    known = {one.name: bundle.fidelity(one, profile) for one in bundle.manifest.variants}
    found = {name: one.agreement for name, one in known.items() if one is not None and one.agreement is not None}
    return {**found, bundle.manifest.dense.name: 1.0}


def _order(request: BenchRequest, turn: int) -> TimingOrder:
    """A round's share of the whole."""
    if request.iterations is None:
        return TimingOrder(seconds=(request.duration_s or DEFAULT_DURATION_S) / request.rounds, lead_in=_LEAD_IN)
    share, more = divmod(request.iterations, request.rounds)
    return TimingOrder(iterations=share + (turn < more), lead_in=_LEAD_IN)
