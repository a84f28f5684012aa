"""A schedule that was found, as the TOML that `build --schedule` takes, with where it comes from in its comments."""

from __future__ import annotations

import json

from ztdeploy.core.schedule import PruningSchedule
from ztdeploy.core.text import printable
from ztdeploy.report.tune.records import Compared, TuneReport
from ztdeploy.report.tune.words import cost_words, origin_lines


def schedule_file(found: Compared, report: TuneReport) -> str:
    comments = [f"# {printable(line)}" for line in (*origin_lines(report), cost_words(found, report))]
    return "\n".join([*comments, "", toml(found.tuned.schedule)])


def profile_patch(report: TuneReport) -> str:
    """What was searched for, as lines that go to the end of any profile's file: it then builds these by itself."""
    found = [one.tuned.schedule for one in report.compared if one.searched]
    how = (
        "Behind the last line of a profile's TOML, these schedules are what it builds where nothing else is asked for."
    )
    comments = [f"# {printable(line)}" for line in (*origin_lines(report), how)]
    return "\n".join([*comments, *(f"\n[[schedules]]\n{toml(one, 'schedules.')}" for one in found)])


def toml(schedule: PruningSchedule, table: str = "") -> str:
    """A schedule's own values, none that are defaults.

    Args:
        table: what stands before the names of its tables.
    """
    lines = [f"name = {json.dumps(schedule.name)}", f"method = {json.dumps(schedule.method)}"]
    options = schedule.options.model_dump(exclude_defaults=True)
    if options:
        lines += ["", f"[{table}options]", *(f"{name} = {json.dumps(value)}" for name, value in options.items())]
    for layer in schedule.layers:
        own = layer.model_dump(exclude_defaults=True)
        lines += ["", f"[[{table}layer]]", *(f"{name} = {json.dumps(value)}" for name, value in own.items())]
    return "\n".join(lines) + "\n"
