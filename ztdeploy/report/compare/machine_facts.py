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
        for name in ("ztdeploy", "numpy")
    },
}
#: What was built; the weights are those that the bundle's maker named.
_BUNDLE = {"model": "timm_name", "weights": "weights", "profile": "profile", "backend": "backend", "runtime": "runtime"}


def differences(baseline: Sequence[BenchReport], candidate: Sequence[BenchReport]) -> tuple[Difference, ...]:
    """What is not alike, the machine first, then what ran on it, then how it was set up.

    What one of the two could not read is no difference.
    """
    facts: list[tuple[str, bool, Callable[[BenchReport], object]]] = [
        *((name, True, lambda run, read=read: read(run.machine)) for name, read in _IDENTITY.items()),
        *((name, False, lambda run, field=field: getattr(run.bundle, field)) for name, field in _BUNDLE.items()),
        *((name, False, lambda run, read=read: read(run.machine)) for name, read in _CONDITIONS.items()),
    ]
    found = []
    for what, other_machine, read in facts:
        before, after = _values(baseline, read), _values(candidate, read)
        if before and after and before != after:
            found.append(Difference(what=what, baseline=before, candidate=after, other_machine=other_machine))
    return tuple(found)


def _values(runs: Sequence[BenchReport], read: Callable[[BenchReport], object]) -> str:
    """All that the runs of a report say, as a rule one thing."""
    values = {_words(value) for run in runs if (value := read(run)) is not None}
    return printable(" and ".join(sorted(values)))


def _words(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)
