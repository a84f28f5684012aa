"""What a figure was measured on."""

from __future__ import annotations

import argparse
import datetime
import platform
from importlib.metadata import version
from pathlib import Path

from ztdeploy.core.kernel_files import usable_threads


def asked_model(description: str | None) -> str:
    """The model that the command line asks for; prints what its figures will be measured on."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="deit_s")
    model: str = parser.parse_args().model
    print(describe_machine())
    return model


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
