"""On what a figure was measured: what the machine is, and how it was at one moment.

Pure readers of `/proc`, `/sys` and `/etc`; each takes the root folder that these lie in, so that tests can fake a
machine. What cannot be read is None or empty, never a guess. Nothing is changed and nothing needs root.
"""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Callable, Collection
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ztdeploy.core.kernel_files import folders, kibibytes, number, scaled, table, text
from ztdeploy.core.records import Record
from ztdeploy.target.measure.board import Jetson, board_name, pi_complaints, power_rails_mw, read_jetson
from ztdeploy.target.measure.cgroup import cpu_quota_cores, memory_limit_bytes, times_stopped
from ztdeploy.target.measure.gpu import Gpu, nvidia_smi, read_gpus
from ztdeploy.version import __version__

_ROOT = Path("/")
_CPU = "sys/devices/system/cpu"
#: ARM's own cores have numbers in /proc/cpuinfo and names in manuals.
_ARM_CORES = {
    "0xd03": "Cortex-A53",
    "0xd04": "Cortex-A35",
    "0xd05": "Cortex-A55",
    "0xd07": "Cortex-A57",
    "0xd08": "Cortex-A72",
    "0xd0b": "Cortex-A76",
    "0xd0c": "Neoverse-N1",
    "0xd40": "Neoverse-V1",
    "0xd41": "Cortex-A78",
    "0xd42": "Cortex-A78AE",
    "0xd49": "Neoverse-N2",
    "0xd4f": "Neoverse-V2",
    "0xd83": "Neoverse-V3AE",
}


class Machine(Record):
    """What does not change while something is measured. Clocks in MHz, memory in MB of 10^6 bytes."""

    processor: str
    architecture: str
    board: str | None  #: from the device tree: a Jetson, a Raspberry Pi
    cores_online: int | None
    usable_cores: tuple[int, ...]  #: the scheduler's affinity set
    quota_cores: float | None  #: of the container
    governors: tuple[str, ...]  #: those of the usable cores
    clock_driver: str | None
    lowest_clock_mhz: float | None
    highest_clock_mhz: float | None  #: what the processor can do
    allowed_clock_mhz: float | None  #: what it is allowed to do
    boost: bool | None
    memory_mb: float | None
    memory_limit_mb: float | None  #: of the container
    system: str
    kernel: str
    python: str
    versions: dict[str, str]
    jetson: Jetson | None
    gpus: tuple[Gpu, ...]


class State(Record):
    """What changes: the machine at one moment."""

    at: str  #: UTC, ISO 8601
    load_average: tuple[float, float, float] | None  #: over 1, 5 and 15 minutes
    clocks_mhz: dict[int, float]  #: by usable core
    temperatures_c: dict[str, float]  #: by the sensor's own name
    memory_available_mb: float | None
    on_battery: bool | None  #: None: no battery, or none that can be read
    quota_stops: int | None  #: how often the container's quota has stopped it so far
    throttle_events: int | None  #: how often the processor has throttled itself so far, where it counts that
    throttled_by: tuple[str, ...]  #: what holds the clocks down right now
    rails_mw: dict[str, float]  #: power rails of a Jetson
    gpus: tuple[Gpu, ...]


def usable_cores() -> tuple[int, ...]:
    """The cores that this process may run on."""
    return tuple(sorted(os.sched_getaffinity(0)))


def read_machine(
    cores: Collection[int], root: Path = _ROOT, *, ask_gpu: Callable[[], str | None] = nvidia_smi
) -> Machine:
    """
    Args:
        cores: those that the process may use.
    """
    memory, limit = table(root / "proc/meminfo"), memory_limit_bytes(root)
    clocks = [root / _CPU / f"cpu{core}/cpufreq" for core in sorted(cores)]
    governors = (text(folder / "scaling_governor") for folder in clocks)
    return Machine(
        processor=processor_name(root),
        architecture=platform.machine(),
        board=board_name(root),
        cores_online=_count_list(text(root / _CPU / "online")),
        usable_cores=tuple(sorted(cores)),
        quota_cores=cpu_quota_cores(root),
        governors=tuple(sorted({name for name in governors if name})),
        clock_driver=next((name for folder in clocks if (name := text(folder / "scaling_driver"))), None),
        lowest_clock_mhz=min(_megahertz(clocks, "cpuinfo_min_freq"), default=None),
        highest_clock_mhz=max(_megahertz(clocks, "cpuinfo_max_freq"), default=None),
        allowed_clock_mhz=max(_megahertz(clocks, "scaling_max_freq"), default=None),
        boost=_boost(root),
        memory_mb=_megabytes(memory.get("MemTotal")),
        memory_limit_mb=None if limit is None else round(limit / 1e6, 1),
        system=table(root / "etc/os-release", "=").get("PRETTY_NAME") or platform.system(),
        kernel=text(root / "proc/sys/kernel/osrelease") or platform.release(),
        python=platform.python_version(),
        versions={"ztdeploy": __version__, **installed_versions("numpy", "onnxruntime", "openvino", "tensorrt")},
        jetson=read_jetson(root),
        gpus=read_gpus(root, ask_gpu),
    )


