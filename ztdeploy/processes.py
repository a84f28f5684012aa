"""Children of our own interpreter: how they find this package, installed or not."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path


def module_command(module: str, *arguments: str) -> list[str]:
    """`python -m module ...` with this interpreter."""
    return [sys.executable, "-m", module, *arguments]


def module_environment() -> dict[str, str]:
    """This process's environment, with this package on the path."""
    given = os.environ.get("PYTHONPATH")
    package = str(Path(__file__).parents[1])
    return {**os.environ, "PYTHONPATH": os.pathsep.join([*([given] if given else []), package])}


def how_it_ended(code: int) -> str:
    """An exit code in words: "was killed by SIGKILL", "exited with code 1"."""
    if code >= 0:
        return f"exited with code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"
