"""Measuring the groups of a sweep one after the other, and saving after every round what there is."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial

from ztdeploy.core.errors import ZtdeployError
from ztdeploy.core.progress import Progress
from ztdeploy.target.measure.bench import run_bench
from ztdeploy.target.measure.bench_report import BenchReport, Failure, RunStatus
from ztdeploy.target.measure.sweep_plan import Group, configurations_of
from ztdeploy.target.measure.sweep_report import SweepReport


def measure_groups(
    report: SweepReport,
    groups: Sequence[Group],
    kept: Mapping[int, BenchReport],
    *,
    progress: Progress,
    save: Callable[[SweepReport], None],
) -> SweepReport:
    """Measure what is not kept.

    A group that cannot be measured at all is a failure in the report, and the next one follows. On Ctrl-C the report
    holds what there is, and says "interrupted".

    Args:
        report: without runs.
        kept: runs of an earlier sweep, by the positions of their groups.
        save: called with the report so far, before the first group and after every round.
    """
    runs, failures = dict(kept), dict[int, Failure]()

    def so_far(status: RunStatus) -> SweepReport:
        measured = tuple(runs[position] for position in sorted(runs))
        failed = (*report.failures, *failures.values())
        return report.model_copy(update={"progress": status, "runs": measured, "failures": failed})

    def keep(position: int, run: BenchReport) -> None:
        runs[position] = run
        save(so_far("running"))

    save(so_far("running"))
    try:
        for position in [position for position in range(len(groups)) if position not in kept]:
            step = _step(groups, position, runs.keys(), progress)
            try:
                run = run_bench(groups[position].request, progress=step, save=partial(keep, position))
            except ZtdeployError as error:
                runs.pop(position, None)
                failures[position] = Failure.of(error, groups[position].label)
                save(so_far("running"))
                continue
            keep(position, run)
            if run.progress == "interrupted":
                return so_far("interrupted")
    except KeyboardInterrupt:
        return so_far("interrupted")
    return so_far("complete")


def _step(groups: Sequence[Group], position: int, behind: Collection[int], progress: Progress) -> Progress:
    """Says which configurations of how many are being measured; what is done is counted in seconds."""
    first, planned = len(configurations_of(groups[index] for index in behind)) + 1, len(configurations_of(groups))
    seconds = [group.seconds for group in groups]
    spent_s = sum(seconds[index] for index in behind)

    def step(what: str, done: float, total: float) -> None:
        which = f"{min(first, planned)} of {planned}: {groups[position].setting}: {what}"
        progress(which, spent_s + seconds[position] * done / total, sum(seconds))

    return step
