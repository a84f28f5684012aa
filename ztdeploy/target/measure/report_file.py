"""Reports as files and folders: what kind one is of, whether it can be read, and whether it may be overwritten."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from ztdeploy.core.arguments import shown
from ztdeploy.core.data import first_error, read_json
from ztdeploy.core.errors import InputError, OutputError
from ztdeploy.core.files import disk_errors, is_there
from ztdeploy.core.folders import check_file_writable, check_folder_path, check_writable, content_of
from ztdeploy.core.text import printable

_Report = TypeVar("_Report", bound=BaseModel)


def load_report(path: Path, expected: str, *models: type[_Report]) -> _Report:
    """A report of one of several kinds.

    Args:
        expected: what the file should be, such as "a file of 'ztdeploy bench'".
        models: records whose fields `kind` and `schema_version` have the values that are read as defaults.

    Raises:
        InputError: there is no such file, it is no such report, damaged, or of another schema version.
    """
    data = _result_in(read_json(path, what="report", expected=expected))
    kind = _kind_of(data)
    model = next((one for one in models if one.model_fields["kind"].default == kind), None)
    if model is None:
        is_one = printable(f"'{path}' is a report of the kind '{(kind or '')[:40]}'")
        raise InputError(f"'{path}' is no report" if kind is None else is_one, expected, "check the path")
    version = model.model_fields["schema_version"].default
    if data.get("schema_version") != version:
        raise InputError(
            f"report '{path}' has schema version {shown(data.get('schema_version'))}",
            f"version {version}",
            "measure again with this ztdeploy, or install the one that wrote it",
        )
    try:
        return model.model_validate(data)
    except ValidationError as error:
        where, wrong = first_error(error)
        raise InputError(
            f"report '{path}' is damaged at {where or 'the top'}: {wrong}", "a report as written", "measure again"
        ) from error


def holds_kind(path: Path, kind: str) -> bool:
    """Whether a file is a report of that kind, of whatever schema version."""
    try:
        return _kind_of(read_json(path)) == kind
    except InputError:
        return False


def _result_in(data: Any) -> Any:
    """What a command found, where its `--json` was saved to a file; otherwise the data as they are."""
    return data["result"] if isinstance(data, dict) and {"ztdeploy", "verb", "result"} <= set(data) else data


def _kind_of(data: Any) -> str | None:
    """What a report says that it is; None where it is no report of ours."""
    kind = data.get("kind") if isinstance(data, dict) else None
    return kind if isinstance(kind, str) and kind.startswith("ztdeploy-") else None


def check_overwritable(out: Path, what: str, is_one: Callable[[], bool], option: str = "--out FILE.json") -> None:
    """Fail early where a report could not be written in the end.

    Args:
        what: is to be written there, such as "report of 'ztdeploy bench'".
        is_one: whether the file that is there is such a report.
        option: that named the path.

    Raises:
        OutputError: a folder, a file that is no such report and is not to be overwritten, or where nothing can be.
    """
    another = f"choose another {option.partition(' ')[0]}"
    with disk_errors(out, another):
        there, folder = is_there(out), out.is_dir()
    if folder:
        raise OutputError(f"'{out}' is a folder", "a file's path", f"give {option}")
    if there and not is_one():
        raise OutputError(f"'{out}' exists and is no {what}", "a new file", another)
    check_file_writable(out)


def check_report_folder(out: Path, what: str, is_one: Callable[[], bool]) -> None:
    """Fail early where a folder of reports could not be written in the end.

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
