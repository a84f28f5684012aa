"""Hides the modules that FAKE_HIDDEN names from `import` and `find_spec`, as if they weren't installed."""

from __future__ import annotations

import os
import sys
from typing import Any

HIDDEN = frozenset(os.environ.get("FAKE_HIDDEN", "").split())


class Hiding:
    """A finder that finds all that another finds, but for what is hidden."""

    def __init__(self, finder: Any) -> None:
        self.finder = finder

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        return None if name.partition(".")[0] in HIDDEN else self.finder.find_spec(name, path, target)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.finder, name)


if HIDDEN:
    sys.meta_path[:] = [Hiding(finder) for finder in sys.meta_path]
