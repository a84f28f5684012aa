"""How much of the processor others used while something was measured, from the kernel's own accounts."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from ztdeploy.measure.kernel_files import text


class CpuTimes(BaseModel):
    """Seconds that some cores have spent since the machine started, added up over these cores."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    busy_s: float  #: everything but idling, waiting for disks, and what was stolen
    stolen_s: float  #: a hypervisor gave the core to another machine

    def __sub__(self, other: CpuTimes) -> CpuTimes:
        return CpuTimes(busy_s=self.busy_s - other.busy_s, stolen_s=self.stolen_s - other.stolen_s)


def read_cpu_times(cores: Collection[int], root: Path = Path("/"), *, ticks_per_second: int = 0) -> CpuTimes | None:
    """`/proc/stat` of these cores; None where it cannot be read, as in some containers.

    Args:
        ticks_per_second: the accounts' unit; 0: as this system says. It is 100 nearly everywhere, so that a figure over
            one second is good to one hundredth of a core.
    """
    ticks = ticks_per_second or os.sysconf("SC_CLK_TCK")
    wanted, busy, stolen, found = {f"cpu{core}" for core in cores}, 0, 0, False
    for line in (text(root / "proc/stat") or "").splitlines():
        name, *fields = line.split()
        if name not in wanted or len(fields) < 4 or not all(field.isdigit() for field in fields):
            continue
        # user, nice, system, idle, iowait, irq, softirq, steal; guests' time is in user and nice already
        times = [*map(int, fields), 0, 0, 0, 0][:8]
        busy += sum(times[:3]) + sum(times[5:7])
        stolen += times[7]
        found = True
    return CpuTimes(busy_s=busy / ticks, stolen_s=stolen / ticks) if found else None


def cores_of_others(spent: CpuTimes, own_s: float, wall_s: float) -> float:
    """How many cores other processes kept busy on average; never below 0, which the accounts' coarseness can give."""
    return max(0.0, spent.busy_s - own_s) / wall_s if wall_s > 0 else 0.0
