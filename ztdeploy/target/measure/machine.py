"""On what a figure was measured: what the machine is, and how it was at one moment.

The facts come from `/proc`, `/sys`, `/etc` and the driver of the GPU. Nothing is changed and nothing needs root rights.
What cannot be read is None or empty, never a guess.
"""

from __future__ import annotations

import csv
import datetime
import os
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from ztdeploy.core.cache import installed_versions
from ztdeploy.core.kernel_files import (
    at,
    control_groups,
    cpu_quota_cores,
    folders,
    kibibytes,
    number,
    scaled,
    table,
    text,
)
from ztdeploy.core.records import Record
from ztdeploy.target.backends import runtime_versions
from ztdeploy.target.machine_profile import board_name
from ztdeploy.version import __version__

_CPU = "sys/devices/system/cpu"
#: Arm's own cores have numbers in /proc/cpuinfo and names in manuals.
_ARM_CORES = {
    **{"0xd03": "Cortex-A53", "0xd04": "Cortex-A35", "0xd05": "Cortex-A55", "0xd07": "Cortex-A57"},
    **{"0xd08": "Cortex-A72", "0xd0b": "Cortex-A76", "0xd41": "Cortex-A78", "0xd42": "Cortex-A78AE"},
    **{"0xd0c": "Neoverse-N1", "0xd40": "Neoverse-V1", "0xd49": "Neoverse-N2", "0xd4f": "Neoverse-V2"},
    "0xd83": "Neoverse-V3AE",
}
#: How the integrated GPU of a Jetson is named where its clock is, from JetPack 4 to 7.
_JETSON_GPU = re.compile(r"\.(gpu|gp10b|gv11b|ga10b|gb10b)$")
#: The bits of a Raspberry Pi's firmware that speak of now, rather than of any time since it started.
_PI_NOW = {0: "under-voltage", 1: "clock capped", 2: "throttled", 3: "temperature limit"}
_GPU_FIELDS = ("name", "driver_version", "clocks.sm", "clocks.max.sm", "temperature.gpu", "power.draw")
#: Version 1 of control groups says about 2^63 for "no limit".
_NO_LIMIT = 2**60


class Jetson(Record):
    """How a Jetson is set up."""

    release: str | None  #: of L4T, such as "R36 (release), REVISION: 4.3"
    power_mode: str | None  #: of nvpmodel, such as "2 (MAXN_SUPER)"


class Gpu(Record):
    """One GPU at one moment."""

    name: str
    driver: str | None = None
    clock_mhz: float | None = None
    max_clock_mhz: float | None = None
    temperature_c: float | None = None
    power_w: float | None = None


class Machine(Record):
    """What does not change while something is measured. Clocks in MHz, memory in MB of 10^6 bytes."""

    processor: str
    architecture: str
    board: str | None  #: from the device tree: a Jetson, a Raspberry Pi
    cores_online: int | None
    usable_cores: tuple[int, ...]  #: the scheduler's affinity set
    quota_cores: float | None  #: how many cores' time the container may use; None without a quota
    governors: tuple[str, ...]  #: those of the usable cores
    clock_driver: str | None
    lowest_clock_mhz: float | None
    highest_clock_mhz: float | None  #: what the processor can do
    allowed_clock_mhz: float | None  #: what the processor is allowed to do
    boost: bool | None
    memory_mb: float | None
    memory_limit_mb: float | None  #: of the container; None without a limit
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
    quota_stops: int | None  #: how often the container's quota has stopped the process so far
    throttle_events: int | None  #: how often the processor has throttled itself so far; None: it does not count that
    throttled_by: tuple[str, ...]  #: what holds the clocks down right now
    rails_mw: dict[str, float]  #: power rails of a Jetson
    gpus: tuple[Gpu, ...]


def usable_cores() -> tuple[int, ...]:
    """The cores that this process may run on."""
    return tuple(sorted(os.sched_getaffinity(0)))


