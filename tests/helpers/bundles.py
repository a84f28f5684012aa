"""Changing a bundle's manifest, as somebody who tampers with it would."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ztdeploy.bundle import MANIFEST


def edit(bundle: Path, change: Callable[[Any], object]) -> Path:
    """Rewrite the manifest; `change` alters the parsed JSON in place."""
    path = bundle / MANIFEST
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
    return bundle
