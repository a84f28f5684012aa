"""JSON and TOML of unknown origin: bounded before they are parsed, and strict about what the formats allow."""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from ztdeploy.core.arguments import shown
from ztdeploy.core.files import TEXT_LIMIT, Words, read_text, unreadable

if sys.version_info >= (3, 11):
    import tomllib
else:  # JetPack 6 ships Python 3.10
    import tomli as tomllib
if TYPE_CHECKING:
    from typing_extensions import Unpack

#: Largest file of settings, in bytes; real ones have one or two kilobytes.
SETTINGS_LIMIT = 128 * 2**10
#: Most values in one JSON text; a sweep's report has some ten thousand.
_MOST_VALUES = 2_000_000
#: Most dots in one line of TOML: the parser's time grows with the square of the parts of a dotted key.
_MOST_DOTS = 200
#: Most errors of one validation that are listed.
_MOST_ERRORS = 1000


def parse_json(text: str) -> Any:
    """Plain data, without NaN, infinity, repeated keys in one object, or endless nesting.

    Raises:
        ValueError: the text is anything else; its message says what in a few words.
    """
    if text.count(",") > _MOST_VALUES:
        raise ValueError(f"it holds more than {_MOST_VALUES:,} values")
    try:
        return json.loads(text, parse_constant=_no_number, parse_float=_finite, object_pairs_hook=_table)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_json(path: Path, limit: int = TEXT_LIMIT, **words: Unpack[Words]) -> Any:
    """What a regular file of at most `limit` bytes says in JSON.

    Raises:
        ZtdeployError: of the kind given, if it cannot be read (see `core.files.read_text`) or is no such JSON.
    """
    return _parsed(path, limit, parse_json, "a JSON file", words)


def read_settings(path: Path, **words: Unpack[Words]) -> Any:
    """What a file of settings says: JSON by its suffix, else TOML, which is a table.

    Raises:
        ZtdeployError: of the kind given, if it cannot be read or is neither.
    """
    parse = parse_json if path.suffix == ".json" else parse_toml
    return _parsed(path, SETTINGS_LIMIT, parse, "a TOML or JSON file", {"fix": "check the path and syntax", **words})


def _parsed(path: Path, limit: int, parse: Callable[[str], Any], expected: str, words: Words) -> Any:
    words = {"expected": expected, **words}
    try:
        return parse(read_text(path, limit, **words))
    except ValueError as wrong:
        raise unreadable(path, f"cannot be read ({wrong})", expected, words) from wrong


def parse_toml(text: str) -> dict[str, Any]:
    """
    Raises:
        ValueError: the text is not TOML, or is made to take long.
    """
    if any(line.count(".") > _MOST_DOTS for line in text.split("\n")):
        raise ValueError(f"a line with more than {_MOST_DOTS} dots")
    try:
        data: dict[str, Any] = tomllib.loads(text)
        return data
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def errors_of(error: ValidationError) -> list[ErrorDetails]:
    """The errors of a validation. Very many are replaced by one that says how many, because each takes memory."""
    if error.error_count() > _MOST_ERRORS:
        count = f"{error.error_count():,} values are wrong"
        return [ErrorDetails(type="too_many", loc=(), msg=count, input=None)]
    return error.errors(include_url=False)


def first_error(error: ValidationError) -> tuple[str, str]:
    """Where the first wrong value stands ("" for the data as a whole), and what is wrong with it."""
    first = errors_of(error)[0]
    return ".".join(map(str, first["loc"])), first["msg"]


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
        raise ValueError(f"{shown(counted.most_common(1)[0][0])} stands there twice")
    return table
