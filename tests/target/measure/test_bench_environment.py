"""What is read of a machine: servers, laptops, boards and containers, faked as trees of files."""

from __future__ import annotations

import os

import pytest
from helpers import machines
from helpers.machines import CPU, plant

from ztdeploy.core.kernel_files import number, text
from ztdeploy.target.measure import gpu
from ztdeploy.target.measure.board import pi_complaints
from ztdeploy.target.measure.cgroup import cpu_quota_cores, memory_limit_bytes, times_stopped
from ztdeploy.target.measure.environment import (
    Machine,
    State,
    on_battery,
    processor_name,
    read_clocks,
    read_machine,
    read_state,
    usable_cores,
)
from ztdeploy.target.measure.load import Accounts, CpuTimes, cpu_seconds_of, read_cpu_times

CORES = (0, 1, 2, 3)


def silent():
    return None


@pytest.fixture
def look(tmp_path):
    """A faked machine's two records."""

    def look(name, cores=CORES):
        root = plant(tmp_path / name, machines.ALL[name])
        root.mkdir(exist_ok=True)
        return read_machine(cores, root, ask_gpu=silent), read_state(cores, root, ask_gpu=silent)

    return look


def test_a_server(look):
    machine, state = look("server")
    assert (machine.processor, machine.board, machine.jetson) == ("Xeon Test @ 3.00GHz", None, None)
    assert (machine.cores_online, machine.usable_cores, machine.quota_cores) == (4, CORES, None)
    assert (machine.governors, machine.clock_driver, machine.boost) == (("performance",), "acpi-cpufreq", False)
    assert (machine.lowest_clock_mhz, machine.highest_clock_mhz, machine.allowed_clock_mhz) == (400, 3500, 3500)
    assert (machine.memory_mb, machine.memory_limit_mb) == (16384, None)
    assert (machine.system, machine.kernel) == ("Test Linux 12", "6.1.0-test")
    assert [one.name for one in machine.gpus] == ["NVIDIA Test 40"]
    assert set(machine.versions) >= {"ztdeploy", "numpy", "onnxruntime"}
    assert state.load_average == (0.1, 0.2, 0.3)
    assert state.clocks_mhz == {0: 3000, 1: 3000.001, 2: 3000.002, 3: 3000.003}
    assert state.temperatures_c == {"coretemp": 45}
    assert (state.on_battery, state.quota_stops, state.throttle_events, state.throttled_by) == (None, None, 6, ())


def test_only_usable_cores_count(look):
    machine, state = look("server", cores=(1, 3))
    assert (machine.usable_cores, machine.cores_online) == ((1, 3), 4)
    assert (set(state.clocks_mhz), state.throttle_events) == ({1, 3}, 4)


def test_a_laptop(look):
    machine, state = look("laptop")
    assert (machine.governors, machine.allowed_clock_mhz, machine.highest_clock_mhz) == (("powersave",), 2000, 4800)
    assert state.on_battery is True
    assert state.temperatures_c == {"x86_pkg_temp": 97, "acpitz": 50}, "a sensor below absolute zero is off"
    assert state.throttled_by == ("Processor",), "a fan slows nothing down"


def test_sensors_of_one_name_are_told_apart(tmp_path):
    zones = {f"sys/class/thermal/thermal_zone{n}/type": "acpitz" for n in range(3)}
    temperatures = {f"sys/class/thermal/thermal_zone{n}/temp": f"{40 + n}000" for n in range(3)}
    state = read_state(CORES, plant(tmp_path, {**zones, **temperatures}), ask_gpu=silent)
    assert state.temperatures_c == {"acpitz": 40, "acpitz 2": 41, "acpitz 3": 42}


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
def test_batteries(files, expected, tmp_path):
    root = plant(tmp_path, {f"sys/class/power_supply/{name}": content for name, content in files.items()})
    assert on_battery(root) is expected


def test_a_raspberry_pi(look):
    machine, state = look("raspberry-pi")
    assert (machine.processor, machine.board) == ("Cortex-A76", "Raspberry Pi 5 Model B Rev 1.0")
    assert machine.governors == ("ondemand",)
    assert state.throttled_by == ("under-voltage", "throttled"), "0x50005: what happened once, before, is not now"
    assert state.temperatures_c == {"cpu-thermal": 84.5}


def test_a_raspberry_pi_5_says_it_elsewhere(tmp_path):
    files = {"sys/class/hwmon/hwmon1/name": "rpi_volt\n", "sys/class/hwmon/hwmon1/in0_lcrit_alarm": "1\n"}
    assert pi_complaints(plant(tmp_path, files)) == ["under-voltage"]
    plant(tmp_path, {"sys/devices/platform/soc/soc:firmware/get_throttled": "not a number"})
    assert pi_complaints(tmp_path) == ["under-voltage"]


def test_a_jetson(look):
    machine, state = look("jetson")
    assert machine.board == "NVIDIA Jetson AGX Orin Developer Kit"
    assert machine.jetson.power_mode == "2 (MODE_30W)"
    assert machine.jetson.release == "R36 (release), REVISION: 4.3"
    assert [(one.clock_mhz, one.max_clock_mhz) for one in machine.gpus] == [(306, 1300.5)]
    assert state.rails_mw == {"VDD_GPU_SOC": 3800, "VDD_CPU_CV": 779}


def test_a_container(look):
    machine, state = look("container", cores=(0, 1))
    assert (machine.quota_cores, machine.memory_limit_mb, state.quota_stops) == (1.5, 2000, 37)
    assert state.clocks_mhz == {0: 2596.1, 1: 2600.5}, "no cpufreq: /proc/cpuinfo tells"
    assert machine.governors == ()


