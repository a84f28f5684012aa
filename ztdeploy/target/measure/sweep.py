"""Measuring the groups of a sweep one after the other, and saving after every round what there is."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from ztdeploy.core.errors import ZtdeployError
from ztdeploy.target.measure.bench import Step, run_bench
from ztdeploy.target.measure.bench_report import BenchReport, Failure, Progress
from ztdeploy.target.measure.sweep_plan import Group, configurations_of, in_words, seconds_left
from ztdeploy.target.measure.sweep_report import SweepReport


def measure_groups(
    report: SweepReport,
    groups: Sequence[Group],
    kept: Mapping[int, BenchReport],
    *,
    progress: Step,
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
    recording = _Recording(report, tuple(groups), progress, dict(kept))
    save(recording.report("running"))
    try:
        for position in [position for position in range(len(groups)) if position not in kept]:
            run = recording.measure(position, save)
            if run is not None and run.progress == "interrupted":
                return recording.report("interrupted")
            save(recording.report("running"))
    except KeyboardInterrupt:
        return recording.report("interrupted")
    return recording.report("complete")


@dataclass
class _Recording:
    """What has been measured so far; the one thing here that changes."""

    start: SweepReport
    groups: tuple[Group, ...]
    progress: Step
    runs: dict[int, BenchReport]
    failures: dict[int, Failure] = field(default_factory=dict)
    done: list[Group] = field(default_factory=list)  #: in this session
    spent_s: float = 0.0

    def measure(self, position: int, save: Callable[[SweepReport], None]) -> BenchReport | None:
        """One group; None where none of its configurations could be measured."""
        group = self.groups[position]

        def save_part(run: BenchReport) -> None:
            self.runs[position] = run
            save(self.report("running"))

        begun = time.monotonic()
        try:
            self.runs[position] = run_bench(group.request, progress=self._step(position), save=save_part)
        except ZtdeployError as error:
            self.runs.pop(position, None)
            self.failures[position] = Failure(message=f"{group.label}: {error}", exit_code=error.exit_code)
            return None
        self.done.append(group)
        self.spent_s += time.monotonic() - begun
        return self.runs[position]

    def _step(self, position: int) -> Step:
        """Which configurations are being measured, and how long all of it will take."""
        group = self.groups[position]
        behind = configurations_of(one for index, one in enumerate(self.groups) if index in self.runs)
        left = [one for index, one in enumerate(self.groups) if index not in self.runs and index >= position]

        def step(what: str, done: int, total: int) -> None:
            here = seconds_left([group], self.done, self.spent_s) * (done / total if what.startswith("round") else 0)
            time_left = in_words(seconds_left(left, self.done, self.spent_s) - here)
            first = min(len(behind) + 1, self.start.planned)
            text = f"{first} of {self.start.planned}, {time_left} left: {group.setting}: {what}"
            self.progress(text, len(behind), self.start.planned)

        return step

    def report(self, progress: Progress) -> SweepReport:
        runs = tuple(self.runs[position] for position in sorted(self.runs))
        failures = (*self.start.failures, *(self.failures[position] for position in sorted(self.failures)))
        return self.start.model_copy(update={"progress": progress, "runs": runs, "failures": failures})
