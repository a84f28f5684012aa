"""Child processes of our own interpreter: how they find this package, answer, and end."""

from __future__ import annotations

import os
import resource
import signal
import sys
from pathlib import Path
from typing import TextIO

from ztdeploy.core.kernel_files import kibibytes, table

_PR_SET_PDEATHSIG = 1


def module_command(module: str, *arguments: str) -> list[str]:
    """`python -m module ...` with this interpreter."""
    return [sys.executable, "-m", module, *arguments]


def module_environment() -> dict[str, str]:
    """This process's environment, with this package on the path."""
    given = os.environ.get("PYTHONPATH")
    package = str(Path(__file__).parents[2])
    return {**os.environ, "PYTHONPATH": os.pathsep.join([*([given] if given else []), package])}


def how_it_ended(code: int) -> str:
    """An exit code in words: "was killed by SIGKILL", "exited with code 1"."""
    if code >= 0:
        return f"exited with code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


def own_standard_output() -> TextIO:
    """Standard output for our answers alone: from now on, what libraries print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


def end_with_parent() -> None:
    """Have the kernel kill this process when the thread that started it ends, whatever it is doing then."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def peak_rss_mb() -> float:
    """The largest resident memory of this process so far, in MB of 10^6 bytes.

    `ru_maxrss` counts from before `exec`, when the process still was a copy of its parent; the kernel's own
    high-water mark does not.
    """
    amount = kibibytes(table(Path("/proc/self/status")).get("VmHWM"))
    if amount is None:
        amount = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(amount * 1024 / 1e6, 1)