def read_state(cores: Collection[int], root: Path = _ROOT, *, ask_gpu: Callable[[], str | None] = nvidia_smi) -> State:
    """The machine right now."""
    averages = (text(root / "proc/loadavg") or "").split()[:3]
    return State(
        at=datetime.datetime.now(tz=datetime.timezone.utc).isoformat(timespec="seconds"),
        load_average=(float(averages[0]), float(averages[1]), float(averages[2])) if len(averages) == 3 else None,
        clocks_mhz=read_clocks(cores, root),
        temperatures_c=read_temperatures(root),
        memory_available_mb=_megabytes(table(root / "proc/meminfo").get("MemAvailable")),
        on_battery=on_battery(root),
        quota_stops=times_stopped(root),
        throttle_events=_throttle_events(cores, root),
        throttled_by=throttled_by(root),
        rails_mw=power_rails_mw(root),
        gpus=read_gpus(root, ask_gpu),
    )


def processor_name(root: Path = _ROOT) -> str:
    """As /proc/cpuinfo names it; ARM's cores by their part number; else the architecture."""
    lines = table(root / "proc/cpuinfo")
    name = lines.get("model name") or lines.get("Hardware") or lines.get("cpu model")
    part = lines.get("CPU part")
    if not name and part:
        name = _ARM_CORES.get(part, f"ARM part {part}") if lines.get("CPU implementer") == "0x41" else f"part {part}"
    return name or platform.machine()


def read_clocks(cores: Collection[int], root: Path = _ROOT) -> dict[int, float]:
    """Current clock of each core in MHz; empty where neither cpufreq nor /proc/cpuinfo tells."""
    paths = {core: root / _CPU / f"cpu{core}/cpufreq/scaling_cur_freq" for core in sorted(cores)}
    clocks = {core: clock for core, path in paths.items() if (clock := scaled(path, 1e-3)) is not None}
    return clocks or _clocks_of_cpuinfo(cores, root)


def _clocks_of_cpuinfo(cores: Collection[int], root: Path) -> dict[int, float]:
    clocks, core = {}, -1
    for line in (text(root / "proc/cpuinfo") or "").splitlines():
        key, _, value = (part.strip() for part in line.partition(":"))
        if key == "processor" and value.isdigit():
            core = int(value)
        elif key == "cpu MHz" and core in cores:
            clocks[core] = float(value)
    return clocks


def read_temperatures(root: Path = _ROOT) -> dict[str, float]:
    """Thermal zones and processor sensors in degrees Celsius; sensors of one name are told apart by a number."""
    zones = [(text(zone / "type"), zone / "temp") for zone in folders(root / "sys/class/thermal", "thermal_zone*")]
    for monitor in folders(root / "sys/class/hwmon", "hwmon*"):
        if (name := text(monitor / "name")) in ("coretemp", "k10temp", "zenpower"):
            zones.append((name, monitor / "temp1_input"))
    found: dict[str, float] = {}
    for kind, path in zones:
        celsius = scaled(path, 1e-3)
        if kind and celsius is not None and -50 < celsius < 200:  # a sensor that is off says anything
            found[_unused(kind, found)] = celsius
    return found


def _unused(name: str, taken: Collection[str]) -> str:
    names = (name if count == 1 else f"{name} {count}" for count in range(1, len(taken) + 2))
    return next(candidate for candidate in names if candidate not in taken)


def on_battery(root: Path = _ROOT) -> bool | None:
    """Whether the machine itself (not its mouse) runs from a battery; None where it has none."""
    supplies = [s for s in folders(root / "sys/class/power_supply", "*") if text(s / "scope") != "Device"]
    batteries = [s for s in supplies if text(s / "type") == "Battery"]
    if not batteries:
        return None
    if any(number(s / "online") == 1 for s in supplies if text(s / "type") in ("Mains", "USB")):
        return False
    return any(text(s / "status") == "Discharging" for s in batteries)


def throttled_by(root: Path = _ROOT) -> tuple[str, ...]:
    """What holds the processor's clocks down at this moment: a board's firmware, or the kernel's thermal control."""
    return (*pi_complaints(root), *_active_cooling(root))


def installed_versions(*names: str) -> dict[str, str]:
    """Versions of those distributions that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _throttle_events(cores: Collection[int], root: Path) -> int | None:
    folder = root / _CPU
    counts = [number(folder / f"cpu{core}/thermal_throttle/core_throttle_count") for core in cores]
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def _active_cooling(root: Path) -> list[str]:
    """Cooling devices that slow the processor down at this moment; fans do not."""
    active = []
    for device in folders(root / "sys/class/thermal", "cooling_device*"):
        kind = text(device / "type") or ""
        if (kind == "Processor" or "cpufreq" in kind or "devfreq" in kind) and number(device / "cur_state"):
            active.append(kind)
    return list(dict.fromkeys(active))


def _boost(root: Path) -> bool | None:
    no_turbo = number(root / _CPU / "intel_pstate/no_turbo")
    boost = number(root / _CPU / "cpufreq/boost") if no_turbo is None else 1 - no_turbo
    return None if boost is None else bool(boost)


def _megahertz(clocks: list[Path], name: str) -> list[float]:
    return [value for folder in clocks if (value := scaled(folder / name, 1e-3)) is not None]


def _megabytes(listed: str | None) -> float | None:
    """Such as "24684132 kB", which means KiB, in units of 10^6 bytes."""
    amount = kibibytes(listed)
    return None if amount is None else round(amount * 1024 / 1e6, 1)


def _count_list(listed: str | None) -> int | None:
    """How many numbers "0-3,8" stands for."""
    if not listed:
        return None
    ends = [part.split("-") for part in listed.split(",")]
    return sum(int(end[-1]) - int(end[0]) + 1 for end in ends)
