"""Commands as people type them: what is left of a process that has ended."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ztdeploy
from ztdeploy.core.processor import REPORT
from ztdeploy.core.profile import data_folder

CHECKOUT = Path(ztdeploy.__file__).resolve().parents[1]
#: Only what hangs takes so long, on the slowest of machines.
HANG_S = 900
_PR_SET_PDEATHSIG = 1
_STARTED: list[subprocess.Popen[str]] = []
_HIDING = CHECKOUT / "tests" / "helpers" / "fake_device" / "python"


def result_in(text: str) -> Any:
    """What a command has found, or its error, out of the envelope of `--json`, which is held against its schema."""
    from jsonschema import Draft202012Validator

    said = json.loads(text)
    assert (said["ztdeploy"], said["schema"]) == (ztdeploy.__version__, 1)
    if said["verb"] is not None:
        file = data_folder("schemas") / f"{said['verb'].replace(' ', '-')}.schema.json"
        Draft202012Validator(json.loads(file.read_text())).validate(said)
    return said["result"] if "result" in said else said["error"]


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        return result_in(self.out)

    @property
    def error(self) -> str:
        """The one line that says what is wrong."""
        (line,) = [line for line in self.err.splitlines() if line.startswith("error: ")]
        return line


def started(command: Sequence[str], *, stdout: int = subprocess.PIPE, **options: Any) -> subprocess.Popen[str]:
    """A process in a group of its own, which ends with its test, or with pytest where that is killed."""
    child = subprocess.Popen(
        command,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=_end_with_parent if sys.platform == "linux" else None,
        **options,
    )
    _STARTED.append(child)
    return child


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def end_started() -> None:
    """End what a test has started, with all that these processes started in turn."""
    while _STARTED:
        child = _STARTED.pop()
        if child.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        for pipe in (child.stdout, child.stderr):
            if pipe is not None:
                pipe.close()


def wait_for(until: Callable[[], bool], child: subprocess.Popen[str]) -> None:
    """Wait until something holds while a process runs."""
    deadline = time.monotonic() + HANG_S
    while not until():
        assert child.poll() is None, child.communicate()
        assert time.monotonic() < deadline, "it hangs"
        time.sleep(0.02)


def sharing(traces: Path) -> str:
    """What a command runs first whose builds shall find and leave traces there, as the fixture `traces` says."""
    return (
        "import dataclasses, pathlib\nimport ztdeploy.jobs.build as pipeline\nbuild = pipeline.build\n"
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
        timeout=HANG_S,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return Done(done.returncode, done.stdout, done.stderr)
