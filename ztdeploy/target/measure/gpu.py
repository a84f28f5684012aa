"""The GPUs of this machine, as far as they can be asked without CUDA."""

from __future__ import annotations

import csv
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from ztdeploy.core.kernel_files import folders, table
from ztdeploy.core.records import Record
from ztdeploy.target.measure.board import board_name, jetson_gpu_clock

_FIELDS = ("name", "driver_version", "clocks.sm", "clocks.max.sm", "temperature.gpu", "power.draw")


class Gpu(Record):
    """One GPU at one moment."""

    name: str
    driver: str | None = None
    clock_mhz: float | None = None
    max_clock_mhz: float | None = None
    temperature_c: float | None = None
    power_w: float | None = None


def nvidia_smi() -> str | None:
    """What the driver's own tool answers; None where there is no such tool, or it fails."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    command = [tool, f"--query-gpu={','.join(_FIELDS)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def read_gpus(root: Path = Path("/"), ask: Callable[[], str | None] = nvidia_smi) -> tuple[Gpu, ...]:
    """The GPUs, with their clocks where these can be read."""
    if clock := jetson_gpu_clock(root):
        return (Gpu(name=board_name(root) or "Jetson", clock_mhz=clock[0], max_clock_mhz=clock[1]),)
    rows = [[cell.strip() for cell in row] for row in csv.reader((ask() or "").splitlines())]
    if found := tuple(_gpu(row) for row in rows if len(row) == len(_FIELDS)):
        return found
    information = (table(path / "information") for path in folders(root / "proc/driver/nvidia/gpus", "*"))
    return tuple(Gpu(name=lines["Model"]) for lines in information if lines.get("Model"))


def _gpu(row: list[str]) -> Gpu:
    clock, highest, temperature, power = map(_float, row[2:])
    return Gpu(
        name=row[0], driver=row[1], clock_mhz=clock, max_clock_mhz=highest, temperature_c=temperature, power_w=power
    )


def _float(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:  # "[N/A]"
        return None
