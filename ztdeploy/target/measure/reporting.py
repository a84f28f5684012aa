"""What all kinds of benchmarks share: a report begins with the machine at rest, and is saved until its work ends."""

from __future__ import annotations

import time
from collections.abc import Callable

from ztdeploy.target.measure.bench_report import BenchReport, BenchRequest, RunStatus
from ztdeploy.target.measure.machine import CpuMeter, read_machine, read_state
from ztdeploy.target.measure.plan import Plan

#: How long the machine is watched before anything is started.
_WATCH_S = 0.5


def begun(request: BenchRequest, plan: Plan) -> BenchReport:
    """A report without findings, of a machine that was watched while nothing of ours ran."""
    machine, before, meter = read_machine(), read_state(), CpuMeter()
    time.sleep(_WATCH_S)
    return BenchReport(
        progress="running",
        request=request,
        bundle=plan.bundle,
        machine=machine,
        before=before,
        after=before,
        quiet_cores=meter.so_far().others_cores,
        configurations=(),
        comparisons=(),
        cascade=plan.cascade,
    )


def carried_out(
    work: Callable[[], object], report: Callable[[RunStatus], BenchReport], save: Callable[[BenchReport], None]
) -> BenchReport:
    """Do the work and report; after Ctrl-C, what was found until then.

    Args:
        save: called with the report before the work begins.
    """
    save(report("running"))
    try:
        work()
    except KeyboardInterrupt:
        return report("interrupted")
    return report("complete")
