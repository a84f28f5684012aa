"""The folder that a search writes: its study while it runs, then schedules, JSON, a page, plots."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ztdeploy.core.files import disk_errors, make_folder, remove, write
from ztdeploy.core.locks import only_command
from ztdeploy.core.records import to_json
from ztdeploy.jobs.tune.schedule_file import profile_patch, schedule_file
from ztdeploy.report.tune.figures import figures
from ztdeploy.report.tune.page import page
from ztdeploy.report.tune.records import KIND, TuneReport
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
        The files' paths: the page, the winner's schedule, the rest.

    Raises:
        OutputError: see `check_folder`; or a file cannot be written.
    """
    check_folder(out)
    schedules = {f"{SCHEDULES}/{one.name}.toml": schedule_file(one, report) for one in report.compared}
    texts = {
        REPORT: to_json(report, indent=1) + "\n",
        PAGE: page(report),
        PATCH: profile_patch(report),
        **schedules,
        **{one.file: one.document() for one in figures(report)},
    }
    make_folder(out / SCHEDULES, "remove the link", own=True)
    with disk_errors(out):
        earlier = [*out.glob("*.svg"), *(out / SCHEDULES).glob("tuned-*.toml")]
    for path in earlier:
        if path.relative_to(out).as_posix() not in texts:
            remove(path)
    for name, text in texts.items():
        write(out / name, text)
    first = [PAGE, *schedules]
    return [out / name for name in [*first, *(name for name in texts if name not in first)]]
