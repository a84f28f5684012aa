"""What installed packages add to tables of `"name": "module:attribute"`, whose entries `pkgutil` imports on use."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points


def with_entry_points(table: Mapping[str, str], group: str) -> dict[str, str]:
    """A table with the entry points of a group of installed packages; the table's own names are never replaced."""
    return {**_entry_points(group), **table}


@cache
def _entry_points(group: str) -> dict[str, str]:
    return {entry.name: entry.value for entry in entry_points(group=group)}
