"""A schedule that was found, as the TOML that `build --schedule` takes, with where it comes from in its comments."""

from __future__ import annotations

import json

from ztdeploy.errors import printable
from ztdeploy.schedule import PruningSchedule
from ztdeploy.tuning.report import Compared, TuneReport
from ztdeploy.tuning.words import cost_words, origin_lines


def schedule_file(found: Compared, report: TuneReport) -> str:
    comments = [f"# {printable(line)}" for line in (*origin_lines(report), cost_words(found, report))]
    return "\n".join([*comments, "", toml(found.tuned.schedule)])


def toml(schedule: PruningSchedule) -> str:
    """A schedule's own values, none that are defaults."""
    lines = [f"name = {json.dumps(schedule.name)}", f"method = {json.dumps(schedule.method)}"]
    options = schedule.options.model_dump(exclude_defaults=True)
    if options:
        lines += ["", "[options]", *(f"{name} = {json.dumps(value)}" for name, value in options.items())]
    for layer in schedule.layers:
        own = layer.model_dump(exclude_defaults=True)
        lines += ["", "[[layer]]", *(f"{name} = {json.dumps(value)}" for name, value in own.items())]
    return "\n".join(lines) + "\n"
