"""Changing a bundle's manifest, as somebody who tampers with it would."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ztdeploy.core.bundle import MANIFEST


def edit(bundle: Path, change: Callable[[Any], object]) -> Path:
    """Rewrite the manifest; `change` alters the parsed JSON in place."""
    path = bundle / MANIFEST
    manifest = json.loads(path.read_text())
    change(manifest)
    _put(path, json.dumps(manifest).encode())
    return bundle


def linked_copy(bundle: Path, to: Path) -> Path:
    """A copy that costs nothing; `edit` and `rewrite` leave the original alone."""
    return Path(shutil.copytree(bundle, to, copy_function=os.link))


def rewrite(bundle: Path, name: str, content: bytes) -> Path:
    """Change a file and its hash: the bundle is consistent and not what was built."""
    _put(bundle / name, content)
    record = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    return edit(bundle, lambda manifest: manifest["files"].update({name: record}))


def _put(path: Path, content: bytes) -> None:
    path.unlink(missing_ok=True)
    path.write_bytes(content)
