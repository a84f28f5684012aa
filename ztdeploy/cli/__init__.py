"""The command line: parses, calls one function, prints. Nothing is decided here."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; errors become one line on standard error and a documented exit code."""
    from ztdeploy.cli.app import run
    from ztdeploy.cli.output import survive_any_text

    survive_any_text()
    sys.exit(run(sys.argv[1:]))
