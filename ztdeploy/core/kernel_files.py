"""What the kernel says of the machine in small text files, such as how many threads a container may use.

What cannot be read is None.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

#: Where `proc`, `sys` and `etc` lie. Tests describe another machine below another root.
ROOT = Path("/")


def at(path: str) -> Path:
    """Where a file of the system lies."""
    return ROOT / path


def text(path: Path) -> str | None:
    """A file's text without surrounding white space and zero bytes; None where there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip(" \t\r\n\0") or None
    except OSError:
        return None


def number(path: Path) -> int | None:
    """The single decimal number in a file; None where there is none."""
    found = text(path)
    try:
        return None if found is None else int(found)
    except ValueError:
        return None


def scaled(path: Path, factor: float) -> float | None:
    """A file's number times `factor`, rounded to thousandths."""
    found = number(path)
    return None if found is None else round(found * factor, 3)


def table(path: Path, separator: str = ":") -> dict[str, str]:
    """A file's lines of `key: value`; of equal keys the first counts. Empty where the file cannot be read."""
    found: dict[str, str] = {}
    for line in (text(path) or "").splitlines():
        key, _, value = line.partition(separator)
        found.setdefault(key.strip(), value.strip().strip('"'))
    return found


def kibibytes(amount: str | None) -> int | None:
    """The number in the kernel's "24684132 kB"; None where the text has another form."""
    parts = (amount or "").split()
    return int(parts[0]) if parts and parts[0].isdigit() else None


def folders(parent: Path, pattern: str) -> list[Path]:
    """Entries that match, in order; empty where the parent cannot be listed."""
    try:
        return sorted(parent.glob(pattern))
    except OSError:
        return []


def usable_threads(limit: int = 0) -> int:
    """How many threads a process may really use: containers see the host's cores, the scheduler does not lie.

    Returns:
        Cores in the scheduler's affinity set, bounded by the container's CPU quota and by `limit` (0: no limit).
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota_cores()
    return max(1, min(affinity, limit or affinity, affinity if quota is None else math.ceil(quota)))


def cpu_quota_cores() -> float | None:
    """How many cores' time the process's control groups may use; the tightest counts. None without a quota."""
    quotas = []
    for group in control_groups("cpu"):
        quota, _, period = (text(group / "cpu.max") or "").partition(" ")
        if not quota:
            quota, period = (text(group / f"cpu.cfs_{name}_us") or "" for name in ("quota", "period"))
        if quota.isdigit() and int(quota) and period.isdigit() and int(period):
            quotas.append(int(quota) / int(period))
    return round(min(quotas), 3) if quotas else None


def control_groups(controller: str) -> Iterator[Path]:
    """The folders of the process's control group and of all groups above it, in version 2 and version 1."""
    mounts = at("sys/fs/cgroup")
    for line in (text(at("proc/self/cgroup")) or "").splitlines():
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
