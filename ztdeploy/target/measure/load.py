"""How much of the processor others used while something was measured, from the kernel's own accounts."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from ztdeploy.core.kernel_files import text
from ztdeploy.core.records import Record


class CpuTimes(Record):
    """Seconds that some cores have spent since the machine started, added up over these cores."""

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


def cpu_seconds_of(pid: int) -> float:
    """What all threads of one process have used so far; 0 once it is gone."""
    fields = (text(Path(f"/proc/{pid}/stat")) or "").rpartition(")")[2].split()  # its name may hold spaces
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") if len(fields) > 12 else 0.0


class Accounts:
    """What our own processes and all processes use from now on, in seconds, over some cores."""

    def __init__(self, cores: Collection[int], pids: Collection[int], root: Path = Path("/")) -> None:
        self._cores, self._pids, self._root = tuple(cores), (os.getpid(), *pids), root
        self._own = self._own_now()
        self._all = read_cpu_times(self._cores, root)

    def so_far(self) -> tuple[float, CpuTimes | None]:
        """Our own processes' seconds, and everybody's where these can be read."""
        everybody = read_cpu_times(self._cores, self._root)
        spent = everybody - self._all if everybody and self._all else None
        return self._own_now() - self._own, spent

    def _own_now(self) -> float:
        return sum(cpu_seconds_of(pid) for pid in self._pids)
