"""Measuring the groups of a sweep one after the other, and saving after every round what there is."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial

from ztdeploy.core.errors import ZtdeployError
from ztdeploy.core.progress import Pace, Progress, in_words
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
    runs, failures, pace = dict(kept), dict[int, Failure](), Pace()

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
            step = _step(groups, position, kept.keys(), runs.keys() - kept.keys(), pace, progress)
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


def _step(
    groups: Sequence[Group],
    position: int,
    kept: Collection[int],
    measured: Collection[int],
    pace: Pace,
    progress: Progress,
) -> Progress:
    """Says which configurations of how many are being measured, and how long all of it will take."""
    planned = len(configurations_of(groups))
    behind = len(configurations_of(groups[index] for index in (*kept, *measured)))
    spent_s = sum(groups[index].seconds_until(1) for index in measured)
    left_s = sum(group.seconds_until(1) for index, group in enumerate(groups[position:], position) if index not in kept)

    def step(what: str, done: int, total: int) -> None:
        here_s = groups[position].seconds_until(done / total) if what.startswith("round") else 0
        time_left = pace.left(spent_s + here_s, left_s - here_s) or f", {in_words(left_s - here_s)} left"
        first = min(behind + 1, planned)
        progress(f"{first} of {planned}{time_left}: {groups[position].setting}: {what}", behind, planned)

    return step
