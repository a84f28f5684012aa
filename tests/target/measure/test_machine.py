"""What is read of a machine: servers, laptops, boards and containers, faked as trees of files."""

from __future__ import annotations

import os
import platform
from contextlib import ExitStack

import pytest
from helpers import machines
from helpers.bench import faked, machine
from helpers.machines import CPU, plant

from ztdeploy.core.kernel_files import number, text
from ztdeploy.target.measure import machine as module
from ztdeploy.target.measure.machine import (
    CpuMeter,
    Machine,
    State,
    cpu_quota_cores,
    cpu_seconds,
    on_battery,
    processor_name,
    read_clocks,
    read_gpus,
    read_machine,
    read_state,
    throttled_by,
    usable_cores,
)

CORES = (0, 1, 2, 3)


@pytest.fixture
def below(tmp_path):
    """Lets this machine be the one whose files are planted."""
    with ExitStack() as stack:
        yield lambda files: stack.enter_context(faked(plant(tmp_path / "root", {"proc/none": "", **files})))


@pytest.fixture
def look(tmp_path):
    """A faked machine's two records."""

    def look(name, cores=CORES):
        return machine(tmp_path / name, {"proc/none": "", **machines.ALL[name]}, cores)

    return look


def test_a_server(look):
    found, state = look("server")
    assert (found.processor, found.board, found.jetson) == ("Xeon Test @ 3.00GHz", None, None)
    assert (found.cores_online, found.usable_cores, found.quota_cores) == (os.cpu_count(), CORES, None)
    assert (found.governors, found.clock_driver, found.boost) == (("performance",), "acpi-cpufreq", False)
    assert (found.lowest_clock_mhz, found.highest_clock_mhz, found.allowed_clock_mhz) == (400, 3500, 3500)
    assert (found.memory_mb, found.memory_limit_mb) == (16384, None)
    assert (found.system, found.kernel) == ("Test Linux 12", platform.release())
    assert [one.name for one in found.gpus] == ["NVIDIA Test 40"]
    assert set(found.versions) >= {"ztdeploy", "numpy", "onnxruntime"}
    assert state.load_average == (0.1, 0.2, 0.3)
    assert state.clocks_mhz == {0: 3000, 1: 3000.001, 2: 3000.002, 3: 3000.003}
    assert state.temperatures_c == {"coretemp": 45}
    assert (state.on_battery, state.quota_stops, state.throttle_events, state.throttled_by) == (None, None, 6, ())


def test_only_usable_cores_count(look):
    found, state = look("server", cores=(1, 3))
    assert found.usable_cores == (1, 3)
    assert (set(state.clocks_mhz), state.throttle_events) == ({1, 3}, 4)


def test_a_laptop(look):
    found, state = look("laptop")
    assert (found.governors, found.allowed_clock_mhz, found.highest_clock_mhz) == (("powersave",), 2000, 4800)
    assert state.on_battery is True
    assert state.temperatures_c == {"x86_pkg_temp": 97, "acpitz": 50}, "a sensor below absolute zero is off"
    assert state.throttled_by == ("Processor",), "a fan slows nothing down"


def test_sensors_of_one_name_are_told_apart(below):
    zones = {f"sys/class/thermal/thermal_zone{n}/type": "acpitz" for n in range(3)}
    temperatures = {f"sys/class/thermal/thermal_zone{n}/temp": f"{40 + n}000" for n in range(3)}
    below({**zones, **temperatures})
    assert read_state().temperatures_c == {"acpitz": 40, "acpitz 2": 41, "acpitz 3": 42}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"AC/type": "Mains", "AC/online": "1", "BAT0/type": "Battery", "BAT0/status": "Charging"}, False),
        ({"BAT0/type": "Battery", "BAT0/status": "Discharging"}, True),
        ({"BAT0/type": "Battery", "BAT0/status": "Full"}, False),
        ({"AC/type": "Mains", "AC/online": "1"}, None),
        ({"mouse/type": "Battery", "mouse/status": "Discharging", "mouse/scope": "Device"}, None),
    ],
)
def test_batteries(files, expected, below):
    below({f"sys/class/power_supply/{name}": content for name, content in files.items()})
    assert on_battery() is expected


def test_a_raspberry_pi(look):
    found, state = look("raspberry-pi")
    assert (found.processor, found.board) == ("Cortex-A76", "Raspberry Pi 5 Model B Rev 1.0")
    assert found.governors == ("ondemand",)
    assert state.throttled_by == ("under-voltage", "throttled"), "0x50005: what happened once, before, is not now"
    assert state.temperatures_c == {"cpu-thermal": 84.5}


def test_a_raspberry_pi_5_says_it_elsewhere(below):
    below({"sys/class/hwmon/hwmon1/name": "rpi_volt\n", "sys/class/hwmon/hwmon1/in0_lcrit_alarm": "1\n"})
    assert throttled_by() == ("under-voltage",)
    below({"sys/devices/platform/soc/soc:firmware/get_throttled": "not a number"})
    assert throttled_by() == ("under-voltage",)


def test_a_jetson(look):
    found, state = look("jetson")
    assert found.board == "NVIDIA Jetson AGX Orin Developer Kit"
    assert found.jetson.power_mode == "2 (MODE_30W)"
    assert found.jetson.release == "R36 (release), REVISION: 4.3"
    assert [(one.clock_mhz, one.max_clock_mhz) for one in found.gpus] == [(306, 1300.5)]
    assert state.rails_mw == {"VDD_GPU_SOC": 3800, "VDD_CPU_CV": 779}


