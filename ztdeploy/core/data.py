"""JSON of unknown origin as data: bounded, and without what JSON cannot mean."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

from ztdeploy.core.files import TEXT_LIMIT, read_text
from ztdeploy.errors import InputError, ZtdeployError


def parse_json(text: str | bytes) -> Any:
    """Plain data: no NaN and no infinity, no key twice in one object, nothing nested without end.

    Raises:
        ValueError: it is something else; says what in a few words.
    """
    try:
        return json.loads(text, parse_constant=_no_number, parse_float=_finite, object_pairs_hook=_table)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except UnicodeDecodeError as error:  # says all bytes that it was given
        raise ValueError(f"it is not text in UTF-8 (byte {error.start})") from error


def read_json(
    path: Path,
    limit: int = TEXT_LIMIT,
    *,
    what: str = "file",
    error: type[ZtdeployError] = InputError,
    expected: str = "a JSON file",
    fix: str = "check the path",
) -> Any:
    """What a regular file of at most `limit` bytes says in JSON, see `core.files.read_text`.

    Raises:
        ZtdeployError: of the kind given, if it cannot be read or is no such JSON.
    """
    text = read_text(path, limit, what=what, error=error, expected=expected, fix=fix)
    try:
        return parse_json(text)
    except ValueError as wrong:
        raise error(f"{what} '{path}' cannot be read ({wrong})", expected, fix) from wrong


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("a number is too large")
    return number


def _table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        counted = Counter(name for name, _ in pairs)
        raise ValueError(f"'{counted.most_common(1)[0][0][:60]}' stands there twice")
    return table
