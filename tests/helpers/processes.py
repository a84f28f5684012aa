"""Commands as people type them, in processes of their own: what is left of one that has ended.

Most are forks of one process per worker that has imported PyTorch, which takes seconds; a fork takes none.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
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
#: The folder that all processes of the run share; `conftest.py` says it. Forks find and leave their traces there.
SHARED: Path | None = None
_STARTED: list[subprocess.Popen[str]] = []
_HIDING = CHECKOUT / "tests" / "helpers" / "fake_device" / "python"
#: What it imports may neither start threads, which a fork has not, nor read the environment, which differs by command.
#: OpenVINO stays out, since tests hide it.
_PRELOADED = """
import gc, json, os, pathlib, sys
import onnx_ir, onnxruntime, onnxscript, optuna, PIL.Image, rich.table, timm.data, torch
import ztdeploy.host.models.checkpoint, ztdeploy.host.models.vit, ztdeploy.host.pruning, ztdeploy.host.traces
import ztdeploy.host.tracing, ztdeploy.jobs.build
import ztdeploy.cli.app
from ztdeploy.cli import main
gc.freeze()
print("ready", flush=True)
for line in sys.stdin:
    job = json.loads(line)
    child = os.fork()
    if child == 0:
        code = 99
        try:
            os.chdir(job["cwd"])
            os.environ.clear()
            os.environ.update(job["environment"])
            for descriptor, path in ((0, os.devnull), (1, job["out"]), (2, job["err"])):
                os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC), descriptor)
            if job["traces"]:
                store = ztdeploy.host.traces.TraceStore
                ztdeploy.jobs.build.trace_store = lambda *_, **__: store(pathlib.Path(job["traces"]))
            exec(job["first"], {})
            sys.argv = ["ztdeploy", *job["arguments"]]
            main()
        except SystemExit as leaving:
            code = int(leaving.code or 0)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


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
    child = _started_with_pytest(command, stdout=stdout, stderr=subprocess.PIPE, **options)
    _STARTED.append(child)
    return child


def _started_with_pytest(command: Sequence[str], **options: Any) -> subprocess.Popen[str]:
    end = _end_with_parent if sys.platform == "linux" else None
    return subprocess.Popen(command, text=True, start_new_session=True, preexec_fn=end, **options)


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


class _Preloaded:
    """The process that commands are forked from."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        hub = str(Path(self._folder.name, "hub"))
        shell = {name: value for name, value in os.environ.items() if "ZTDEPLOY" not in name}
        offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": hub, "HF_HUB_CACHE": hub}
        self._process = _started_with_pytest(
            [sys.executable, "-c", _PRELOADED],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**shell, **offline, "PYTHONPATH": str(CHECKOUT)},
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def run(self, arguments: list[str], cwd: Path, environment: Mapping[str, str], first: str) -> Done:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        out, err = (Path(self._folder.name, name) for name in ("out", "err"))
        job = {"arguments": arguments, "cwd": str(cwd), "environment": environment, "first": first}
        places = {"out": str(out), "err": str(err), "traces": str(SHARED / "traces") if SHARED else ""}
        self._process.stdin.write(json.dumps({**job, **places}) + "\n")
        self._process.stdin.flush()
        code = int(self._process.stdout.readline())
        return Done(code, out.read_text(), err.read_text())

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._folder.cleanup()


def end_preloaded() -> None:
    """At the end of pytest."""
    while _RUNNING:
        _RUNNING.pop().end()


_RUNNING: list[_Preloaded] = []


def run_forked(*arguments: str | Path, cwd: Path, environment: Mapping[str, str], first: str = "") -> Done:
    """`ztdeploy ARGUMENTS` in a process and an environment of its own, which reaches no model hub.

    Args:
        first: statements that it runs before.
    """
    if not _RUNNING:
        _RUNNING.append(_Preloaded())
    return _RUNNING[0].run(list(map(str, arguments)), cwd, environment, first)


def run_ztdeploy(
    *arguments: str | Path, cwd: Path, first: str = "", hidden: str = "", cache: Path | None = None
) -> Done:
    """`ztdeploy ARGUMENTS` in a process of its own, that runs a statement first and lacks the modules in `hidden`."""
    shell = {name: value for name, value in os.environ.items() if "ZTDEPLOY" not in name or name == REPORT}
    paths = [str(_HIDING), str(CHECKOUT)] if hidden else [str(CHECKOUT)]
    environment = {
        **shell,
        "PYTHONPATH": os.pathsep.join(paths),
        "FAKE_HIDDEN": hidden,
        "ZTDEPLOY_CACHE": str(cache or cwd / "cache"),
    }
    hide = f"import runpy\nrunpy.run_path({str(_HIDING / 'sitecustomize.py')!r})\n"
    done = run_forked(*arguments, cwd=cwd, environment=environment, first=hide + first if hidden else first)
    assert "Traceback" not in done.err, done.err
    return done
