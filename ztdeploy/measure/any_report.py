"""Reading a report whose kind is not known beforehand."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import ValidationError

from ztdeploy.errors import InputError
from ztdeploy.measure.bench_report import BenchReport, read_report
from ztdeploy.measure.sweep_report import KIND, SCHEMA_VERSION, SweepReport


def read_any_report(path: Path) -> BenchReport | SweepReport:
    """
    Raises:
        InputError: neither a benchmark's nor a sweep's report, damaged, or of another schema version.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        data = None
    if not isinstance(data, dict) or data.get("kind") != KIND:
        return read_report(path)  # which says what is wrong with it
    if data.get("schema_version") != SCHEMA_VERSION:
        raise InputError(
            f"sweep '{path}' has schema version {data.get('schema_version')}",
            f"version {SCHEMA_VERSION}",
            "measure again with this ztdeploy, or install the one that wrote it",
        )
    try:
        return SweepReport.model_validate(data)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise InputError(
            f"sweep '{path}' is damaged at {where}: {error.errors()[0]['msg']}", "a report as written", "measure again"
        ) from error
