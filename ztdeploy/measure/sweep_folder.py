"""The folder that a sweep writes: what may be there before, and who may write there."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ztdeploy.bundle import disk_errors
from ztdeploy.errors import InputError, OutputError
from ztdeploy.measure.any_report import read_any_report
from ztdeploy.measure.bench_report import write_text
from ztdeploy.measure.report_file import holds_kind
from ztdeploy.measure.sweep_report import KIND, SweepReport

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
    existed = out.exists()
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(out, os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputError(
                f"another sweep is writing to '{out}'", "a folder of its own", "wait for it, or choose another --out"
            ) from error
        yield
    finally:
        os.close(descriptor)
        if not existed:
            with suppress(OSError):  # it is not empty, as a rule
                out.rmdir()


def check_sweep_folder(out: Path) -> None:
    """
    Raises:
        OutputError: a file, or a folder with something else than a sweep in it.
    """
    with disk_errors(out):
        above = next(folder for folder in out.absolute().parents if folder.exists())
        if not above.is_dir() or (out.exists() and not out.is_dir()):
            raise OutputError(f"'{out}' is a file, or lies below one", "a folder's path", "choose another --out")
        if not out.exists() or not any(out.iterdir()):
            return
    report = out / REPORT
    if not holds_kind(report, KIND):
        raise OutputError(
            f"'{out}' exists and holds something else than a sweep", "a new folder", "choose another --out"
        )


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
    write_text(report.model_dump_json() + "\n", out / REPORT)


def set_aside(out: Path) -> None:
    """Keep what an earlier sweep measured when a new one starts; the one before that goes."""
    path = out / REPORT
    with disk_errors(out):
        if path.exists():
            path.replace(out / PREVIOUS)
