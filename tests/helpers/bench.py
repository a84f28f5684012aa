"""Made-up measurements."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from helpers.machines import SERVER, plant
from ztdeploy.core import kernel_files
from ztdeploy.target.measure import machine as module
from ztdeploy.target.measure.bench_report import ConfigurationReport, Turn
from ztdeploy.target.measure.machine import Machine, State, read_machine, read_state
from ztdeploy.target.measure.statistics import summarise


def configuration(
    variant: str = "dense",
    rounds: Sequence[Sequence[float]] = (),
    *,
    batch: int = 1,
    threads: int | None = 1,
    gmacs: float = 1.0,
    clocks: Sequence[float] = (),
    wall_s: float = 1.0,
    own_cpu_s: float = 1.0,
    busy_cpu_s: float | None = 1.0,
    stolen_s: float = 0.0,
    peak_rss_mb: float = 100.0,
    answered: tuple[int, ...] = (),
) -> ConfigurationReport:
    """A configuration with these milliseconds, round by round.

    Args:
        answered: images that each stage of a cascade answered in a round.
    """
    turns = [
        Turn(
            round=number,
            place=0,
            samples_ms=tuple(samples),
            wall_s=wall_s,
            own_cpu_s=own_cpu_s,
            busy_cpu_s=busy_cpu_s,
            stolen_s=stolen_s,
            clock_mhz=clocks[number] if clocks else None,
            gpu_clock_mhz=None,
            answered=answered,
        )
        for number, samples in enumerate(rounds)
    ]
    latency = summarise([sample for samples in rounds for sample in samples]) if rounds else None
    return ConfigurationReport(
        variant=variant,
        keep_ratio=None,
        batch=batch,
        threads=threads,
        gmacs=gmacs,
        model_mb=1.0,
        engine_mb=1.0,
        shared_weights_mb=0.0,
        latency=latency,
        images_per_s=batch * 1000 / latency.mean_ms if latency else None,
        peak_rss_mb=peak_rss_mb,
        turns=tuple(turns),
    )


def machine(
    tmp_path: Path, files: dict[str, str] = SERVER, cores: Sequence[int] = (0, 1, 2, 3)
) -> tuple[Machine, State]:
    """A faked machine's records."""
    with faked(plant(tmp_path, files), cores):
        return read_machine(), read_state()


@contextmanager
def faked(root: Path, cores: Sequence[int] = (0, 1, 2, 3)) -> Iterator[None]:
    """As if this machine were the one whose files lie below a root, where `nvidia-smi` answers nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel_files, "ROOT", root)
        patch.setattr(module, "usable_cores", lambda: tuple(cores))
        patch.setattr(module, "nvidia_smi", lambda: None)
        yield
