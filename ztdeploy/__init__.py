"""ztdeploy: a deployment compiler for vision transformers on edge devices.

    import ztdeploy

    bundle = ztdeploy.build("deit_s", keep_ratio=0.8)
    runner = ztdeploy.load(bundle)
    (prediction,) = runner("photo.jpg")

`build`, `tune` and `prune` need the extra [build]; `load`, `evaluate` and `bench` run on the device without PyTorch.
Every error that ztdeploy raises on purpose is a `ZtdeployError`, and says what to do.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ztdeploy.core.telemetry import switch_off
from ztdeploy.version import __version__

if TYPE_CHECKING:
    from ztdeploy.core.bundle import Bundle
    from ztdeploy.core.errors import ZtdeployError
    from ztdeploy.core.schedule import PruningSchedule
    from ztdeploy.host.finetune import prune
    from ztdeploy.jobs.python_api import bench, build, evaluate, tune
    from ztdeploy.report.tune.records import TuneReport
    from ztdeploy.target.adaptive.cascade import CascadeRunner
    from ztdeploy.target.adaptive.governor import Governor
    from ztdeploy.target.adaptive.opening import load
    from ztdeploy.target.evaluate.eval_report import EvalReport
    from ztdeploy.target.measure.bench_report import BenchReport
    from ztdeploy.target.runtime.postprocess import Prediction
    from ztdeploy.target.runtime.runner import BundleRunner

switch_off()  # here, because no library is imported before the package is

#: Imported on first use: the command line must start without NumPy and the runtime.
_LAZY = {
    "build": "ztdeploy.jobs.python_api",
    "load": "ztdeploy.target.adaptive.opening",
    "evaluate": "ztdeploy.jobs.python_api",
    "bench": "ztdeploy.jobs.python_api",
    "tune": "ztdeploy.jobs.python_api",
    "prune": "ztdeploy.host.finetune",
    "Bundle": "ztdeploy.core.bundle",
    "BundleRunner": "ztdeploy.target.runtime.runner",
    "CascadeRunner": "ztdeploy.target.adaptive.cascade",
    "Governor": "ztdeploy.target.adaptive.governor",
    "Prediction": "ztdeploy.target.runtime.postprocess",
    "EvalReport": "ztdeploy.target.evaluate.eval_report",
    "BenchReport": "ztdeploy.target.measure.bench_report",
    "TuneReport": "ztdeploy.report.tune.records",
    "PruningSchedule": "ztdeploy.core.schedule",
    "ZtdeployError": "ztdeploy.core.errors",
}

__all__ = [
    "BenchReport",
    "Bundle",
    "BundleRunner",
    "CascadeRunner",
    "EvalReport",
    "Governor",
    "Prediction",
    "PruningSchedule",
    "TuneReport",
    "ZtdeployError",
    "__version__",
    "bench",
    "build",
    "evaluate",
    "load",
    "prune",
    "tune",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'ztdeploy' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
