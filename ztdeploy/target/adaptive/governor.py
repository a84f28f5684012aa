"""What a governor is asked for, and what it decides: settings and records, without any rule."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from ztdeploy.core import arguments
from ztdeploy.core.arguments import Numbers
from ztdeploy.core.errors import InputError
from ztdeploy.core.records import Record

#: "start": the first choice; "missed": the target was; "room": a better variant or more threads hold it; "tried": they
#: did not; "out of reach": what is fastest misses it, too. The others are limits that the machine sets.
Cause = Literal["start", "missed", "room", "tried", "out of reach", "heat", "battery", "power mode"]
#: What a limit leaves: the name of the best variant that may still run, or how many of the best may not. None: ignored.
Limit = str | int | None
_SHARE_BELOW_ONE = Numbers(0, 0.9)


class GovernorDecision(Record):
    """One decision of a governor, with all that it stands on. `before` and `after` are names of variants; the numbers
    of their threads are None where there is one number only.
    """

    at_s: float  #: since the runner was loaded, by a clock that never steps
    before: str | None  #: None: the first choice
    after: str
    cause: Cause
    reason: str  #: a sentence
    target_ms: float
    p95_ms: float  #: of the latest calls on `before`; at the start of the warm-up's calls on `after`
    slowdown: float  #: `p95_ms` over what was measured of the same variant on as many threads at load
    before_threads: int | None = None
    after_threads: int | None = None
    temperature_c: float | None = None  #: of the thermal zone that is nearest to its trip point
    battery: float | None = None  #: charge from 0 to 1 while discharging
    power_mode: str | None = None

    @property
    def is_change(self) -> bool:
        return self.before is not None and (self.before, self.before_threads) != (self.after, self.after_threads)

    @property
    def change(self) -> str:
        """Such as "dense on 2 threads -> dense on 1 thread"; what runs where that is no change."""
        after = on_threads(self.after, self.after_threads)
        if self.before is None or not self.is_change:
            return after
        return f"{on_threads(self.before, self.before_threads)} -> {after}"


def on_threads(variant: str, threads: int | None) -> str:
    """Such as "keep-0.70 on 1 thread"; None: the variant alone."""
    return variant if threads is None else f"{variant} on {threads} thread{'' if threads == 1 else 's'}"


@dataclass(frozen=True)
class Governor:
    """How to hold a latency by switching between the variants of a bundle.

        runner = ztdeploy.load("deit_s-cpu", governor=ztdeploy.Governor(latency_ms=30, min_fidelity=0.97))

    Args:
        latency_ms: the 95th percentile of the latency of a call that is held, in milliseconds.
        min_fidelity: leave out variants whose recorded evaluation is below it, or that have none, from 0 to 1. By
            default any variant may run.
        batch: images in one call whose latency is held. By default the profile's smallest, or the engine's own.
        variants: names of the variants to choose from. By default all.
        margin: a variant is chosen if its expected p95 is this share below the target, from 0 to 0.9.
        hold_s: seconds that a better variant must be expected to hold the target before it is tried.
        strict: a target that the fastest variant misses at load is an error. If false, the fastest variant runs.
        heat: what may run where a thermal zone is within `heat_margin_c` degrees of its trip point: the name of the
            best variant, how many of the best may not, or None to ignore heat. Likewise the next two.
        heat_margin_c: degrees Celsius.
        low_battery: what may run on battery with less charge than `low_battery_below`.
        low_battery_below: from 0 to 1.
        power_modes: what may run in a power mode, by its name, such as `{"15W": 2, "low-power": "keep-0.50"}`.
        on_decision: called with every `GovernorDecision`, by the thread whose call led to it.

    Raises:
        InputError: a value of another type, or out of range.
    """

    latency_ms: float
    min_fidelity: float | None = None
    batch: int | None = None
    variants: tuple[str, ...] = ()
    margin: float = 0.1
    hold_s: float = 2.0
    strict: bool = True
    heat: Limit = 1
    heat_margin_c: float = 5.0
    low_battery: Limit = 1
    low_battery_below: float = 0.2
    power_modes: Mapping[str, str | int] = field(default_factory=dict)
    on_decision: Callable[[GovernorDecision], object] | None = None

    def __post_init__(self) -> None:
        arguments.number_in("latency_ms", self.latency_ms, arguments.MILLISECONDS)
        if self.min_fidelity is not None:
            arguments.number_in("min_fidelity", self.min_fidelity, arguments.SHARE)
        if self.batch is not None:
            arguments.whole_number("batch", self.batch, arguments.BATCH)
        arguments.number_in("margin", self.margin, _SHARE_BELOW_ONE)
        arguments.number_in("hold_s", self.hold_s, arguments.SECONDS)
        arguments.number_in("heat_margin_c", self.heat_margin_c, Numbers(0, 100))
        arguments.number_in("low_battery_below", self.low_battery_below, arguments.SHARE)
        if isinstance(self.variants, str):
            object.__setattr__(self, "variants", (self.variants,))
        for name in self.variants:
            arguments.text("variants", name)
        for name, limit in {"heat": self.heat, "low_battery": self.low_battery, **self.power_modes}.items():
            if (
                isinstance(limit, bool)
                or not isinstance(limit, str | int | None)
                or (isinstance(limit, int) and limit < 0)
            ):
                raise InputError(
                    f"{name} = {arguments.shown(limit)}",
                    "the name of a variant, or how many of the best variants may not run",
                    "give for instance 1",
                )
