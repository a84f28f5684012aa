"""Versions of what a build is made with, read without importing any of it."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from ztdeploy.version import __version__

TOOLS: tuple[str, ...] = ("torch", "timm", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "numpy", "pillow")
TOOLS += ("onnx-graphsurgeon", "openvino", "tensorrt", "tensorrt-rtx-cu13-libs")


def tool_versions() -> dict[str, str]:
    versions = {"ztdeploy": __version__, "python": platform.python_version()}
    for name in TOOLS:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions
