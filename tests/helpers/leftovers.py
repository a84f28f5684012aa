"""What a process that was killed leaves, made and found by tests."""

from __future__ import annotations

from pathlib import Path

from ztdeploy.core.files import is_temporary, new_name


def leftovers(folder: Path) -> list[Path]:
    """Temporary files and folders of ours, at any depth."""
    return [path for path in folder.rglob("*") if is_temporary(path.name)]


def dead_folder(home: Path) -> Path:
    """A hidden folder whose process has ended, with half a file in it."""
    folder = home / new_name()
    folder.mkdir()
    (folder / "lock").touch()
    (folder / "half.onnx").write_bytes(b"half")
    return folder
