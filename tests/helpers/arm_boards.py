"""Emulated Arm boards: what `scripts/arm64.sh` has made of `tests/arm64/boards`."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from helpers.processes import HANG_S

#: By what their processors know of 8-bit integers: products that widen, dot products, and products of matrices.
BOARDS = ("raspberry-pi4", "raspberry-pi5", "jetson-thor")


@dataclass(frozen=True)
class Board:
    """Runs programs as the board would, with nothing of this checkout but the wheel that is installed there."""

    folder: Path

    def run(self, program: str, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
        """`python`, `ztdeploy`, `ztdeploy-run` or `ztdeploy-check`."""
        environment = {"PATH": "/usr/bin:/bin", "HOME": str(cwd), "LANG": "C.UTF-8"}
        command = [str(self.folder / "bin" / program), *map(str, arguments)]
        return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=HANG_S)

    def must(self, program: str, *arguments: object, cwd: Path) -> str:
        """The same, and what it prints."""
        done = self.run(program, *arguments, cwd=cwd)
        assert done.returncode == 0, done.stderr[-4000:]
        return done.stdout
