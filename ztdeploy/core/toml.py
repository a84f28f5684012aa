"""TOML reading on every supported Python: the standard library has it only from 3.11 on."""

from __future__ import annotations

import sys
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:  # JetPack 6 ships Python 3.10
    import tomli as tomllib


def read_toml(text: str) -> dict[str, Any]:
    """Parse TOML text.

    Raises:
        ValueError: the text is not TOML (`tomllib.TOMLDecodeError` is one).
    """
    try:
        data: dict[str, Any] = tomllib.loads(text)
        return data
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
