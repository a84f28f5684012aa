"""Reports as files: what kind one is of, whether it can be read, and whether it may be overwritten."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from ztdeploy.core.arguments import shown
from ztdeploy.core.data import first_error, read_json
from ztdeploy.core.errors import InputError, OutputError
from ztdeploy.core.files import disk_errors, is_there
from ztdeploy.core.folders import check_file_writable
from ztdeploy.core.text import printable

_Report = TypeVar("_Report", bound=BaseModel)


def load_report(path: Path, expected: str) -> Any:
    """What JSON a file holds.

    Args:
        expected: what it should be, in words, such as "a file of 'ztdeploy bench'".

    Raises:
        InputError: there is no such file, or it is no JSON.
    """
    return read_json(path, what="report", expected=expected)


def kind_of(data: Any) -> str | None:
    """What a report says that it is; None where it is no report of ours."""
    kind = data.get("kind") if isinstance(data, dict) else None
    return kind if isinstance(kind, str) and kind.startswith("ztdeploy-") else None


def no_report(data: Any, path: Path, expected: str) -> InputError:
    """The error of a file that is not what was expected, which says what it is instead where that is known."""
    kind = kind_of(data)
    given = f"'{path}' is no report" if kind is None else printable(f"'{path}' is a report of the kind '{kind[:40]}'")
    return InputError(given, expected, "check the path")


def parse_report(data: Any, path: Path, what: str, version: int, model: type[_Report]) -> _Report:
    """The report that a file holds, whose kind is known already.

    Args:
        data: what its JSON says.
        what: what to call it, such as "sweep".
        version: the schema version that is read.

    Raises:
        InputError: damaged, or of another schema version.
    """
    if data.get("schema_version") != version:
        raise InputError(
            f"{what} '{path}' has schema version {shown(data.get('schema_version'))}",
            f"version {version}",
            "measure again with this ztdeploy, or install the one that wrote it",
        )
    try:
        return model.model_validate(data)
    except ValidationError as error:
        where, wrong = first_error(error)
        raise InputError(
            f"{what} '{path}' is damaged at {where or 'the top'}: {wrong}", "a report as written", "measure again"
        ) from error


def holds_kind(path: Path, kind: str) -> bool:
    """Whether a file is a report of that kind, of whatever schema version."""
    try:
        return kind_of(load_report(path, kind)) == kind
    except InputError:
        return False


def check_overwritable(out: Path, what: str, is_one: Callable[[], bool], option: str = "--out FILE.json") -> None:
    """
    Args:
        what: is to be written there, such as "report of 'ztdeploy bench'".
        is_one: whether a file that is there is such a one.
        option: that named the path.

    Raises:
        OutputError: a folder, a file that is no such one, which is not to be overwritten, or where nothing can be.
    """
    another = f"choose another {option.partition(' ')[0]}"
    with disk_errors(out, another):
        there, folder = is_there(out), out.is_dir()
    if folder:
        raise OutputError(f"'{out}' is a folder", "a file's path", f"give {option}")
    if there and not is_one():
        raise OutputError(f"'{out}' exists and is no {what}", "a new file", another)
    check_file_writable(out)
