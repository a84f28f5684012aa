"""What a container may use: its control group's CPU quota, how often that stopped it, and its memory limit.

Both versions of control groups are read, and every level above the process's own group counts: the tightest wins.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from ztdeploy.core.kernel_files import number, table, text

#: What version 1 says for "no limit" is about 2^63.
_NO_LIMIT = 2**60


def cpu_quota_cores(root: Path = Path("/")) -> float | None:
    """How many cores' time the process may use; None without a quota."""
    quotas = []
    for folder in _groups(root, "cpu"):
        if limits := (text(folder / "cpu.max") or "").split():
            if len(limits) == 2 and all(part.isdigit() for part in limits) and int(limits[1]):
                quotas.append(int(limits[0]) / int(limits[1]))
        else:
            quota, period = number(folder / "cpu.cfs_quota_us"), number(folder / "cpu.cfs_period_us")
            if quota is not None and quota > 0 and period:
                quotas.append(quota / period)
    return round(min(quotas), 3) if quotas else None


def times_stopped(root: Path = Path("/")) -> int | None:
    """How often the quota has stopped the process's group, and those above it, so far."""
    counts = [table(folder / "cpu.stat", " ").get("nr_throttled", "") for folder in _groups(root, "cpu")]
    numbers = [int(count) for count in counts if count.isdigit()]
    return sum(numbers) if numbers else None


def memory_limit_bytes(root: Path = Path("/")) -> int | None:
    """None without a limit."""
    limits = []
    for folder in _groups(root, "memory"):
        limit = number(folder / "memory.max")
        limits.append(number(folder / "memory.limit_in_bytes") if limit is None else limit)
    real = [limit for limit in limits if limit is not None and limit < _NO_LIMIT]
    return min(real) if real else None


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """The folders of the process's group and of all groups above it, in version 2 and version 1."""
    mounts = root / "sys/fs/cgroup"
    for line in (text(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if not controllers:
            hierarchies = [mounts, mounts / "unified"]
        elif controller in controllers.split(","):
            hierarchies = [mounts / controllers, mounts / controller]
        else:
            continue
        # Inside a container the path may be the host's, which is not there; its top is then the container's own group.
        group = PurePosixPath(path.lstrip("/"))
        found = next((mount for mount in hierarchies if mount.is_dir()), None)
        if found is not None and ".." not in group.parts:
            yield from (found / above for above in [group, *group.parents] if (found / above).is_dir())
