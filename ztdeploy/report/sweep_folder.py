"""The folder that a sweep writes: what may be there before, and who may write there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ztdeploy.core.errors import InputError
from ztdeploy.core.files import disk_errors, move, write
from ztdeploy.core.locks import only_command
from ztdeploy.core.records import to_json
from ztdeploy.target.measure.report_file import check_report_folder, holds_kind
from ztdeploy.target.measure.sweep_report import KIND, SweepReport, read_any_report

REPORT = "sweep.json"
#: What a sweep that started anew found there.
PREVIOUS = "sweep-previous.json"


@contextmanager
def sweep_folder(out: Path) -> Iterator[None]:
    """Make the folder, and keep every other sweep from writing there; a new one that stays empty goes again.

    Raises:
        OutputError: a file, a folder with something else in it, or one that another sweep writes to right now.
    """
    check_sweep_folder(out)
    with only_command(out, "sweep"):
        yield


def check_sweep_folder(out: Path) -> None:
    """
    Raises:
        OutputError: as `sweep_folder`, but for another sweep.
    """
    check_report_folder(out, "a sweep", lambda: holds_kind(out / REPORT, KIND))


def read_previous(out: Path) -> tuple[SweepReport | None, str | None]:
    """What an earlier sweep left there, or why it cannot be read."""
    path = out / REPORT
    if not path.exists():
        return None, None
    try:
        report = read_any_report(path)
    except InputError as error:
        return None, error.given
    return (report, None) if isinstance(report, SweepReport) else (None, None)


def write_sweep(report: SweepReport, out: Path) -> None:
    """Write the report into the folder, whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    write(out / REPORT, to_json(report) + "\n")


def set_aside(out: Path) -> None:
    """Keep what an earlier sweep measured when a new one starts; the one before that goes."""
    path = out / REPORT
    with disk_errors(out):
        there = path.exists()
    if there:
        move(path, out / PREVIOUS)
