"""What a figure was measured on."""

from __future__ import annotations

import datetime
import platform
from importlib.metadata import version
from pathlib import Path

from ztdeploy.core.kernel_files import usable_threads


def describe_machine() -> str:
    """One line: date, processor, threads, versions."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    today = datetime.datetime.now(tz=datetime.timezone.utc).date()
    runtime, python = version("onnxruntime"), platform.python_version()
    return f"{today}, {model}, {usable_threads()} threads, onnxruntime {runtime}, Python {python}"
