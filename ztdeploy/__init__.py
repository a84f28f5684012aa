"""ztdeploy: a deployment compiler for vision transformers on edge devices.

import ztdeploy

runner = ztdeploy.load("bundle", keep_ratio=0.7)
prediction, = runner("photo.jpg")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ztdeploy.core.telemetry import switch_off
from ztdeploy.version import __version__

if TYPE_CHECKING:
    from ztdeploy.host.finetune import prune
    from ztdeploy.target.evaluate.evaluate import evaluate
    from ztdeploy.target.runtime.runner import BundleRunner, load

switch_off()  # here, because no library is imported before the package is

#: Imported on first use: the command line must start without NumPy and the runtime.
_LAZY = {
    "load": "ztdeploy.target.runtime.runner",
    "BundleRunner": "ztdeploy.target.runtime.runner",
    "evaluate": "ztdeploy.target.evaluate.evaluate",
    "prune": "ztdeploy.host.finetune",
}

__all__ = ["BundleRunner", "__version__", "evaluate", "load", "prune"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'ztdeploy' has no attribute '{name}'")
