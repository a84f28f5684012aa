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
    # To look through all that libraries hold takes as long as importing NumPy. Libraries of the host complain where it
    # is left out, and a process that has loaded them takes seconds anyway.
    if "torch" not in sys.modules and "onnx" not in sys.modules:
        gc.freeze()
    sys.exit(code)


def _have_a_home() -> None:
    """Libraries ask for a home when they are imported; a container's arbitrary user has none."""
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = "/nonexistent"  # as Debian has it; what wants to write there says so
