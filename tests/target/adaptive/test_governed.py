"""A governed runner on the shipped model, whose engines take as long as a simulated clock says."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.bench import faked
from helpers.bundles import edit, linked_copy
from helpers.errors import refused
from helpers.machines import plant

import ztdeploy
from ztdeploy.core.bundle import read_bundle
from ztdeploy.core.errors import InputError
from ztdeploy.core.manifest import VariantRecord
from ztdeploy.target.adaptive import governed
from ztdeploy.target.adaptive.governed import GovernedRunner
from ztdeploy.target.adaptive.governor import Governor, GovernorDecision
from ztdeploy.target.backends.base import Array, Runner
from ztdeploy.target.runtime.runner import opening

#: Milliseconds of a call on a quiet machine, by variant.
QUIET = {"dense": 20.0, "keep-0.70": 12.0, "keep-0.50": 8.0}


@dataclass
class Machine:
    """A clock, and a load."""

    now: float = 1000.0
    load: float = 1.0
    quiet: dict[str, float] = field(default_factory=lambda: dict(QUIET))
    two: bool = False  #: whether there are engines of two threads

    #: Cores that others use; engines of one thread take 1.5 times as long, and do not feel it.
    busy: float = 0.0

    def clock(self) -> float:
        return self.now

    def felt(self, threads: int) -> float:
        return self.load * (1 + 2 * self.busy if threads > 1 else 1.5 if self.two else 1.0)


class Engine:
    """A real engine whose calls take simulated time; it answers all images like the first."""

    def __init__(self, runner: Runner, variant: str, machine: Machine, threads: int) -> None:
        self._runner, self._variant, self._machine, self.signature = runner, variant, machine, runner.signature
        self._threads = threads
        self._answers = dict[int, dict[str, Array]]()

    def infer(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        self._machine.now += self._machine.quiet[self._variant] * self._machine.felt(self._threads) / 1000
        count = len(next(iter(feeds.values())))
        if count not in self._answers:
            self._answers[count] = self._runner.infer(feeds)
        return self._answers[count]

    def close(self) -> None:
        self._runner.close()


class Simulated(GovernedRunner):
    def __init__(self, machine: Machine, governor: Governor, bundle: Path, threads: int = 1, **options: Any) -> None:
        self.machine, self.loaded = machine, list[str]()
        machine.two = threads > 1
        opened = opening(bundle, profile=None, threads=threads, memory="speed", verify=False)
        super().__init__(governor, clock=machine.clock, **opened, **options)

    def _load(self, variant: VariantRecord, threads: int | None = None) -> Runner:
        self.loaded.append(variant.name if threads == 1 else f"{variant.name} on {threads}")
        return Engine(super()._load(variant, threads), variant.name, self.machine, threads or 1)


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture(scope="module")
def pixels(digits_bundle: Path) -> Any:
    return np.zeros((1, *read_bundle(digits_bundle).manifest.preprocess.shape), dtype=np.uint8)


def calls(runner: GovernedRunner, pixels: Any, count: int) -> set[str]:
    """The variants that answered."""
    found = set()
    for _ in range(count):
        found.add(runner.variant.name)
        runner.infer(pixels)
    return found


def test_a_load_comes_and_goes(machine: Machine, digits_bundle: Path, pixels: Any, caplog: Any) -> None:
    told: list[GovernorDecision] = []
    caplog.set_level(logging.INFO, "ztdeploy.governor")
    with Simulated(machine, Governor(25, on_decision=told.append), digits_bundle) as runner:
        assert [rung.variant for rung in runner.rungs] == list(QUIET)
        assert [rung.latency_ms for rung in runner.rungs] == pytest.approx(list(QUIET.values()))
        assert calls(runner, pixels, 50) == {"dense"}
        machine.load = 2.5
        assert runner.p95_ms == pytest.approx(20)
        assert calls(runner, pixels, 6) == {"dense", "keep-0.50"}
        assert calls(runner, pixels, 50) == {"keep-0.50"}
        machine.load = 1.0
        calls(runner, pixels, 300)
        assert calls(runner, pixels, 5) == {"dense"}
        assert sorted(runner.loaded) == sorted(QUIET), "switching opens nothing"
        assert runner.changes == {"missed": 1, "room": 1}
        assert [one.cause for one in runner.decisions] == ["start", "missed", "room"]
        assert tuple(told) == runner.decisions
        assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
            "dense",
            "dense -> keep-0.50",
            "keep-0.50 -> dense",
        ]
        missed = runner.decisions[1]
        assert (missed.target_ms, missed.slowdown) == (25, pytest.approx(2.5))
        assert repr(runner).startswith("GovernedRunner(")
        assert "latency_ms=25" in repr(runner)


def test_threads_are_shed(machine: Machine, digits_bundle: Path, pixels: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(governed, "FreeCores", lambda: lambda: 2 - machine.busy)
    with Simulated(machine, Governor(25), digits_bundle, threads=2) as runner:
        ladder = [(rung.variant, rung.threads) for rung in runner.rungs]
        assert ladder == [("dense", 2), ("keep-0.70", 2), ("keep-0.70", 1), ("keep-0.50", 2), ("keep-0.50", 1)]
        assert len(runner._open) == len(runner.rungs), "dense on one thread would miss the target, and is closed"
        machine.busy = 1.0
        calls(runner, pixels, 300)
        assert (runner.rung.variant, runner.rung.threads, runner.threads) == ("keep-0.70", 1, 2)
        machine.busy = 0.0
        calls(runner, pixels, 300)
        assert (runner.rung.variant, runner.rung.threads) == ("dense", 2)
        assert [one.change for one in runner.decisions] == [
            "dense on 2 threads",
            "dense on 2 threads -> keep-0.70 on 1 thread",
            "keep-0.70 on 1 thread -> dense on 2 threads",
        ]
        runner.close()
        assert calls(runner, pixels, 2) == {"dense"}
        assert len(runner._open) == len(runner.rungs)


def test_a_floor_on_fidelity_is_no_floor_on_threads(machine: Machine, digits_bundle: Path, tmp_path: Path) -> None:
    bundle = evaluated(linked_copy(digits_bundle, tmp_path / "bundle"), {"keep-0.70": 0.98, "keep-0.50": 0.9})
    with Simulated(machine, Governor(25, min_fidelity=0.97), bundle, threads=2) as runner:
        ladder = [(rung.variant, rung.threads) for rung in runner.rungs]
        assert ladder == [("dense", 2), ("keep-0.70", 2), ("keep-0.70", 1)]


def test_a_limit_counts_variants(machine: Machine, digits_bundle: Path) -> None:
    with Simulated(machine, Governor(40, heat=1, low_battery="keep-0.50"), digits_bundle, threads=2) as runner:
        best = (runner._conditions._heat, runner._conditions._battery)
        assert [runner.rungs[at][::3] for at in best] == [("keep-0.70", 2), ("keep-0.50", 2)]


def test_answers_are_those_of_the_variant_that_runs(digits_bundle: Path, digit_images: list[Path]) -> None:
    with ztdeploy.load(digits_bundle, latency_ms=1000, threads=1) as runner:
        ours = runner(digit_images[:3])
        name = runner.variant.name
    with ztdeploy.load(digits_bundle, variant=name, threads=1) as plain:
        theirs = plain(digit_images[:3])
    assert [one.label for one in ours] == [one.label for one in theirs]


def test_a_callback_that_fails_harms_no_answer(machine: Machine, digits_bundle: Path, pixels: Any) -> None:
    def fail(_decision: GovernorDecision) -> None:
        raise ValueError

    with Simulated(machine, Governor(25, on_decision=fail), digits_bundle) as runner:
        machine.load = 2.0
        assert len(calls(runner, pixels, 10)) == 2


def test_any_thread_may_call_and_close(machine: Machine, digits_bundle: Path, pixels: Any) -> None:
    runner = Simulated(machine, Governor(25), digits_bundle)

    def work(number: int) -> int:
        for call in range(30):
            machine.load = 3.0 if call % 20 > 10 else 1.0
            if number == 0 and call % 10 == 9:
                runner.close()
            assert len(runner.infer(pixels).logits) == 1
        return number

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(work, range(4))) == [0, 1, 2, 3]
    runner.close()
    assert runner.infer(pixels).logits.shape[0] == 1
    runner.close()


def test_other_batches_are_not_counted(machine: Machine, digits_bundle: Path, pixels: Any, caplog: Any) -> None:
    with Simulated(machine, Governor(25), digits_bundle) as runner:
        machine.load = 3.0
        for _ in range(20):
            runner.infer(np.concatenate([pixels] * 3))
        assert runner.variant.name == "dense"
        assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == [
            "calls of 3 images are not held: the governor holds batch 1"
        ]


def test_heat_and_power_limit_what_runs(machine: Machine, digits_bundle: Path, pixels: Any, tmp_path: Path) -> None:
    zone, supply = "sys/class/thermal/thermal_zone0", "sys/class/power_supply"
    files = {
        **{f"{zone}/type": "cpu-thermal", f"{zone}/temp": "60000"},
        **{f"{zone}/trip_point_0_type": "active", f"{zone}/trip_point_0_temp": "50000"},
        **{f"{zone}/trip_point_1_type": "passive", f"{zone}/trip_point_1_temp": "85000"},
        **{f"{supply}/BAT0/type": "Battery", f"{supply}/BAT0/status": "Charging", f"{supply}/BAT0/capacity": "15"},
        "sys/firmware/acpi/platform_profile": "balanced",
    }
    limits = Governor(25, heat="keep-0.50", low_battery=1, power_modes={"low-power": "keep-0.70"})

    def after(change: dict[str, str], count: int = 250) -> str:
        plant(tmp_path, change)
        calls(runner, pixels, count)
        return runner.variant.name

    with faked(plant(tmp_path, files)), Simulated(machine, limits, digits_bundle) as runner:
        assert after({}) == "dense"
        assert after({f"{zone}/temp": "81000"}) == "keep-0.50"
        hot = runner.decisions[-1]
        assert (hot.cause, hot.temperature_c, "'cpu-thermal' is at 81.0 C" in hot.reason) == ("heat", 81.0, True)
        assert after({f"{zone}/temp": "78500"}, 600) == "keep-0.50", "not yet cooled down"
        assert after({f"{zone}/temp": "70000"}, 900) == "dense"
        assert after({f"{supply}/BAT0/status": "Discharging"}) == "keep-0.70"
        assert (runner.decisions[-1].cause, runner.decisions[-1].battery) == ("battery", 0.15)
        assert after({f"{supply}/BAT0/status": "Charging"}, 900) == "dense"
        assert after({"sys/firmware/acpi/platform_profile": "low-power"}) == "keep-0.70"
        assert runner.decisions[-1].power_mode == "low-power"


def test_what_is_not_faster_is_left_out(machine: Machine, digits_bundle: Path) -> None:
    machine.quiet["keep-0.70"] = 19.9
    with Simulated(machine, Governor(25), digits_bundle) as runner:
        assert [rung.variant for rung in runner.rungs] == ["dense", "keep-0.50"]


def test_a_target_below_the_fastest(machine: Machine, digits_bundle: Path) -> None:
    refused(
        lambda: Simulated(machine, Governor(5), digits_bundle), "'keep-0.50' took 8 ms", "strict=False", kind=InputError
    )
    with Simulated(machine, Governor(5, strict=False), digits_bundle) as runner:
        assert runner.variant.name == "keep-0.50"


def evaluated(bundle: Path, agreements: Mapping[str, float]) -> Path:
    """Record evaluations of its engines."""
    opened = read_bundle(bundle)

    def change(manifest: Any) -> None:
        for variant in manifest["variants"]:
            if variant["name"] in agreements:
                for engine in variant["engines"].values():
                    engine["fidelity"] = {
                        **{"created": "now", "data": "photos", "data_sha256": "0" * 64, "images": 100, "kl": 0.1},
                        **{"agreement": agreements[variant["name"]], "top5": None},
                        "engine_sha256": digest(variant["name"]),
                        "dense_sha256": digest("dense"),
                    }

    def digest(name: str) -> str:
        (engine,) = opened.variant(name=name).engines.values()
        return opened.engine_digest(engine)

    return edit(bundle, change)


def test_a_floor_on_fidelity(machine: Machine, digits_bundle: Path, tmp_path: Path) -> None:
    bundle = evaluated(linked_copy(digits_bundle, tmp_path / "bundle"), {"keep-0.70": 0.98, "keep-0.50": 0.9})
    with Simulated(machine, Governor(25, min_fidelity=0.97), bundle) as runner:
        assert [(rung.variant, rung.fidelity) for rung in runner.rungs] == [("dense", 1.0), ("keep-0.70", 0.98)]
        assert sorted(runner.loaded) == ["dense", "keep-0.70"]
    excluded = Governor(25, min_fidelity=0.99)
    refused(lambda: Simulated(machine, excluded, bundle), "'keep-0.70' with 0.98", "at most 0.98", kind=InputError)
    refused(lambda: Simulated(machine, excluded, digits_bundle), "no", "ztdeploy eval", kind=InputError)


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        ({"latency_ms": "30"}, ["latency_ms = '30'"]),
        ({"latency_ms": 0}, ["latency_ms = 0"]),
        ({"latency_ms": -3}, ["latency_ms = -3", "above 0"]),
        ({"latency_ms": float("nan")}, ["latency_ms = nan"]),
        ({"latency_ms": True}, ["latency_ms = True"]),
        ({"governor": 30}, ["governor = 30", "ztdeploy.Governor"]),
        ({"latency_ms": 30, "governor": Governor(30)}, ["both latency_ms = 30 and a governor"]),
        ({"latency_ms": 30, "keep_ratio": 0.7}, ["keep_ratio = 0.7 beside a governor"]),
        ({"latency_ms": 30, "variant": "dense"}, ["variant = 'dense'", "leave out variant"]),
        ({"governor": Governor(30, batch=4000)}, ["batch = 4000"]),
        ({"governor": Governor(30, variants="dense")}, ["1 variant", "name more variants"]),
        ({"governor": Governor(30, variants=("dense", "none"))}, ["variant 'none'"]),
        ({"governor": Governor(1000, heat="none")}, ["heat = 'none'"]),
    ],
)
def test_bad_input(arguments: dict[str, Any], fragments: list[str], digits_bundle: Path) -> None:
    refused(lambda: ztdeploy.load(digits_bundle, threads=1, **arguments), *fragments, kind=InputError)


@pytest.mark.parametrize(
    "given",
    [{"min_fidelity": 2}, {"margin": 1}, {"hold_s": -1}, {"heat": -1}, {"heat": 1.5}, {"power_modes": {"15W": True}}],
)
def test_settings_out_of_range(given: dict[str, Any]) -> None:
    refused(lambda: Governor(30, **given), kind=InputError)


def test_a_bundle_with_one_variant(machine: Machine, digits_bundle: Path, tmp_path: Path) -> None:
    bundle = linked_copy(digits_bundle, tmp_path / "bundle")

    def only_dense(manifest: Any) -> None:
        manifest["variants"] = [one for one in manifest["variants"] if one["name"] == "dense"]
        manifest["default_variant"] = "dense"

    edit(bundle, only_dense)
    refused(lambda: Simulated(machine, Governor(30), bundle), "1 variant", "--keep-ratio 0.8,0.6,0.4", kind=InputError)


def test_switching_by_hand_is_refused(machine: Machine, digits_bundle: Path) -> None:
    with Simulated(machine, Governor(25), digits_bundle) as runner:
        refused(lambda: runner.switch(0.7), "a governor switches", kind=InputError)
