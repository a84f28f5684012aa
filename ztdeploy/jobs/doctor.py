"""What this machine can do for ztdeploy, and what to install for the rest."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from ztdeploy.core.errors import EnvironmentLacksError, MissingExtraError
from ztdeploy.core.processor import BF16_PRODUCTS, DOT_PRODUCTS, onednn_processor, processor
from ztdeploy.target.backends import PLANNED
from ztdeploy.target.backends.int8 import what_int8_lacks
from ztdeploy.target.backends.openvino import load_openvino
from ztdeploy.target.backends.tensorrt.cuda import open_device
from ztdeploy.target.backends.tensorrt.flavours import TENSORRT, TENSORRT_RTX
from ztdeploy.target.backends.threads import usable_threads
from ztdeploy.target.measure.machine import processor_name
from ztdeploy.target.plugins.library import what_is_missing
from ztdeploy.target.plugins.ptx import INSTALL, nvrtc_versions

State = Literal["ok", "missing", "note"]

#: What the host half needs: import name -> distribution.
HOST_MODULES = {
    "torch": "torch",
    "torchvision": "torchvision",
    "timm": "timm",
    "onnx": "onnx",
    "onnx_ir": "onnx-ir",
    "onnxscript": "onnxscript",
    "onnx_graphsurgeon": "onnx-graphsurgeon",
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
    """Look at the machine; imports nothing heavier than its runtimes. A probe that fails is a finding, too."""
    probes = {
        "processor": _processor,
        "int8 engines": _int8,
        "memory": _memory,
        "disk": _disk,
        "backend onnxruntime": _onnxruntime,
        "backend openvino": _openvino,
        "building bundles": _host_half,
        "gpu": _gpu,
        "backend tensorrt-rtx": _tensorrt_rtx,
        "backend tensorrt": _tensorrt,
        "compiling plugins": _plugin_compiler,
        "compiling kernels to PTX": _nvrtc,
    }
    python = Finding("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    planned = [
        Finding(f"backend {name}", "note", f"{what} cannot be built by this version") for name, what in PLANNED.items()
    ]
    found = [_safely(subject, probe) for subject, probe in probes.items()]
    return [python, *found, *planned, _safely("real data for tests", _realdata)]


def _safely(subject: str, probe: Callable[[], Finding]) -> Finding:
    """Machines are odd in more ways than probes foresee, and this report is read where something is odd."""
    try:
        return probe()
    except Exception as error:
        what = f"cannot be examined: {type(error).__name__}: {str(error)[:200]}"
        return Finding(subject, "missing", what, "reinstall it, or report this")


def _processor() -> Finding:
    features = processor().features
    known = [name for name in ("avx2", "avx512f", "asimd", *BF16_PRODUCTS, *DOT_PRODUCTS) if name in features]
    return Finding(
        "processor",
        "ok",
        f"{processor_name()}, {usable_threads()} usable threads, {' '.join(known) or 'no SIMD flags read'}",
    )


def _int8() -> Finding:
    here = processor()
    lacking = what_int8_lacks(here)
    if lacking is not None:
        bits = "; weights take 7 bits here, of which no sum is lost" if here.loses_sums else ""
        return Finding("int8 engines", "note", lacking + bits, "measure both cpu and cpu-int8; see docs/precision.md")
    found = " ".join(here.dot_products)
    return Finding("int8 engines", "ok" if found else "note", found or "no SIMD flags read")


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


def _openvino() -> Finding:
    subject = "backend openvino"
    try:
        version_here = load_openvino().__version__
    except MissingExtraError:
        return Finding(subject, "note", "not installed", "pip install 'ztdeploy[openvino]'")
    except EnvironmentLacksError as error:
        return Finding(subject, "missing", error.given, error.fix)
    bf16 = onednn_processor().computes_bf16
    precisions = "fp32 and bf16" if bf16 else "fp32; this processor does not compute in bf16"
    return Finding(subject, "ok", f"{version_here.partition('-')[0]}; {precisions}")


def _gpu() -> Finding:
    try:
        device = open_device()
    except EnvironmentLacksError as error:
        return Finding("gpu", "note", error.given, "only needed to run GPU engines, not to build for desktop GPUs")
    found = f"{device.name}, compute capability {device.capability}, driver for CUDA {device.driver}"
    return Finding("gpu", "ok", found)


def _tensorrt_rtx() -> Finding:
    try:
        version_here = TENSORRT_RTX.load().__version__
    except EnvironmentLacksError as error:
        return Finding("backend tensorrt-rtx", "missing", error.given, error.fix)
    capabilities = ", ".join(TENSORRT_RTX.capabilities)
    return Finding("backend tensorrt-rtx", "ok", f"{version_here}; builds for compute capabilities {capabilities}")


def _tensorrt() -> Finding:
    subject, without = "backend tensorrt", "device bundles are built without it; run 'ztdeploy finalize' on the board"
    try:
        version_here = TENSORRT.load().__version__
    except MissingExtraError:
        return Finding(subject, "note", "not installed", without)
    except EnvironmentLacksError as error:
        return Finding(subject, "missing", error.given, error.fix)
    try:
        open_device()
    except EnvironmentLacksError as error:
        return Finding(subject, "note", f"{version_here}, but {error.given}", without)
    return Finding(subject, "ok", f"{version_here}; builds for the GPU here")


def _plugin_compiler() -> Finding:
    """What `finalize` compiles the plugin library with; only boards with standard TensorRT use it."""
    missing = what_is_missing()
    if missing:
        found = f"lacks {'; '.join(missing)}"
        return Finding("compiling plugins", "note", found, "only needed on a board, by finalize")
    return Finding("compiling plugins", "ok", "CMake, nvcc and TensorRT's headers")


def _nvrtc() -> Finding:
    versions = [".".join(map(str, nvrtc.version)) for nvrtc in nvrtc_versions()]
    if not versions:
        return Finding("compiling kernels to PTX", "note", "no NVRTC with headers", INSTALL)
    return Finding("compiling kernels to PTX", "ok", f"NVRTC {', '.join(versions)}")


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
