"""The folder that a search writes: its study while it runs, then schedules, JSON, a page, plots."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ztdeploy.core.files import disk_errors, make_folder, remove, write
from ztdeploy.core.locks import only_command
from ztdeploy.core.records import to_json
from ztdeploy.core.schedule import PruningSchedule
from ztdeploy.core.text import printable
from ztdeploy.report.tune.page import page
from ztdeploy.report.tune.plots import figures
from ztdeploy.report.tune.records import KIND, TuneReport
from ztdeploy.report.tune.words import cost_words, origin_lines
from ztdeploy.target.measure.report_file import check_report_folder, holds_kind

REPORT, PAGE, STUDY, PATCH = "tune.json", "tune.html", "study.db", "profile-patch.toml"
SCHEDULES = "schedules"


@contextmanager
def tune_folder(out: Path, *, own_study: bool) -> Iterator[Callable[[], None]]:
    """Make the folder, and keep every other search from writing there; one that ends before it has begun leaves nothing
    new behind.

    Yields:
        What to call once there is a study worth keeping.

    Raises:
        OutputError: see `check_folder`; or another search is writing there right now.
    """
    check_folder(out)
    unbegun = own_study and not (out / STUDY).exists()

    def begun() -> None:
        nonlocal unbegun
        unbegun = False

    with only_command(out, "search"):
        try:
            yield begun
        finally:
            if unbegun:
                remove(out / STUDY)


def check_folder(out: Path) -> None:
    """
    Raises:
        OutputError: a file, or a folder with something else than a search in it.
    """
    check_report_folder(out, "a search", lambda: (out / STUDY).is_file() or holds_kind(out / REPORT, KIND))


def write_tuning(report: TuneReport, out: Path) -> list[Path]:
    """Write everything, each file whole or not at all, in place of earlier ones; the report itself comes first.

    Returns:
        The files' paths: the page, the schedule that is recommended, the rest.

    Raises:
        OutputError: see `check_folder`; or a file cannot be written.
    """
    check_folder(out)
    schedules = {
        f"{SCHEDULES}/{one.name}.toml": _commented(report, cost_words(one, report), ["", toml(one.tuned.schedule)])
        for one in report.compared
    }
    if not report.better:  # it comes first, for it is what to build
        words = "The best preset at this cost: nothing better was found."
        preset = _commented(report, words, ["", toml(report.preset)])
        schedules = {f"{SCHEDULES}/preset.toml": preset, **schedules}
    texts = {
        REPORT: to_json(report, indent=1) + "\n",
        PAGE: page(report),
        PATCH: profile_patch(report),
        **schedules,
        **{one.file: one.document() for one in figures(report)},
    }
    make_folder(out / SCHEDULES, "remove the link", own=True)
    with disk_errors(out):
        earlier = [*out.glob("*.svg"), *(out / SCHEDULES).glob("tuned-*.toml"), *(out / SCHEDULES).glob("preset.toml")]
    for path in earlier:
        if path.relative_to(out).as_posix() not in texts:
            remove(path)
    for name, text in texts.items():
        write(out / name, text)
    return [out / name for name in dict.fromkeys((PAGE, *schedules, *texts))]


def profile_patch(report: TuneReport) -> str:
    """What was searched for, as lines that go to the end of any profile's file: it then builds these by itself."""
    found = [one.tuned.schedule for one in report.compared if one.searched]
    how = "Appended to a profile's TOML, these schedules are what it builds where nothing else is asked for."
    return _commented(report, how, [f"\n[[schedules]]\n{toml(one, 'schedules.')}" for one in found])


def _commented(report: TuneReport, comment: str, lines: Sequence[str]) -> str:
    """Lines below comments that say where they come from."""
    return "\n".join([*(f"# {printable(line)}" for line in (*origin_lines(report), comment)), *lines])


def toml(schedule: PruningSchedule, table: str = "") -> str:
    """A schedule as TOML that `build --schedule` takes: its own values, none that are defaults.

    Args:
        table: what stands before the names of its tables.
    """

    def written(values: dict[str, object]) -> list[str]:
        return [f"{name} = {json.dumps(value)}" for name, value in values.items()]

    lines = written({"name": schedule.name, "method": schedule.method})
    options = schedule.options.model_dump(exclude_defaults=True)
    if options:
        lines += ["", f"[{table}options]", *written(options)]
    for layer in schedule.layers:
        lines += ["", f"[[{table}layer]]", *written(layer.model_dump(exclude_defaults=True))]
    return "\n".join(lines) + "\n"
