"""What single-board computers say about their power and clocks: Jetson and Raspberry Pi. Everything is only read."""

from __future__ import annotations

import re
from pathlib import Path

from ztdeploy.core.kernel_files import folders, number, text
from ztdeploy.core.records import Record

#: How a Jetson's integrated GPU is named where its clock is, from JetPack 4 to 7.
_JETSON_GPU = re.compile(r"\.(gpu|gp10b|gv11b|ga10b|gb10b)$")
#: The bits of a Raspberry Pi's firmware that speak of now, rather than of any time since it started.
_PI_NOW = {0: "under-voltage", 1: "clock capped", 2: "throttled", 3: "temperature limit"}


class Jetson(Record):
    """What a Jetson was told to be."""

    release: str | None  #: of L4T, such as "R36 (release), REVISION: 4.3"
    power_mode: str | None  #: of nvpmodel, such as "2 (MAXN_SUPER)"


def board_name(root: Path = Path("/")) -> str | None:
    """Such as "Raspberry Pi 5 Model B Rev 1.0"; None where there is no device tree, as on a PC."""
    return text(root / "proc/device-tree/model")


def read_jetson(root: Path = Path("/")) -> Jetson | None:
    """None on any other machine."""
    release = text(root / "etc/nv_tegra_release")
    mode = _power_mode(root)
    if release is None and mode is None:
        return None
    return Jetson(release=", ".join(release.lstrip("# ").split(", ")[:2]) if release else None, power_mode=mode)


def _power_mode(root: Path) -> str | None:
    """The number that nvpmodel keeps, with the name that its configuration gives it."""
    names = dict(re.findall(r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)", text(root / "etc/nvpmodel.conf") or ""))
    current = re.search(r"pmode:(\d+)", text(root / "var/lib/nvpmodel/status") or "")
    if current is None:
        return None
    mode = str(int(current[1]))
    return f"{mode} ({names[mode]})" if mode in names else mode


def jetson_gpu_clock(root: Path = Path("/")) -> tuple[float, float] | None:
    """Current and highest clock of a Jetson's GPU in MHz; None on any other machine."""
    for folder in folders(root / "sys/class/devfreq", "*"):
        current, highest = number(folder / "cur_freq"), number(folder / "max_freq")
        if _JETSON_GPU.search(folder.name) and current is not None and highest is not None:
            return current / 1e6, highest / 1e6
    return None


def power_rails_mw(root: Path = Path("/")) -> dict[str, float]:
    """What flows through each rail right now, in milliwatts, by the board's own names; the board idles in it, too."""
    rails: dict[str, float] = {}
    for monitor in folders(root / "sys/class/hwmon", "hwmon*"):
        if not (text(monitor / "name") or "").startswith("ina3221"):
            continue
        for channel in range(1, 8):
            label = text(monitor / f"in{channel}_label")
            millivolts, milliamperes = number(monitor / f"in{channel}_input"), number(monitor / f"curr{channel}_input")
            if label and millivolts is not None and milliamperes is not None:
                rails[label] = round(millivolts * milliamperes / 1000, 1)
    return rails


def pi_complaints(root: Path = Path("/")) -> list[str]:
    """What a Raspberry Pi's firmware does to its clocks at this moment, and why."""
    found: list[str] = []
    for path in folders(root / "sys/devices/platform", "soc*/soc*firmware/get_throttled"):
        try:
            bits = int(text(path) or "0", 16)
        except ValueError:
            continue
        found += [name for bit, name in _PI_NOW.items() if bits >> bit & 1]
    for monitor in folders(root / "sys/class/hwmon", "hwmon*"):
        if text(monitor / "name") == "rpi_volt" and number(monitor / "in0_lcrit_alarm"):
            found.append("under-voltage")
    return list(dict.fromkeys(found))
