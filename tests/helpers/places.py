"""Places that a user may have and a test has to make: mount points, and folders of somebody else."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ztdeploy.core.errors import ZtdeployError

NOBODY = 65534


def mounted(*arguments: str | Path) -> None:
    """Mount for one test; undone by whoever uses it."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        pytest.skip("mounting needs root on Linux")
    try:
        subprocess.run(["mount", *map(str, arguments)], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"this machine mounts nothing: {getattr(error, 'stderr', error)}")


def as_nobody(call: Callable[[], object]) -> int:
    """Do something in a child that may not write everywhere, as root may; the exit code that it would end with."""
    child = os.fork()
    if child == 0:
        code = 99
        try:
            if os.geteuid() == 0:
                os.setgid(NOBODY)
                os.setuid(NOBODY)
            call()
            code = 0
        except ZtdeployError as error:
            code = error.exit_code
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