def read_machine() -> Machine:
    """This machine, as far as this process may use it."""
    cores = usable_cores()
    clocks = [at(_CPU) / f"cpu{core}/cpufreq" for core in cores]

    def megahertz(name: str) -> list[float]:
        return [value for folder in clocks if (value := scaled(folder / name, 1e-3)) is not None]

    limits = [limit for one in control_groups("memory") if (limit := _memory_limit(one)) is not None]
    return Machine(
        processor=processor_name(),
        architecture=platform.machine(),
        board=board_name(),
        cores_online=os.cpu_count(),
        usable_cores=cores,
        quota_cores=cpu_quota_cores(),
        governors=tuple(sorted({name for folder in clocks if (name := text(folder / "scaling_governor"))})),
        clock_driver=next((name for folder in clocks if (name := text(folder / "scaling_driver"))), None),
        lowest_clock_mhz=min(megahertz("cpuinfo_min_freq"), default=None),
        highest_clock_mhz=max(megahertz("cpuinfo_max_freq"), default=None),
        allowed_clock_mhz=max(megahertz("scaling_max_freq"), default=None),
        boost=_boost(),
        memory_mb=_memory_mb("MemTotal"),
        memory_limit_mb=round(min(limits) / 1e6, 1) if limits else None,
        system=table(at("etc/os-release"), "=").get("PRETTY_NAME") or platform.system(),
        kernel=platform.release(),
        python=platform.python_version(),
        versions={"ztdeploy": __version__, **installed_versions("numpy"), **runtime_versions()},
        jetson=_jetson(),
        gpus=read_gpus(),
    )


def read_state() -> State:
    """The machine right now."""
    cores = usable_cores()
    stops = [table(one / "cpu.stat", " ").get("nr_throttled", "") for one in control_groups("cpu")]
    loads = [float(load) for load in (text(at("proc/loadavg")) or "").split()[:3]]
    throttles = [number(at(_CPU) / f"cpu{core}/thermal_throttle/core_throttle_count") for core in cores]
    return State(
        at=datetime.datetime.now(tz=datetime.timezone.utc).isoformat(timespec="seconds"),
        load_average=(loads[0], loads[1], loads[2]) if len(loads) == 3 else None,
        clocks_mhz=read_clocks(cores),
        temperatures_c=_temperatures(),
        memory_available_mb=_memory_mb("MemAvailable"),
        on_battery=on_battery(),
        quota_stops=_sum_of_known([int(count) if count.isdigit() else None for count in stops]),
        throttle_events=_sum_of_known(throttles),
        throttled_by=throttled_by(),
        rails_mw=_power_rails_mw(),
        gpus=read_gpus(),
    )


def _memory_mb(line: str) -> float | None:
    """What a line of /proc/meminfo says."""
    amount = kibibytes(table(at("proc/meminfo")).get(line))
    return None if amount is None else round(amount * 1024 / 1e6, 1)


