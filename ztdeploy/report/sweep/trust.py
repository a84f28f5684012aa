"""What limits how far a sweep's figures can be believed. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from ztdeploy.report.kit.numbers import counted
from ztdeploy.target.measure.bench_report import Caution, Failure
from ztdeploy.target.measure.sweep_report import SweepReport, rows


@dataclass(frozen=True)
class Warned:
    """A warning, and in how many of the runs it was given; its words are the last run's."""

    caution: Caution
    runs: int


def warned(report: SweepReport) -> list[Warned]:
    """Each kind of warning once, in the order in which they came up."""
    given = [caution for run in report.runs for caution in run.warnings]
    last = {caution.kind: caution for caution in given}
    return [Warned(caution, sum(one.kind == kind for one in given)) for kind, caution in last.items()]


def all_failures(report: SweepReport) -> list[Failure]:
    """What could not be built or measured, and what died while it was measured."""
    dead = [one.failure for run in report.runs for one in run.configurations if one.failure is not None]
    return [*report.failures, *dead]


def limits(report: SweepReport) -> list[str]:
    """A line for each thing that limits trust; empty where nothing was seen."""
    lines = []
    if report.progress != "complete":
        done = sum(row.measured.latency is not None for row in rows(report))
        word = "was interrupted" if report.progress == "interrupted" else "had not finished when this was written"
        lines.append(f"The sweep {word}: {done} of {counted(report.planned, 'configuration')} measured.")
    failures = all_failures(report)
    if failures:
        lines.append(f"{counted(len(failures), 'configuration')} failed; see below.")
    for one in warned(report):
        share = f" (in {one.runs} of {len(report.runs)} runs)" if len(report.runs) > 1 else ""
        lines.append(f"{_sentence(one.caution.message)}{share}: {one.caution.remedy}.")
    return lines


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
