"""What this machine can do for ztdeploy, and what to install for the rest."""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from ztdeploy.backends import PLANNED
from ztdeploy.backends.threads import usable_threads

State = Literal["ok", "missing", "note"]

#: What the host half needs: import name -> distribution.
HOST_MODULES = {
    "torch": "torch",
    "torchvision": "torchvision",
    "timm": "timm",
    "onnx": "onnx",
    "onnx_ir": "onnx-ir",
    "onnxscript": "onnxscript",
    "safetensors": "safetensors",
}


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    subject: str
    state: State
    found: str
    remedy: str = ""


def examine() -> list[Finding]:
    """Look at the machine; imports nothing heavier than ONNX Runtime."""
    return [
        Finding("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        _processor(),
        _memory(),
        _disk(),
        _onnxruntime(),
        _host_half(),
        *(
            Finding(f"backend {name}", "note", f"{what} cannot be built by this version")
            for name, what in PLANNED.items()
        ),
        _realdata(),
    ]


def _processor() -> Finding:
    features = set()
    model = platform.processor()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("flags", "Features"):
                features |= set(value.split())
            elif key.strip() == "model name":
                model = value.strip()
    except OSError:
        pass
    known = [
        name
        for name in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "asimd", "asimddp")
        if name in features
    ]
    return Finding(
        "processor",
        "ok",
        f"{model or platform.machine()}, {usable_threads()} usable threads, {' '.join(known) or 'no SIMD flags read'}",
    )


def _memory() -> Finding:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (ValueError, OSError):
        return Finding("memory", "note", "unknown")
    return Finding(
        "memory",
        "ok" if total >= 3 else "note",
        f"{total:.1f} GiB",
        "" if total >= 3 else "building DeiT-S takes about 2 GB",
    )


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    enough = free > 1
    return Finding(
        "disk", "ok" if enough else "note", f"{free:.1f} GB free here", "" if enough else "a DeiT-B bundle takes 0.4 GB"
    )


def _onnxruntime() -> Finding:
    try:
        ort = import_module("onnxruntime")
    except ImportError as error:
        return Finding("backend onnxruntime", "missing", str(error), "pip install ztdeploy")
    return Finding("backend onnxruntime", "ok", f"{ort.__version__} with {', '.join(ort.get_available_providers())}")


def _host_half() -> Finding:
    missing = [name for name in HOST_MODULES if find_spec(name) is None]
    if missing:
        return Finding("building bundles", "missing", f"lacks {', '.join(missing)}", "pip install 'ztdeploy[build]'")
    found = []
    for distribution in HOST_MODULES.values():
        try:
            found.append(f"{distribution} {version(distribution)}")
        except PackageNotFoundError:
            found.append(distribution)
    return Finding("building bundles", "ok", ", ".join(found))


def _realdata() -> Finding:
    folder = os.environ.get("ZTDEPLOY_REALDATA")
    if not folder:
        return Finding(
            "real data for tests",
            "note",
            "ZTDEPLOY_REALDATA is not set",
            "set it to a folder with images and labels.json",
        )
    exists = (Path(folder) / "labels.json").is_file()
    return Finding(
        "real data for tests", "ok" if exists else "missing", folder, "" if exists else "no labels.json in it"
    )