def test_a_container_of_the_old_kind(look):
    """Its path is the host's, which is not there inside; its top is its own group."""
    machine, state = look("old-container")
    assert (machine.quota_cores, machine.memory_limit_mb, state.quota_stops) == (0.5, None, 4)


def test_the_tightest_quota_above_the_process_counts(tmp_path):
    files = {
        "proc/self/cgroup": "0::/system.slice/docker.scope\n",
        "sys/fs/cgroup/system.slice/cpu.max": "100000 100000\n",
        "sys/fs/cgroup/system.slice/docker.scope/cpu.max": "400000 100000\n",
        "sys/fs/cgroup/system.slice/memory.max": "1000\n",
        "sys/fs/cgroup/system.slice/docker.scope/memory.max": "max\n",
    }
    root = plant(tmp_path, files)
    assert (cpu_quota_cores(root), memory_limit_bytes(root), times_stopped(root)) == (1, 1000, None)


@pytest.mark.parametrize("content", ["", "max", "1 0\n", "x y\n", "0::/../../etc\n"])
def test_damaged_control_groups_mean_no_quota(content, tmp_path):
    root = plant(tmp_path, {"proc/self/cgroup": content, "sys/fs/cgroup/cpu.max": content})
    assert (cpu_quota_cores(root), memory_limit_bytes(root), times_stopped(root)) == (None, None, None)


@pytest.mark.parametrize("name", machines.ALL)
def test_records_are_json_and_back(name, look):
    machine, state = look(name)
    assert Machine.model_validate_json(machine.model_dump_json()) == machine
    assert State.model_validate_json(state.model_dump_json()) == state


def test_a_machine_that_tells_nothing(look):
    """As in a sandbox without /proc and /sys: unknown is unknown."""
    machine, state = look("bare")
    assert (machine.governors, machine.quota_cores, machine.memory_mb, machine.gpus) == ((), None, None, ())
    assert machine.processor
    assert (state.clocks_mhz, state.temperatures_c, state.load_average, state.on_battery) == ({}, {}, None, None)


def test_this_machine():
    """Whatever it is, it can be read."""
    cores = usable_cores()
    assert set(cores) == os.sched_getaffinity(0)
    assert read_machine(cores).usable_cores == cores
    assert read_state(cores).at.endswith("+00:00")


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [
        ("Hardware\t: BCM2835\nCPU part\t: 0xd08\n", "BCM2835"),
        ("CPU implementer\t: 0x41\nCPU part\t: 0xfff\n", "ARM part 0xfff"),
        ("CPU implementer\t: 0x61\nCPU part\t: 0x022\n", "part 0x022"),
    ],
)
def test_processors_without_a_name(cpuinfo, expected, tmp_path):
    assert processor_name(plant(tmp_path, {"proc/cpuinfo": cpuinfo})) == expected


def test_files_that_are_not_what_they_should_be(tmp_path):
    plant(tmp_path, {"word": "performance", "empty": "\n", f"{CPU}/cpu0/cpufreq/scaling_cur_freq": "<unknown>\n"})
    assert (number(tmp_path / "word"), text(tmp_path / "empty"), text(tmp_path)) == (None, None, None)
    assert read_clocks([0], tmp_path) == {}


# GPUs.


def test_what_nvidia_smi_answers(tmp_path):
    answer = "NVIDIA H100 80GB HBM3, 550.54, 345, 1980, 31, 69.12\nOrin (nvgpu), 540.4, [N/A], [N/A], [N/A], [N/A]\n"
    first, second = gpu.read_gpus(tmp_path, lambda: answer)
    assert (first.name, first.driver, first.clock_mhz, first.max_clock_mhz) == (
        "NVIDIA H100 80GB HBM3",
        "550.54",
        345,
        1980,
    )
    assert (first.temperature_c, first.power_w) == (31, 69.12)
    assert (second.clock_mhz, second.power_w) == (None, None)
    assert gpu.read_gpus(tmp_path, lambda: "No devices were found\n") == ()


@pytest.mark.parametrize(("script", "expected"), [("echo answer", "answer\n"), ("exit 9", None)])
def test_asking_nvidia_smi(script, expected, tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert gpu.nvidia_smi() == expected
    tool.unlink()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu.nvidia_smi() is None


# Who uses the processor.


def test_processor_times(tmp_path):
    root = plant(tmp_path, machines.SERVER)
    found = read_cpu_times([0, 2], root, ticks_per_second=100)
    assert found == CpuTimes(busy_s=3.06, stolen_s=0.14), "idle and waiting for disks is not busy"
    assert found - found == CpuTimes(busy_s=0, stolen_s=0)
    assert read_cpu_times([9], root) is None
    assert read_cpu_times([0], plant(tmp_path / "odd", {"proc/stat": "cpu0 1 2\ncpu0 a b c d\n"})) is None
    assert read_cpu_times([0], plant(tmp_path / "old", {"proc/stat": "cpu0 1 2 3 4\n"}), ticks_per_second=1) == (
        CpuTimes(busy_s=6, stolen_s=0)
    )


def test_our_own_time_is_told_from_all(tmp_path):
    accounts = Accounts(usable_cores(), [])
    sum(number * number for number in range(2_000_000))
    own_s, everybody = accounts.so_far()
    assert own_s > 0
    assert everybody is None or everybody.busy_s >= 0
    assert Accounts([0], [], tmp_path).so_far()[1] is None


def test_a_process_that_is_gone_has_used_nothing():
    assert cpu_seconds_of(2**22 + 1) == 0
    assert cpu_seconds_of(os.getpid()) > 0
