"""Reading the small text files in which the kernel says how the machine is; what cannot be read is None."""

from __future__ import annotations

from pathlib import Path


def text(path: Path) -> str | None:
    """A file's text without the white space and the zero bytes around it; None where there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip(" \t\r\n\0") or None
    except OSError:
        return None


def number(path: Path) -> int | None:
    """A file's one decimal number; None where there is none."""
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
    """Lines of `key: value`; the first of equal keys counts. Empty where the file cannot be read."""
    found: dict[str, str] = {}
    for line in (text(path) or "").splitlines():
        key, _, value = line.partition(separator)
        found.setdefault(key.strip(), value.strip().strip('"'))
    return found


def kibibytes(amount: str | None) -> int | None:
    """What the kernel means by "24684132 kB"; None where that is not what it says."""
    parts = (amount or "").split()
    return int(parts[0]) if parts and parts[0].isdigit() else None


def folders(parent: Path, pattern: str) -> list[Path]:
    """Entries that match, in order; empty where the parent cannot be listed."""
    try:
        return sorted(parent.glob(pattern))
    except OSError:
        return []
