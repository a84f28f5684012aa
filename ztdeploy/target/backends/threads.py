"""How many threads a process may really use: containers see the host's cores, the scheduler does not lie."""

from __future__ import annotations

import math
import os
from pathlib import Path


def usable_threads(limit: int = 0) -> int:
    """Cores in the scheduler's affinity set, bounded by the container's CPU quota and by `limit` (0: no limit)."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    counts = [affinity, cpu_quota(), limit or affinity]
    return max(1, min(count for count in counts if count is not None))


def cpu_quota(cgroup: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Whole cores that the control group's quota amounts to, rounded up; None without a quota."""
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
        return None if quota == "max" else max(1, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError, ZeroDivisionError):
        return None
