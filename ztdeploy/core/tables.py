"""Tables of `"name": "module:attribute"`: entries are imported on use, and installed packages may add some."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any


def with_entry_points(table: Mapping[str, str], group: str) -> dict[str, str]:
    """A table with the entry points of a group of installed packages; the table's own names are never replaced."""
    return {**_entry_points(group), **table}


def look_up(reference: str) -> Any:
    """Import what "module:attribute" refers to.

    Raises:
        ImportError: the module cannot be imported.
        AttributeError: it has no such attribute.
    """
    module, _, attribute = reference.partition(":")
    return getattr(import_module(module), attribute)


@cache
def _entry_points(group: str) -> dict[str, str]:
    return {entry.name: entry.value for entry in entry_points(group=group)}
