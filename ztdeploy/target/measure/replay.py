"""`bench --governor`: one load, replayed with static variants and with a governor, each in a process of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ztdeploy.core.bundle import Bundle
from ztdeploy.core.errors import InputError
from ztdeploy.core.processes import module_command
from ztdeploy.core.progress import Progress
from ztdeploy.core.records import to_json
from ztdeploy.target.adaptive.governor import Governor
from ztdeploy.target.adaptive.ladder import candidates
from ztdeploy.target.measure.bench_report import BenchReport, BenchRequest, RunStatus
from ztdeploy.target.measure.co_runner import CoRunner
from ztdeploy.target.measure.machine import read_state
from ztdeploy.target.measure.orders import Worker
from ztdeploy.target.measure.plan import Plan, plan_bench
from ztdeploy.target.measure.replay_report import (
    LoadReplay,
    LoadTimeline,
    ReplayRun,
    judged,
    reaction_s,
    read_load,
    verdict_of_replay,
)
from ztdeploy.target.measure.replay_worker import PhaseCalls, ReplayOrder, ReplayTask
from ztdeploy.target.measure.reporting import begun, carried_out

GOVERNOR = "governor"


def run_replay(
    request: BenchRequest, bundle: Bundle, progress: Progress, save: Callable[[BenchReport], None]
) -> BenchReport:
    """Replay; arguments, results and errors as of `bench.run_bench`."""
    load = check_replay(request)
    plan = plan_bench(request, bundle)
    tasks = list(_tasks(request, bundle, plan))
    start, runs = begun(request, plan), list[ReplayRun]()

    def report(status: RunStatus) -> BenchReport:
        replay = LoadReplay(
            load=load,
            target_ms=tasks[0].target_ms,
            min_fidelity=request.min_fidelity,
            batch=tasks[0].batch,
            threads=tasks[0].threads or None,
            reaction_s=reaction_s(tasks[0].target_ms),
            runs=tuple(runs),
        )
        verdicts = (verdict_of_replay(replay),) if status == "complete" else ()
        found = {"progress": status, "after": read_state(), "verdicts": verdicts, "replay": replay}
        return start.model_copy(update=found)

    def work() -> None:
        with CoRunner(max(phase.busy for phase in load.phase)) as co_runner:
            for number, task in enumerate(tasks):
                done = lambda share, number=number, task=task: progress(  # noqa: E731
                    f"replaying the load with {task.variant or GOVERNOR}", number + share, len(tasks)
                )
                runs.append(_replayed(task, load, co_runner, request.warmup_s, done))
                save(report("running"))

    return carried_out(work, report, save)


def check_replay(request: BenchRequest) -> LoadTimeline:
    """The load that is asked for.

    Raises:
        InputError: options are missing, or exclude each other; or the load file is none.
    """
    if request.latency_ms is None:
        raise InputError("--governor without a target", "--latency-ms NUMBER", "give for instance --latency-ms 30")
    if request.iterations is not None:
        raise InputError("--governor with --iterations", "a duration", "give --duration, or leave it out")
    for name, several in (("--batch", request.batches), ("--threads", request.threads)):
        if len(several) > 1:
            raise InputError(f"--governor with several {name}", "one", f"give one {name}, or none")
    Governor(request.latency_ms, min_fidelity=request.min_fidelity)
    return read_load(request.load).lasting(request.duration_s)


def _tasks(request: BenchRequest, bundle: Bundle, plan: Plan) -> Iterator[ReplayTask]:
    """The static variants, from the baseline on, and the governor."""
    assert request.latency_ms is not None
    first = plan.entries[0].configuration
    candidates(bundle, first.profile, Governor(request.latency_ms, min_fidelity=request.min_fidelity))
    names = list(dict.fromkeys(planned.configuration.variant for planned in plan.entries))
    for name in (*names, None):
        yield ReplayTask(
            bundle=str(first.bundle),
            profile=first.profile,
            threads=first.threads,
            batch=first.batch,
            variant=name,
            target_ms=request.latency_ms,
            min_fidelity=request.min_fidelity,
        )


def _replayed(
    task: ReplayTask, load: LoadTimeline, co_runner: CoRunner, warmup_s: float, done: Callable[[float], None]
) -> ReplayRun:
    """One run of the whole timeline."""
    name, found = task.variant or GOVERNOR, list[PhaseCalls]()
    done(0.0)
    with Worker(name, module_command("ztdeploy.target.measure.replay_worker", to_json(task))) as worker:
        worker.answer(PhaseCalls)
        worker.carry_out(ReplayOrder(seconds=warmup_s, counted=False), PhaseCalls)
        try:
            for start, phase in zip(load.starts, load.phase, strict=True):
                done(start / load.seconds)
                co_runner.busy(phase.busy)
                found.append(worker.carry_out(ReplayOrder(seconds=phase.seconds, slowdown=phase.slowdown), PhaseCalls))
        finally:
            co_runner.busy(0)
    variants = found[-1].ladder
    run = ReplayRun(
        name=name,
        variants=tuple(variants),
        ended_s=tuple(at for phase in found for at in phase.ended_s),
        latency_ms=tuple(ms for phase in found for ms in phase.latency_ms),
        variant=tuple(variants.index(one) for phase in found for one in phase.variant),
        decisions=tuple(one for phase in found for one in phase.decisions),
        peak_rss_mb=found[-1].peak_rss_mb,
    )
    return judged(run, load, task.target_ms)
