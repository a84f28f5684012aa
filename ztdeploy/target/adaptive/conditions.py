"""What a governor reads of the machine besides latency: heat, the battery, the power mode, and what they rule out; and
how many cores others leave free.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ztdeploy.core.errors import InputError, did_you_mean
from ztdeploy.core.kernel_files import usable_threads
from ztdeploy.target.adaptive.control import Rung
from ztdeploy.target.adaptive.governor import Cause, Governor, Limit
from ztdeploy.target.measure.machine import (
    CpuMeter,
    TripPoint,
    battery_charge,
    on_battery,
    power_mode,
    trip_points,
    usable_cores,
)

#: Seconds from one look at the machine to the next: each opens a few files of the kernel.
EVERY_S = 2.0
#: Degrees Celsius that a zone must have cooled down below the limit for the limit to end.
_COOLED_C = 2.0
#: Seconds from one look at the cores to the next at least: the kernel counts in hundredths.
_COUNT_S = 0.25


@dataclass(frozen=True)
class Condition:
    """The machine at one moment; None: it does not say."""

    zone: TripPoint | None = None  #: that is nearest to its trip point
    celsius: float | None = None
    battery: float | None = None  #: charge from 0 to 1 while discharging
    mode: str | None = None

    @property
    def below_trip_c(self) -> float:
        """Degrees Celsius up to the trip point."""
        return float("inf") if self.zone is None or self.celsius is None else self.zone.celsius - self.celsius


class Conditions:
    """Limits on what may run. What the machine has is found once; what it lacks is not read again."""

    def __init__(self, governor: Governor, rungs: Sequence[Rung]) -> None:
        """
        Raises:
            InputError: a limit names a variant that is not among those to choose from.
        """
        self._governor, self._names = governor, [rung.variant for rung in rungs]  # of one variant one behind the other
        self._modes = {mode: self._best("power_modes", limit) for mode, limit in governor.power_modes.items()}
        self._heat, self._battery = self._best("heat", governor.heat), self._best("low_battery", governor.low_battery)
        self._zones = trip_points() if self._heat else ()
        self._has_battery = bool(self._battery) and battery_charge() is not None
        self._has_modes = any(self._modes.values()) and power_mode() is not None
        self._hot = False

    @property
    def any(self) -> bool:
        """Whether there is anything to read here."""
        return bool(self._zones) or self._has_battery or self._has_modes

    def read(self) -> Condition:
        zones = [(zone.celsius - now, zone, now) for zone in self._zones if (now := zone.now_c) is not None]
        _, zone, celsius = min(zones, key=lambda one: one[0], default=(0.0, None, None))
        charge = battery_charge() if self._has_battery and on_battery() else None
        return Condition(zone, celsius, charge, power_mode() if self._has_modes else None)

    def limit(self, now: Condition) -> tuple[int, Cause, str]:
        """The best rung that may run, what rules out better ones, and that as a sentence's beginning."""
        margin, found = self._governor.heat_margin_c, list[tuple[int, Cause, str]]()
        self._hot = now.below_trip_c <= margin + (_COOLED_C if self._hot else 0)
        if self._hot and now.zone is not None:
            words = f"'{now.zone.zone}' is at {now.celsius:.1f} C, near its trip point at {now.zone.celsius:.1f} C"
            found.append((self._heat, "heat", words))
        if now.battery is not None and now.battery < self._governor.low_battery_below:
            words = f"the battery is at {100 * now.battery:.0f} % and discharging"
            found.append((self._battery, "battery", words))
        if now.mode is not None:
            known = (limit for mode, limit in self._modes.items() if mode.casefold() in now.mode.casefold())
            found.append((max(known, default=0), "power mode", f"the power mode is {now.mode}"))
        return max(found, key=lambda one: one[0], default=(0, "heat", ""))

    def _best(self, name: str, limit: Limit) -> int:
        """The rung that a limit means; 0: none."""
        if isinstance(limit, str):
            if limit not in self._names:
                given = f"{name} = '{limit}'"
                raise InputError(given, "a variant that the governor may choose", did_you_mean(limit, self._names))
            return self._names.index(limit)
        variants = list(dict.fromkeys(self._names))
        return self._names.index(variants[min(limit or 0, len(variants) - 1)])


class FreeCores:
    """How many of the cores that this process may use others have left free since the look before."""

    def __init__(self) -> None:
        self._meter, self._cores = CpuMeter(), len(usable_cores())
        self._latest, self._free = self._meter.so_far(), float("inf")

    def __call__(self) -> float:
        """Cores, at most what the container may use; infinity where the kernel says nothing."""
        found, before = self._meter.so_far(), self._latest
        if found.wall_s - before.wall_s < _COUNT_S:
            return self._free
        self._latest = found
        if found.busy_s is not None and before.busy_s is not None:
            others = (found.busy_s - before.busy_s - found.own_s + before.own_s) / (found.wall_s - before.wall_s)
            self._free = min(usable_threads(), self._cores - others)
        return self._free