def test_a_container(look):
    found, state = look("container", cores=(0, 1))
    assert (found.quota_cores, found.memory_limit_mb, state.quota_stops) == (1.5, 2000, 37)
    assert state.clocks_mhz == {0: 2596.1, 1: 2600.5}, "no cpufreq: /proc/cpuinfo tells"
    assert found.governors == ()


def test_a_container_of_the_old_kind(look):
    """Its path is the host's, which is not there inside; its top is its own group."""
    found, state = look("old-container")
    assert (found.quota_cores, found.memory_limit_mb, state.quota_stops) == (0.5, None, 4)


def test_the_tightest_quota_above_the_process_counts(below):
    files = {
        "proc/self/cgroup": "0::/system.slice/docker.scope\n",
        "sys/fs/cgroup/system.slice/cpu.max": "100000 100000\n",
        "sys/fs/cgroup/system.slice/docker.scope/cpu.max": "400000 100000\n",
        "sys/fs/cgroup/system.slice/memory.max": "2000000\n",
        "sys/fs/cgroup/system.slice/docker.scope/memory.max": "max\n",
    }
    below(files)
    assert (cpu_quota_cores(), read_machine().memory_limit_mb, read_state().quota_stops) == (1, 2, None)


@pytest.mark.parametrize("content", ["", "max", "1 0\n", "x y\n", "0::/../../etc\n"])
def test_damaged_control_groups_mean_no_quota(content, below):
    below({"proc/self/cgroup": content, "sys/fs/cgroup/cpu.max": content})
    assert (cpu_quota_cores(), read_machine().memory_limit_mb, read_state().quota_stops) == (None, None, None)


@pytest.mark.parametrize("name", machines.ALL)
def test_records_are_json_and_back(name, look):
    found, state = look(name)
    assert Machine.model_validate_json(found.model_dump_json()) == found
    assert State.model_validate_json(state.model_dump_json()) == state


def test_a_machine_that_tells_nothing(look):
    """As in a sandbox without /proc and /sys: unknown is unknown."""
    found, state = look("bare")
    assert (found.governors, found.quota_cores, found.memory_mb, found.gpus) == ((), None, None, ())
    assert found.processor
    assert (state.clocks_mhz, state.temperatures_c, state.load_average, state.on_battery) == ({}, {}, None, None)


def test_this_machine():
    """Whatever it is, it can be read."""
    cores = usable_cores()
    assert set(cores) == os.sched_getaffinity(0)
    assert read_machine().usable_cores == cores
    assert read_state().at.endswith("+00:00")


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [
        ("Hardware\t: BCM2835\nCPU part\t: 0xd08\n", "BCM2835"),
        ("CPU implementer\t: 0x41\nCPU part\t: 0xfff\n", "ARM part 0xfff"),
        ("CPU implementer\t: 0x61\nCPU part\t: 0x022\n", "part 0x022"),
    ],
)
def test_processors_without_a_name(cpuinfo, expected, below):
    below({"proc/cpuinfo": cpuinfo})
    assert processor_name() == expected


def test_files_that_are_not_what_they_should_be(tmp_path, below):
    plant(tmp_path, {"word": "performance", "empty": "\n"})
    assert (number(tmp_path / "word"), text(tmp_path / "empty"), text(tmp_path)) == (None, None, None)
    below({f"{CPU}/cpu0/cpufreq/scaling_cur_freq": "<unknown>\n"})
    assert read_clocks([0]) == {}


# GPUs.


def test_what_nvidia_smi_answers(below, monkeypatch):
    answer = "NVIDIA H100 80GB HBM3, 550.54, 345, 1980, 31, 69.12\nOrin (nvgpu), 540.4, [N/A], [N/A], [N/A], [N/A]\n"
    below({})
    monkeypatch.setattr(module, "nvidia_smi", lambda: answer)
    first, second = read_gpus()
    assert (first.name, first.driver) == ("NVIDIA H100 80GB HBM3", "550.54")
    assert (first.clock_mhz, first.max_clock_mhz, first.temperature_c, first.power_w) == (345, 1980, 31, 69.12)
    assert (second.clock_mhz, second.power_w) == (None, None)
    monkeypatch.setattr(module, "nvidia_smi", lambda: "No devices were found\n")
    assert read_gpus() == ()


@pytest.mark.parametrize(("script", "expected"), [("echo answer", "answer\n"), ("exit 9", None)])
def test_asking_nvidia_smi(script, expected, tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert module.nvidia_smi() == expected
    tool.unlink()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert module.nvidia_smi() is None


# Who uses the processor.


def test_processor_times(below):
    ticks = os.sysconf("SC_CLK_TCK")
    below(machines.SERVER)
    busy, stolen = 2 * (100 + 50 + 1 + 2), 2 * 7
    assert cpu_seconds([0, 2]) == (busy / ticks, stolen / ticks), "idle and waiting for disks is not busy"
    assert cpu_seconds([9]) == (None, None)
    below({"proc/stat": "cpu0 1 2\ncpu0 a b c d\n"})
    assert cpu_seconds([0]) == (None, None)
    below({"proc/stat": "cpu0 1 2 3 4\n"})
    assert cpu_seconds([0]) == (6 / ticks, 0)


def test_our_own_time_is_told_from_all(below):
    meter = CpuMeter([2**22 + 1])  # the second process is gone, and has used nothing
    sum(number * number for number in range(2_000_000))
    used = meter.so_far()
    assert used.own_s > 0
    assert used.wall_s > 0
    assert used.busy_s is None or used.busy_s >= 0
    below({})
    unknown = CpuMeter().so_far()
    assert (unknown.busy_s, unknown.stolen_s, unknown.others_cores) == (None, None, None)
