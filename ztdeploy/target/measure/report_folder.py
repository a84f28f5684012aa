"""Folders that whole reports are written into: what may be there before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ztdeploy.core.errors import OutputError
from ztdeploy.core.files import disk_errors
from ztdeploy.core.folders import check_folder_path, check_writable, content_of


def check_report_folder(out: Path, what: str, is_one: Callable[[], bool]) -> None:
    """Fail early where a report could not be written in the end.

    Args:
        what: is written there, with its article, such as "a sweep".
        is_one: whether a folder that is not empty is such a report's; it may be written to again.

    Raises:
        OutputError: a file, or a folder with something else in it.
    """
    check_folder_path(out)
    with disk_errors(out):
        empty = not out.exists() or not content_of(out)
    check_writable(out)
    if not empty and not is_one():
        raise OutputError(
            f"'{out}' exists and holds something else than {what}", "a new folder", "choose another --out"
        )
