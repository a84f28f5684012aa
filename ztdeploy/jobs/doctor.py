"""What this machine can do for ztdeploy, and what to install for the rest."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from ztdeploy.core.cache import installed_versions
from ztdeploy.core.errors import EnvironmentLacksError
from ztdeploy.core.kernel_files import usable_threads
from ztdeploy.core.processor import BF16_PRODUCTS, DOT_PRODUCTS, processor
from ztdeploy.core.records import Record
from ztdeploy.target.backends import backend_table, get_backend
from ztdeploy.target.backends.base import Finding
from ztdeploy.target.backends.int8 import what_int8_lacks
from ztdeploy.target.measure.machine import processor_name

#: What the host half needs; a module is called as its distribution is, but for hyphens.
HOST_HALF = ("torch", "torchvision", "timm", "onnx", "onnx-ir", "onnxscript", "onnx-graphsurgeon", "safetensors")


class Findings(Record):
    findings: tuple[Finding, ...]


def examine() -> Findings:
    """Look at the machine; imports nothing heavier than its runtimes. A probe that fails is a finding, too."""
    probes = {
        "python": _python,
        "processor": _processor,
        "int8 engines": _int8,
        "memory": _memory,
        "disk": _disk,
        "building bundles": _host_half,
    }
    for name in backend_table():
        probes |= _probes_of(name)
    return Findings(findings=tuple(_safely(subject, probe) for subject, probe in probes.items()))


def _probes_of(backend: str) -> dict[str, Callable[[], Finding]]:
    try:
        return get_backend(backend).probes()
    except EnvironmentLacksError as error:
        broken = Finding(f"backend {backend}", "missing", error.given, error.fix)
        return {broken.subject: lambda: broken}


def _safely(subject: str, probe: Callable[[], Finding]) -> Finding:
    """Machines are odd in more ways than probes foresee, and this report is read where something is odd."""
    try:
        return probe()
    except Exception as error:
        what = f"cannot be examined: {type(error).__name__}: {str(error)[:200]}"
        return Finding(subject, "missing", what, "reinstall it, or report this")


def _python() -> Finding:
    return Finding("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}")


def _processor() -> Finding:
    features = processor().features
    known = [name for name in ("avx2", "avx512f", "asimd", *BF16_PRODUCTS, *DOT_PRODUCTS) if name in features]
    flags = " ".join(known) or "no SIMD flags read"
    return Finding("processor", "ok", f"{processor_name()}, {usable_threads()} usable threads, {flags}")


def _int8() -> Finding:
    here = processor()
    lacking = what_int8_lacks(here)
    if lacking is not None:
        bits = "; weights take 7 bits here, of which no sum is lost" if here.loses_sums else ""
        return Finding(
            "int8 engines", "note", lacking + bits, "measure both cpu and cpu-int8; see docs/explanation/precision.md"
        )
    found = " ".join(here.dot_products)
    return Finding("int8 engines", "ok" if found else "note", found or "no SIMD flags read")


def _memory() -> Finding:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (ValueError, OSError):
        return Finding("memory", "note", "unknown")
    return _enough("memory", total >= 3, f"{total:.1f} GiB", "building DeiT-S takes about 2 GB")


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    return _enough("disk", free > 1, f"{free:.1f} GB free here", "a DeiT-B bundle takes 0.4 GB")


def _enough(subject: str, enough: bool, found: str, remedy: str) -> Finding:
    return Finding(subject, "ok", found) if enough else Finding(subject, "note", found, remedy)


def _host_half() -> Finding:
    missing = [name for name in HOST_HALF if find_spec(name.replace("-", "_")) is None]
    if missing:
        return Finding("building bundles", "missing", f"lacks {', '.join(missing)}", "pip install 'ztdeploy[build]'")
    versions = installed_versions(*HOST_HALF)
    found = (f"{name} {versions.get(name, '')}".rstrip() for name in HOST_HALF)
    return Finding("building bundles", "ok", ", ".join(found))
