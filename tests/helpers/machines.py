"""Machines that are not here: the files in which their kernels describe them."""

from __future__ import annotations

from pathlib import Path

CPU = "sys/devices/system/cpu"


def plant(root: Path, files: dict[str, str]) -> Path:
    """Write files below a root."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


def clocks(cores: int, *, governor: str, current: int, highest: int, allowed: int | None = None) -> dict[str, str]:
    """cpufreq of some cores, in kHz."""
    files = {f"{CPU}/online": f"0-{cores - 1}\n"}
    for core in range(cores):
        folder = f"{CPU}/cpu{core}/cpufreq"
        files[f"{folder}/scaling_governor"] = f"{governor}\n"
        files[f"{folder}/scaling_driver"] = "acpi-cpufreq\n"
        files[f"{folder}/scaling_cur_freq"] = f"{current + core}\n"
        files[f"{folder}/scaling_max_freq"] = f"{allowed or highest}\n"
        files[f"{folder}/cpuinfo_max_freq"] = f"{highest}\n"
        files[f"{folder}/cpuinfo_min_freq"] = "400000\n"
    return files


COMMON = {
    "proc/loadavg": "0.10 0.20 0.30 1/200 4242\n",
    "proc/meminfo": "MemTotal:       16000000 kB\nMemFree: 1 kB\nMemAvailable:    8000000 kB\n",
    "proc/sys/kernel/osrelease": "6.1.0-test\n",
    "etc/os-release": 'NAME="Test"\nPRETTY_NAME="Test Linux 12"\n',
    "proc/stat": "cpu  1 1 1 1 1 1 1 1 0 0\n"
    + "".join(f"cpu{core} 100 0 50 1000 5 1 2 7 0 0\n" for core in range(4))
    + "intr 12345\n",
}

SERVER = {
    **COMMON,
    **clocks(4, governor="performance", current=3_000_000, highest=3_500_000),
    "proc/cpuinfo": "processor\t: 0\nmodel name\t: Xeon Test @ 3.00GHz\ncpu MHz\t\t: 2999.9\n",
    f"{CPU}/intel_pstate/no_turbo": "1\n",
    **{f"{CPU}/cpu{core}/thermal_throttle/core_throttle_count": f"{core}\n" for core in range(4)},
    "sys/class/hwmon/hwmon0/name": "coretemp\n",
    "sys/class/hwmon/hwmon0/temp1_input": "45000\n",
    "proc/driver/nvidia/gpus/0000:01:00.0/information": "Model: \t\t NVIDIA Test 40\nIRQ:   \t\t 17\n",
    "proc/self/cgroup": "0::/user.slice\n",
    "sys/fs/cgroup/user.slice/cpu.max": "max 100000\n",
}

LAPTOP = {
    **COMMON,
    **clocks(4, governor="powersave", current=900_000, highest=4_800_000, allowed=2_000_000),
    "proc/cpuinfo": "processor\t: 0\nmodel name\t: Core Test U\n",
    "sys/class/power_supply/AC/type": "Mains\n",
    "sys/class/power_supply/AC/online": "0\n",
    "sys/class/power_supply/BAT0/type": "Battery\n",
    "sys/class/power_supply/BAT0/status": "Discharging\n",
    "sys/class/power_supply/mouse/type": "Battery\n",
    "sys/class/power_supply/mouse/scope": "Device\n",
    "sys/class/thermal/thermal_zone0/type": "x86_pkg_temp\n",
    "sys/class/thermal/thermal_zone0/temp": "97000\n",
    "sys/class/thermal/thermal_zone1/type": "acpitz\n",
    "sys/class/thermal/thermal_zone1/temp": "50000\n",
    "sys/class/thermal/thermal_zone2/type": "acpitz\n",
    "sys/class/thermal/thermal_zone2/temp": "-274000\n",
    "sys/class/thermal/cooling_device0/type": "Processor\n",
    "sys/class/thermal/cooling_device0/cur_state": "3\n",
    "sys/class/thermal/cooling_device1/type": "Fan\n",
    "sys/class/thermal/cooling_device1/cur_state": "5\n",
}

RASPBERRY_PI = {
    **COMMON,
    **clocks(4, governor="ondemand", current=1_500_000, highest=2_400_000),
    "proc/cpuinfo": "processor\t: 0\nBogoMIPS\t: 108.00\nCPU implementer\t: 0x41\nCPU part\t: 0xd0b\n",
    "proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
    "sys/devices/platform/soc/soc:firmware/get_throttled": "50005\n",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
    "sys/class/thermal/thermal_zone0/temp": "84500\n",
}

_RAILS = "sys/class/hwmon/hwmon3"
JETSON = {
    **COMMON,
    **clocks(4, governor="schedutil", current=1_190_400, highest=2_201_600),
    "proc/cpuinfo": "processor\t: 0\nmodel name\t: ARMv8 Processor rev 1 (v8l)\nCPU part\t: 0xd42\n",
    "proc/device-tree/model": "NVIDIA Jetson AGX Orin Developer Kit\0",
    "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n",
    "etc/nvpmodel.conf": "# modes\n< POWER_MODEL ID=0 NAME=MAXN >\nCPU_ONLINE CORE_0 1\n"
    "< POWER_MODEL ID=2 NAME=MODE_30W >\n< PM_CONFIG DEFAULT=2 >\n",
    "var/lib/nvpmodel/status": "pmode:0002\n",
    "sys/class/devfreq/17000000.gpu/cur_freq": "306000000\n",
    "sys/class/devfreq/17000000.gpu/max_freq": "1300500000\n",
    f"{_RAILS}/name": "ina3221\n",
    f"{_RAILS}/in1_label": "VDD_GPU_SOC\n",
    f"{_RAILS}/in1_input": "19000\n",
    f"{_RAILS}/curr1_input": "200\n",
    f"{_RAILS}/in2_label": "VDD_CPU_CV\n",
    f"{_RAILS}/in2_input": "19000\n",
    f"{_RAILS}/curr2_input": "41\n",
    f"{_RAILS}/in7_label": "sum of shunt voltages\n",
    f"{_RAILS}/in7_input": "1\n",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
    "sys/class/thermal/thermal_zone0/temp": "51250\n",
}

CONTAINER = {
    **COMMON,
    "proc/cpuinfo": "processor\t: 0\nmodel name\t: EPYC Test\ncpu MHz\t\t: 2596.1\n\n"
    "processor\t: 1\nmodel name\t: EPYC Test\ncpu MHz\t\t: 2600.5\n",
    "proc/self/cgroup": "0::/\n",
    "sys/fs/cgroup/cpu.max": "150000 100000\n",
    "sys/fs/cgroup/cpu.stat": "usage_usec 10\nnr_periods 90\nnr_throttled 37\nthrottled_usec 5\n",
    "sys/fs/cgroup/memory.max": "2000000000\n",
}

OLD_CONTAINER = {
    **COMMON,
    "proc/self/cgroup": "5:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n1:name=systemd:/docker/abc\n",
    "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "50000\n",
    "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
    "sys/fs/cgroup/cpu,cpuacct/cpu.stat": "nr_periods 9\nnr_throttled 4\n",
    "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
}

ALL = {
    "server": SERVER,
    "laptop": LAPTOP,
    "raspberry-pi": RASPBERRY_PI,
    "jetson": JETSON,
    "container": CONTAINER,
    "old-container": OLD_CONTAINER,
    "bare": {},
}
