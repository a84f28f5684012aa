"""Reading the small text files in which the kernel describes the machine; what cannot be read is None."""

from __future__ import annotations

from pathlib import Path


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
