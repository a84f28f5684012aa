"""Commands as people type them: what is left of a process that has ended."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ztdeploy
from ztdeploy.core.processor import REPORT

CHECKOUT = Path(ztdeploy.__file__).resolve().parents[1]
_HIDING = CHECKOUT / "tests" / "helpers" / "fake_device" / "python"


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def error(self) -> str:
        """The one line that says what is wrong."""
        (line,) = [line for line in self.err.splitlines() if line.startswith("error: ")]
        return line


def sharing(traces: Path) -> str:
    """What a command runs first whose builds shall find and leave traces there, as the fixture `traces` says."""
    return (
        "import dataclasses, pathlib\nimport ztdeploy.pipeline as pipeline\nbuild = pipeline.build\n"
        f"shared = pathlib.Path({str(traces)!r})\n"
        "pipeline.build = lambda request, *others: build(dataclasses.replace(request, cache=shared), *others)\n"
    )


def run_ztdeploy(*arguments: str | Path, cwd: Path, first: str = "", hidden: str = "") -> Done:
    """`ztdeploy ARGUMENTS` in a process of its own, that runs a statement first and lacks the modules in `hidden`."""
    shell = {name: value for name, value in os.environ.items() if "ZTDEPLOY" not in name or name == REPORT}
    paths = [str(_HIDING), str(CHECKOUT)] if hidden else [str(CHECKOUT)]
    done = subprocess.run(
        [sys.executable, "-c", f"{first}\nfrom ztdeploy.cli import main\nmain()", *map(str, arguments)],
        cwd=cwd,
        env={
            **shell,
            "PYTHONPATH": os.pathsep.join(paths),
            "FAKE_HIDDEN": hidden,
            "ZTDEPLOY_CACHE": str(cwd / "cache"),
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return Done(done.returncode, done.stdout, done.stderr)