def _sum_of_known(counts: Collection[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


# The processor.


def processor_name() -> str:
    """As /proc/cpuinfo names it; Arm's cores by their part number; else the architecture."""
    lines = table(at("proc/cpuinfo"))
    name = lines.get("model name") or lines.get("Hardware") or lines.get("cpu model")
    part = lines.get("CPU part")
    if not name and part:
        name = _ARM_CORES.get(part, f"ARM part {part}") if lines.get("CPU implementer") == "0x41" else f"part {part}"
    return name or platform.machine()


def read_clocks(cores: Collection[int]) -> dict[int, float]:
    """Current clock of each core in MHz; empty where neither cpufreq nor /proc/cpuinfo tells."""
    paths = {core: at(_CPU) / f"cpu{core}/cpufreq/scaling_cur_freq" for core in sorted(cores)}
    clocks = {core: clock for core, path in paths.items() if (clock := scaled(path, 1e-3)) is not None}
    if clocks:
        return clocks
    found = re.findall(r"^processor\s*: (\d+)$|^cpu MHz\s*: ([\d.]+)$", text(at("proc/cpuinfo")) or "", re.MULTILINE)
    pairs = zip((core for core, _ in found if core), (clock for _, clock in found if clock), strict=False)
    return {int(core): float(clock) for core, clock in pairs if int(core) in cores}


def _boost() -> bool | None:
    no_turbo = number(at(_CPU) / "intel_pstate/no_turbo")
    boost = number(at(_CPU) / "cpufreq/boost") if no_turbo is None else 1 - no_turbo
    return None if boost is None else bool(boost)


class CpuUse(NamedTuple):
    """Seconds: that passed, and that processors worked meanwhile, added up over the usable cores."""

    wall_s: float
    own_s: float  #: by our own processes
    busy_s: float | None  #: by all processes; None where the kernel does not say, as in some containers
    stolen_s: float | None  #: that a hypervisor gave to other machines

    @property
    def others_cores(self) -> float | None:
        """How many cores other processes kept busy."""
        return None if self.busy_s is None else round(max(0.0, self.busy_s - self.own_s) / self.wall_s, 3)


class CpuMeter:
    """Reads what processors have done since it was made, from the kernel's accounts; these count in 1/100 s."""

    def __init__(self, pids: Collection[int] = ()) -> None:
        """
        Args:
            pids: our own processes beside this one.
        """
        self._pids, self._cores = (os.getpid(), *pids), usable_cores()
        self._begun = self._now()

    def so_far(self) -> CpuUse:
        (wall, own, busy, stolen), now = self._begun, self._now()
        if busy is None or stolen is None or now.busy_s is None or now.stolen_s is None:
            return CpuUse(now.wall_s - wall, now.own_s - own, None, None)
        return CpuUse(now.wall_s - wall, now.own_s - own, now.busy_s - busy, now.stolen_s - stolen)

    def _now(self) -> CpuUse:
        own_s = sum(map(_seconds_of_process, self._pids))
        return CpuUse(time.monotonic(), own_s, *cpu_seconds(self._cores))


def cpu_seconds(cores: Collection[int]) -> tuple[float, float] | tuple[None, None]:
    """Seconds that these cores have been busy, and that a hypervisor took from them, since the machine started."""
    wanted, ticks = {f"cpu{core}" for core in cores}, os.sysconf("SC_CLK_TCK")
    lines = [line.split() for line in (text(at("proc/stat")) or "").splitlines()]
    # user, nice, system, idle, iowait, irq, softirq, steal; guests' time is in user and nice already
    found = [
        ([*map(int, fields), 0, 0, 0, 0][:8])
        for name, *fields in lines
        if name in wanted and len(fields) > 3 and all(field.isdigit() for field in fields)
    ]
    if not found:
        return None, None
    return sum(sum(own[:3]) + sum(own[5:7]) for own in found) / ticks, sum(own[7] for own in found) / ticks


def _seconds_of_process(pid: int) -> float:
    """What all threads of one process have used so far; 0 once it is gone."""
    fields = (text(at(f"proc/{pid}/stat")) or "").rpartition(")")[2].split()  # its name may hold spaces
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") if len(fields) > 12 else 0.0


# What holds it back: heat, power, and a container's limits.


def _temperatures() -> dict[str, float]:
    """Thermal zones and processor sensors in degrees Celsius; sensors of one name are told apart by a number."""
    zones = [(text(zone / "type"), zone / "temp") for zone in folders(at("sys/class/thermal"), "thermal_zone*")]
    for monitor in folders(at("sys/class/hwmon"), "hwmon*"):
        if (name := text(monitor / "name")) in ("coretemp", "k10temp", "zenpower"):
            zones.append((name, monitor / "temp1_input"))
    found: dict[str, float] = {}
    for kind, path in zones:
        celsius = scaled(path, 1e-3)
        if kind and celsius is not None and -50 < celsius < 200:  # a sensor that is off says anything
            names = (kind, *(f"{kind} {count}" for count in range(2, len(zones) + 1)))
            found[next(name for name in names if name not in found)] = celsius
    return found


class TripPoint(NamedTuple):
    """A temperature from which on a thermal zone slows the machine down, or switches it off."""

    zone: str  #: the sensor's own name
    sensor: Path
    celsius: float

    @property
    def now_c(self) -> float | None:
        return scaled(self.sensor, 1e-3)


def trip_points() -> tuple[TripPoint, ...]:
    """The lowest such temperature of every thermal zone; one at which only a fan starts ("active") is none."""
    found = []
    for zone in folders(at("sys/class/thermal"), "thermal_zone*"):
        trips = [
            celsius
            for kind in folders(zone, "trip_point_*_type")
            if text(kind) in ("passive", "hot", "critical")
            and (celsius := scaled(kind.with_name(kind.name.replace("_type", "_temp")), 1e-3)) is not None
            and 0 < celsius < 200
        ]
        if trips and scaled(zone / "temp", 1e-3) is not None:
            found.append(TripPoint(text(zone / "type") or zone.name, zone / "temp", min(trips)))
    return tuple(found)


def _supplies() -> tuple[list[Path], list[Path]]:
    """The power supplies of the machine itself (not of its mouse), and those of them that are batteries."""
    supplies = [one for one in folders(at("sys/class/power_supply"), "*") if text(one / "scope") != "Device"]
    return supplies, [one for one in supplies if text(one / "type") == "Battery"]


def battery_charge() -> float | None:
    """From 0 to 1, of all batteries; None where there are none, or they do not say."""
    charges = [charge for one in _supplies()[1] if (charge := scaled(one / "capacity", 0.01)) is not None]
    return sum(charges) / len(charges) if charges else None


def power_mode() -> str | None:
    """The power mode of a Jetson (nvpmodel), such as "2 (MAXN_SUPER)", or of a PC's firmware, such as "low-power"."""
    jetson = _jetson()
    return text(at("sys/firmware/acpi/platform_profile")) if jetson is None else jetson.power_mode


def on_battery() -> bool | None:
    """Whether the machine runs from a battery; None where it has none."""
    supplies, batteries = _supplies()
    if not batteries:
        return None
    if any(number(one / "online") == 1 for one in supplies if text(one / "type") in ("Mains", "USB")):
        return False
    return any(text(one / "status") == "Discharging" for one in batteries)


def throttled_by() -> tuple[str, ...]:
    """What holds the processor's clocks down at this moment: a board's firmware, or the kernel's thermal control."""
    found: list[str] = []
    for path in folders(at("sys/devices/platform"), "soc*/soc*firmware/get_throttled"):  # a Raspberry Pi
        bits = text(path) or ""
        if re.fullmatch("(0x)?[0-9a-fA-F]+", bits):
            found += [name for bit, name in _PI_NOW.items() if int(bits, 16) >> bit & 1]
    for monitor in folders(at("sys/class/hwmon"), "hwmon*"):  # a Raspberry Pi 5
        if text(monitor / "name") == "rpi_volt" and number(monitor / "in0_lcrit_alarm"):
            found.append("under-voltage")
    for device in folders(at("sys/class/thermal"), "cooling_device*"):
        kind = text(device / "type") or ""
        if (kind == "Processor" or "cpufreq" in kind or "devfreq" in kind) and number(device / "cur_state"):
            found.append(kind)  # a fan slows nothing down
    return tuple(dict.fromkeys(found))


def _memory_limit(group: Path) -> int | None:
    """In bytes."""
    limit = number(group / "memory.max")
    limit = number(group / "memory.limit_in_bytes") if limit is None else limit
    return None if limit is None or limit >= _NO_LIMIT else limit


# Boards and GPUs.


def _jetson() -> Jetson | None:
    """None on any other machine."""
    release = text(at("etc/nv_tegra_release"))
    status = re.search(r"pmode:(\d+)", text(at("var/lib/nvpmodel/status")) or "")
    if release is None and status is None:
        return None
    mode = str(int(status[1])) if status else None
    names = dict(re.findall(r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)", text(at("etc/nvpmodel.conf")) or ""))
    return Jetson(
        release=", ".join(release.lstrip("# ").split(", ")[:2]) if release else None,
        power_mode=f"{mode} ({names[mode]})" if mode in names else mode,
    )


def jetson_gpu_clock() -> tuple[float, float] | None:
    """Current and highest clock of a Jetson's GPU in MHz; None on any other machine."""
    for folder in folders(at("sys/class/devfreq"), "*"):
        current, highest = number(folder / "cur_freq"), number(folder / "max_freq")
        if _JETSON_GPU.search(folder.name) and current is not None and highest is not None:
            return current / 1e6, highest / 1e6
    return None


def _power_rails_mw() -> dict[str, float]:
    """What flows through each rail right now, in milliwatts, by the board's own names; the board idles in it, too."""
    rails: dict[str, float] = {}
    for monitor in folders(at("sys/class/hwmon"), "hwmon*"):
        if not (text(monitor / "name") or "").startswith("ina3221"):
            continue
        for channel in range(1, 8):
            label = text(monitor / f"in{channel}_label")
            millivolts, milliamperes = number(monitor / f"in{channel}_input"), number(monitor / f"curr{channel}_input")
            if label and millivolts is not None and milliamperes is not None:
                rails[label] = round(millivolts * milliamperes / 1000, 1)
    return rails


def nvidia_smi() -> str | None:
    """What the driver's own tool answers about every GPU; None where there is no such tool, or it fails."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    command = [tool, f"--query-gpu={','.join(_GPU_FIELDS)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def read_gpus() -> tuple[Gpu, ...]:
    """The GPUs, with their clocks where these can be read without CUDA."""
    if clock := jetson_gpu_clock():
        return (Gpu(name=board_name() or "Jetson", clock_mhz=clock[0], max_clock_mhz=clock[1]),)
    rows = [[cell.strip() for cell in row] for row in csv.reader((nvidia_smi() or "").splitlines())]
    if found := tuple(_gpu(row) for row in rows if len(row) == len(_GPU_FIELDS)):
        return found
    information = (table(path / "information") for path in folders(at("proc/driver/nvidia/gpus"), "*"))
    return tuple(Gpu(name=lines["Model"]) for lines in information if lines.get("Model"))


def _gpu(row: list[str]) -> Gpu:
    # What the GPU does not know is "[N/A]".
    clock, highest, celsius, watts = (float(cell) if re.fullmatch(r"-?[\d.]+", cell) else None for cell in row[2:])
    return Gpu(name=row[0], driver=row[1], clock_mhz=clock, max_clock_mhz=highest, temperature_c=celsius, power_w=watts)
