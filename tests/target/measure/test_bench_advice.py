"""Warnings: each where it belongs, none on a quiet machine, and always with a remedy."""

from __future__ import annotations

import pytest
from helpers.bench import configuration, machine
from helpers.machines import CONTAINER, CPU, JETSON, LAPTOP, RASPBERRY_PI, SERVER
from helpers.reports import TEMPLATE

from ztdeploy.target.measure.bench_report import read_report
from ztdeploy.target.measure.comparing import cautions, compare, others_cores

STEADY = [[5.0] * 5] * 10


@pytest.fixture
def said(tmp_path):
    """Kind -> what is said of a run on a faked machine; `later` are files that have changed by its end."""

    def said(
        files=SERVER,
        *,
        configurations=None,
        later=None,
        quiet=0.0,
        throttled_by=(),
        backend="onnxruntime",
        cores=(0, 1, 2, 3),
    ):
        found, before = machine(tmp_path / "before", files, cores)
        _, after = machine(tmp_path / "after", {**files, **(later or {})}, cores)
        own = tuple(configurations or [configuration("dense", STEADY)])
        report = read_report(TEMPLATE)
        changes = {
            "bundle": report.bundle.model_copy(update={"backend": backend}),
            "machine": found,
            "before": before,
            "after": after,
            "quiet_cores": quiet,
            "configurations": own,
            "comparisons": tuple(filter(None, [compare(one, own[0], seed=0) for one in own])),
        }
        cautioned = cautions(report.model_copy(update=changes), throttled_by)
        assert all(one.message and one.remedy for one in cautioned)
        return {one.kind: str(one) for one in cautioned}

    return said


def test_a_quiet_locked_server_gives_no_warning(said):
    assert said() == {}


def test_what_others_use():
    turns = configuration(rounds=[[1.0]] * 4, wall_s=0.5, own_cpu_s=0.5, busy_cpu_s=0.75)
    assert others_cores([turns]) == pytest.approx(0.5)
    assert others_cores([configuration(rounds=[[1.0]] * 4, own_cpu_s=1.01, busy_cpu_s=1.0)]) == 0
    assert others_cores([configuration(rounds=[[1.0]] * 4, busy_cpu_s=None)]) is None
    assert others_cores([configuration(rounds=[[1.0]] * 4, wall_s=0.01)]) is None, "too short for the kernel's accounts"
    assert others_cores([configuration()]) is None


def test_a_busy_machine(said):
    busy = configuration("dense", STEADY, busy_cpu_s=2.0)
    found = said(configurations=[busy], quiet=0.4)
    assert set(found) == {"busy"}
    assert "1.0 during the measurement and 0.4 before it of 4 usable cores" in found["busy"]
    assert "top" in found["busy"]
    assert set(said(quiet=2.0)) == {"busy"}
    assert said(configurations=[configuration("dense", STEADY, busy_cpu_s=None)], quiet=None) == {}


def test_spinning_threads_on_a_busy_machine(said):
    """Two threads, two cores, one of them taken: slower than with one thread."""
    two = configuration("dense", STEADY, threads=2, own_cpu_s=1.2, busy_cpu_s=1.9)
    found = said(configurations=[two], cores=(0, 1))
    assert set(found) == {"busy", "spinning"}
    assert "spin" in found["spinning"]
    assert found["spinning"].endswith("measure with --threads 1")
    assert "spinning" not in said(configurations=[two], cores=(0, 1), backend="openvino"), "another runtime"
    assert "spinning" not in said(configurations=[two]), "two cores are left"
    one = configuration("dense", STEADY, threads=1, own_cpu_s=1.2, busy_cpu_s=1.9)
    assert "spinning" not in said(configurations=[one], cores=(0, 1))
    four = configuration("dense", STEADY, threads=4, own_cpu_s=2.5, busy_cpu_s=3.7)
    assert said(configurations=[four])["spinning"].endswith("--threads 2")


def test_a_hypervisor_that_takes(said):
    stolen = configuration("dense", STEADY, stolen_s=0.3)
    assert "hypervisor gave 0.30 of 4 usable cores" in said(configurations=[stolen])["stolen"]


def test_a_clock_that_falls(said):
    hot = configuration("dense", STEADY, clocks=[3000] * 5 + [1800] * 5)
    assert "the clock fell from 3000 to 1800 MHz" in said(configurations=[hot])["throttled"]
    cool = configuration("dense", STEADY, clocks=[3000] * 5 + [2900] * 5)
    assert said(configurations=[cool]) == {}


def test_a_processor_that_counts_its_throttling(said):
    found = said(later={f"{CPU}/cpu0/thermal_throttle/core_throttle_count": "12"})
    assert "throttled itself 12 times, at 45 degrees Celsius" in found["throttled"]


def test_a_board_that_says_so(said):
    found = said(RASPBERRY_PI, throttled_by=["throttled", "under-voltage"])
    assert "held back by: throttled, under-voltage, at 84 degrees Celsius" in found["throttled"]
    assert "power supply" in found["throttled"]


def test_rounds_that_take_longer_and_longer(said):
    tired = configuration("dense", [[5.0 + turn] * 5 for turn in range(10)])
    assert "slower than the first" in said(configurations=[tired])["slowed"]
    assert said(configurations=[tired, configuration(), *[configuration("keep-0.70", STEADY)] * 2]) == {}


def test_a_laptop(said):
    found = said(LAPTOP)
    assert set(found) == {"governor", "capped", "battery"}
    assert "governor powersave" in found["governor"]
    assert "scaling_governor" in found["governor"]
    assert "2000 of 4800 MHz" in found["capped"]
    assert "plug it in" in found["battery"]


def test_a_jetson_is_locked_by_its_own_tool(said):
    found = said(JETSON)
    assert set(found) == {"governor"}
    assert found["governor"].endswith("run: sudo jetson_clocks")


def test_a_container(said):
    two = configuration("dense", STEADY, threads=2)
    found = said(CONTAINER, configurations=[two], later={"sys/fs/cgroup/cpu.stat": "nr_throttled 40\n"})
    assert set(found) == {"quota"}
    assert "2 threads under a quota of 1.5 cores; the container's quota stopped it 3 times" in found["quota"]
    assert "--threads 1" in found["quota"]
    assert said(CONTAINER) == {}, "one thread fits"


def test_more_threads_than_cores(said):
    many = configuration("dense", STEADY, threads=5)
    assert "5 threads on 4 usable cores" in said(configurations=[many])["threads"]
    alone = said(configurations=[configuration("dense", STEADY, threads=2)], cores=(0,))
    assert "1 usable core:" in alone["threads"]
    gpu = configuration("dense", STEADY, threads=None)
    assert said(configurations=[gpu]) == {}


def test_more_memory_than_there_is(said):
    large = configuration("dense", STEADY, peak_rss_mb=5000)
    found = said(configurations=[large, large])
    assert "10000 MB, and 8192 MB were free" in found["memory"]
    assert set(said(CONTAINER, configurations=[large])) == {"memory"}, "the container's limit is lower"


def test_too_little_was_measured(said):
    found = said(configurations=[configuration("dense", [[5.0]] * 3, batch=8)])
    assert set(found) == {"few rounds", "few samples"}
    assert "3 rounds" in found["few rounds"]
    assert "--rounds 6" in found["few rounds"]
    assert "dense at batch 8, 1 thread was called 3 times; give a longer --duration" in found["few samples"]
    assert said(configurations=[configuration()]) == {}, "nothing was measured: the failure says why"
