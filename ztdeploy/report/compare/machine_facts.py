"""What two reports were measured on, side by side. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ztdeploy.core.records import Record
from ztdeploy.core.text import printable
from ztdeploy.target.measure.bench_report import BenchReport
from ztdeploy.target.measure.machine import Machine


class Difference(Record):
    """Something that is not alike about two runs."""

    what: str
    baseline: str
    candidate: str
    other_machine: bool = False  #: says that these are two machines

    def __str__(self) -> str:
        return f"{self.what}: {self.baseline} -> {self.candidate}"


#: What a machine is.
_IDENTITY: dict[str, Callable[[Machine], object]] = {
    "processor": lambda machine: machine.processor,
    "architecture": lambda machine: machine.architecture,
    "board": lambda machine: machine.board,
    # A Jetson's power modes switch cores off.
    "cores": lambda machine: None if machine.jetson else machine.cores_online,
    "GPU": lambda machine: ", ".join(gpu.name for gpu in machine.gpus) or None,
}
#: How it was set up.
_CONDITIONS: dict[str, Callable[[Machine], object]] = {
    "cores in use": lambda machine: ", ".join(map(str, machine.usable_cores)),
    "quota of cores": lambda machine: machine.quota_cores or "none",
    "governor": lambda machine: ", ".join(machine.governors) or None,
    "highest allowed clock in MHz": lambda machine: machine.allowed_clock_mhz,
    "boost": lambda machine: machine.boost,
    "power mode": lambda machine: machine.jetson.power_mode if machine.jetson else None,
    "memory in GB": lambda machine: None if machine.memory_mb is None else round(machine.memory_mb / 1e3),
    "memory limit in MB": lambda machine: machine.memory_limit_mb or "none",
    "system": lambda machine: machine.system,
    "kernel": lambda machine: machine.kernel,
    "L4T": lambda machine: machine.jetson.release if machine.jetson else None,
    "GPU driver": lambda machine: ", ".join(gpu.driver for gpu in machine.gpus if gpu.driver) or None,
    "Python": lambda machine: machine.python,
    **{
        name: lambda machine, name=name: machine.versions.get(name)  # type: ignore[misc]
        for name in ("ztdeploy", "numpy", "tensorrt")
    },
}
#: What was built; the weights are those that the bundle's maker named.
_BUNDLE: dict[str, Callable[[BenchReport], object]] = {
    "model": lambda run: run.bundle.timm_name,
    "weights": lambda run: run.bundle.weights,
    "profile": lambda run: run.bundle.profile,
    "backend": lambda run: run.bundle.backend,
    "runtime": lambda run: run.bundle.runtime,
}


def differences(baseline: Sequence[BenchReport], candidate: Sequence[BenchReport]) -> tuple[Difference, ...]:
    """What is not alike, the machine first, then what ran on it, then how it was set up.

    What one of the two could not read is no difference.
    """
    found: list[Difference | None] = []
    for name, read in _IDENTITY.items():
        found.append(_difference(name, _values(baseline, read), _values(candidate, read), other_machine=True))
    for name, of_run in _BUNDLE.items():
        pair = [printable(", ".join(sorted({str(of_run(run)) for run in runs}))) for runs in (baseline, candidate)]
        found.append(_difference(name, *pair))
    for name, read in _CONDITIONS.items():
        found.append(_difference(name, _values(baseline, read), _values(candidate, read)))
    return tuple(one for one in found if one is not None)


def _values(runs: Sequence[BenchReport], read: Callable[[Machine], object]) -> str:
    """All that the runs of a report say, as a rule one thing."""
    values = {_words(value) for run in runs if (value := read(run.machine)) is not None}
    return printable(" and ".join(sorted(values)))


def _words(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _difference(what: str, baseline: str, candidate: str, *, other_machine: bool = False) -> Difference | None:
    if baseline == candidate or not (baseline and candidate):
        return None
    return Difference(what=what, baseline=baseline, candidate=candidate, other_machine=other_machine)
