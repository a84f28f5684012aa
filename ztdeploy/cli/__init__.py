"""The command line: parses, calls one function, prints. Nothing is decided here."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path


def main() -> None:
    """Run the command line; errors become one line on standard error and a documented exit code."""
    from ztdeploy.cli.streams import hear_interrupts, prepare_streams

    prepare_streams()
    _have_a_home()
    from ztdeploy.cli.app import run
    from ztdeploy.cli.output import stopping

    hear_interrupts(stopping)
    code = run(sys.argv[1:])
    gc.freeze()  # the process ends: looking through all that its libraries hold takes as long as importing NumPy
    sys.exit(code)


def _have_a_home() -> None:
    """Libraries ask for a home when they are imported; a container's arbitrary user has none."""
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = "/nonexistent"  # as Debian has it; what wants to write there says so
