"""What a person at a terminal sees: a real pseudo-terminal, a real Ctrl-C, a real kill."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from helpers.leftovers import leftovers

import ztdeploy
from ztdeploy.cli.app import run
from ztdeploy.cli.output import begin, progress_bar

CHECKOUT = Path(ztdeploy.__file__).resolve().parents[1]
BUILD = ("build", "-m", "vit_digits", "-p", "cpu", "-k", "0.7", "-o", "out/digits")
_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def environment(**extra: str) -> dict[str, str]:
    """A terminal's, without what steers ztdeploy or fixes the width, and with the package importable."""
    ours = ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "CI")
    shell = {name: value for name, value in os.environ.items() if "ZTDEPLOY" not in name and name not in ours}
    return {**shell, "PYTHONPATH": str(CHECKOUT), "TERM": "xterm-256color", **extra}


class Terminal:
    """A process whose controlling terminal is a pseudo-terminal of ours."""

    def __init__(
        self, command: list[str], cwd: Path, *, columns: int = 80, errors: int | None = None, **extra: str
    ) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.process = subprocess.Popen(
            command,
            cwd=cwd,
            env=environment(**extra),
            stdin=slave,
            stdout=slave,
            stderr=slave if errors is None else errors,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(slave)
        self._bytes = b""

    @property
    def raw(self) -> str:
        """All that has been printed."""
        return self._bytes.decode(errors="replace").replace("\r\n", "\n")

    @property
    def text(self) -> str:
        """The same without colours and cursor movements."""
        return _ESCAPE.sub("", self.raw)

    def read(self, until: Callable[[], bool] = lambda: False, *, timeout_s: float = 240) -> bool:
        """Read until something holds, or to the end.

        Returns:
            Whether it holds.
        """
        deadline = time.monotonic() + timeout_s
        while not until():
            assert time.monotonic() < deadline, f"nothing after {timeout_s} s; the terminal shows: {self.text[-2000:]}"
            if select.select([self._master], [], [], 0.1)[0]:
                try:
                    chunk = os.read(self._master, 65536)
                except OSError:  # Linux' end of file, once nobody has the other end open any more
                    return False
                if not chunk:
                    return False
                self._bytes += chunk
        return True

    def press(self, key: bytes) -> None:
        os.write(self._master, key)

    def close(self) -> int:
        """Read to the end.

        Returns:
            The exit code, or minus the signal.
        """
        try:
            self.read()
            return self.process.wait(60)
        finally:
            self.process.kill()
            self.process.wait()
            os.close(self._master)


def ztdeploy_command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "ztdeploy", *map(str, arguments)]


@dataclass(frozen=True)
class Stopped:
    """A build that was stopped while it traced its first variant."""

    code: int
    raw: str
    text: str
    folder: Path
    before: list[str]  #: what the output's parent held when it was stopped


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Stopped]:
    """One build stopped by Ctrl-C and one killed, side by side, since most of their time is PyTorch's import."""
    folders = [tmp_path_factory.mktemp(how) for how in ("interrupted", "killed")]
    terminals = [Terminal(ztdeploy_command(*BUILD), folder) for folder in folders]
    stops = [lambda terminal: terminal.press(b"\x03"), lambda terminal: terminal.process.kill()]
    with ThreadPoolExecutor() as pool:  # a terminal that nobody reads stops the build
        results = pool.map(stop_while_exporting, terminals, folders, stops)
    return dict(zip(("interrupted", "killed"), results, strict=True))


def stop_while_exporting(terminal: Terminal, folder: Path, stop: Callable[[Terminal], None]) -> Stopped:
    out = folder / "out"
    terminal.read(lambda: "exporting keep-0.70" in terminal.raw and out.is_dir() and any(out.iterdir()))
    before = sorted(path.name for path in out.iterdir())
    stop(terminal)
    code = terminal.close()
    return Stopped(code, terminal.raw, terminal.text, out, before)


def test_without_a_terminal_it_is_a_line_per_step_that_says_something_new(capsys: pytest.CaptureFixture[str]) -> None:
    begin([])
    with progress_bar() as progress:
        for done, what in enumerate(("loading", "evaluating", "evaluating", "loading")):
            progress(what, done, 4)
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["loading", "evaluating (25 %, about 10 s left)", "loading (75 %, about 10 s left)"]


def test_quiet_and_verbose(digits_bundle: Path, digit_images: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    images = list(map(str, digit_images[:17]))
    shown = []
    for options in (["-q", "run"], ["run", "-q"], ["run"], ["run", "--verbose"]):
        assert run([*options, str(digits_bundle), *images, "--top", "1"]) == 0
        shown.append(capsys.readouterr())
    quiet, also_quiet, usual, verbose = (one.err for one in shown)
    assert (quiet, also_quiet) == ("", "")
    assert usual.startswith("running keep-0.70")
    assert all(re.match(r" +\d+\.\d\d s  ", line) for line in verbose.splitlines())
    assert len({one.out for one in shown}) == 1, "the result is the same"
    assert run(["run", "-q", "-v", str(digits_bundle), images[0]]) == 2


def test_a_build_shows_a_progress_bar(stopped: dict[str, Stopped]) -> None:
    for build in stopped.values():
        frames = [frame for frame in re.split(r"[\r\n]+", build.text) if "━" in frame]
        assert any("loading vit_digits" in frame for frame in frames)
        shares = [
            int(match[1]) for frame in frames if (match := re.search(r"exporting keep-0\.70 .*━ +(\d+) %", frame))
        ]
        assert shares, build.text
        assert 10 < shares[0] < 50, "the model is loaded, which takes its share of the time"
        assert all(re.search(r" % +\d+:\d\d", frame) for frame in frames)
        assert any("left" in frame for frame in frames)
        assert len(set(frames)) > 5, "it moves"
        assert max(map(len, frames)) <= 80


@pytest.mark.long
def test_ctrl_c_leaves_nothing(stopped: dict[str, Stopped]) -> None:
    build = stopped["interrupted"]
    assert len(build.before) == 1, "there was something to clean up"
    assert build.code == 130
    assert build.text.rstrip().endswith("error: interrupted")
    assert "Traceback" not in build.text
    assert not build.folder.exists(), "nor the folder above it, which the build had made"
    hidden, shown = build.raw.rfind("\x1b[?25l"), build.raw.rfind("\x1b[?25h")
    assert shown > hidden, "the cursor is shown again"


@pytest.mark.long
def test_a_killed_build_leaves_nothing_that_looks_finished(stopped: dict[str, Stopped]) -> None:
    from ztdeploy.core.bundle import MANIFEST, new_bundle_folder, read_bundle
    from ztdeploy.core.errors import InputError

    build = stopped["killed"]
    out = build.folder / "digits"
    assert build.code == -signal.SIGKILL
    (left,) = build.folder.iterdir()
    assert [left.name] == build.before
    assert leftovers(build.folder) == [left]
    assert not list(left.rglob(MANIFEST))
    with pytest.raises(InputError, match=MANIFEST):
        read_bundle(left)
    with new_bundle_folder(out, force=False) as folder:
        assert [path.name for path in build.folder.iterdir()] == [folder.parent.name], "the next build cleans up"
        (folder / "file").touch()
    assert [path.name for path in build.folder.iterdir()] == ["digits"]


# Tables.

TABLES = {
    "inspect": ("inspect", "BUNDLE"),
    "inspect-another": ("inspect", "BUNDLE", "--keep-ratio", "0.5"),
    "verify": ("verify", "BUNDLE"),
    "schedules": ("profiles", "schedules"),
    "profiles": ("profiles", "list"),
    "models": ("models",),
    "doctor": ("doctor",),
}


def words(text: str) -> set[str]:
    """What is printed, without rules, and without numbers, some of which change from one call to the next."""
    return {word for word in text.split() if not re.fullmatch(r"[─━]+|[\d.,%x-]+|#", word)}


@pytest.mark.parametrize("name", TABLES)
def test_tables_fit_80_columns_without_cutting_words(
    name: str, digits_bundle: Path, digit_images: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "bundle").symlink_to(digits_bundle)
    image = shutil.copy(digit_images[0], tmp_path / "a-photograph-with-quite-a-long-name.png")
    named = {"BUNDLE": "bundle", "IMAGE": Path(image).name}
    command = ztdeploy_command(*(named.get(argument, argument) for argument in TABLES[name]))
    terminal = Terminal(command, tmp_path, errors=subprocess.DEVNULL)
    assert terminal.close() == 0, terminal.text
    assert max(map(len, terminal.text.splitlines())) <= 80
    piped = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=True)
    assert "\x1b" not in piped.stdout
    assert words(terminal.text) == words(piped.stdout)


def test_in_a_very_narrow_terminal_rows_become_blocks(tmp_path: Path) -> None:
    terminal = Terminal(ztdeploy_command("profiles", "list"), tmp_path, columns=40)
    assert terminal.close() == 0
    assert max(map(len, terminal.text.splitlines())) <= 40
    assert "profile: cpu-openvino-int8-rows\n" in terminal.text
    assert "engines are built: on the device\n" in terminal.text


#: A native call that no signal ends: it waits for a lock, which another thread opens once there is a file "go". That
#: thread says "begun" when the call has let go of the interpreter, which nothing else does ahead of it.
WAITING = """
import ctypes, pathlib, sys, threading, time
import ztdeploy.jobs.doctor
from ztdeploy.cli import main

libc, lock, called = ctypes.CDLL(None), ctypes.create_string_buffer(64), threading.Event()

def open_later():
    called.wait()
    print("begun", flush=True)
    while not pathlib.Path("go").exists():
        time.sleep(0.01)
    libc.pthread_mutex_unlock(lock)

libc.pthread_mutex_lock(lock)
threading.Thread(target=open_later, daemon=True).start()
sys.setswitchinterval(1000)
ztdeploy.jobs.doctor.examine = lambda: (called.set(), libc.pthread_mutex_lock(lock))
main()
"""


def test_ctrl_c_is_acknowledged_inside_a_native_call(tmp_path: Path) -> None:
    terminal = Terminal([sys.executable, "-c", WAITING, "doctor"], tmp_path)
    assert terminal.read(lambda: "begun" in terminal.text)
    terminal.press(b"\x03")
    assert terminal.read(lambda: "stopping..." in terminal.text)
    (tmp_path / "go").touch()
    assert terminal.close() == 130


def test_warnings_are_coloured_in_a_terminal_only(tmp_path: Path) -> None:
    """The build fails at once: its profile doesn't exist."""
    command = ztdeploy_command("build", "-m", "vit_digits", "-p", "none", "--weights", "random")
    terminal = Terminal(command, tmp_path)
    assert terminal.close() == 3
    assert "\x1b[33mwarning: the weights are random" in terminal.raw
    piped = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False)
    assert piped.stderr.startswith("warning: the weights are random")
    assert "\x1b" not in piped.stderr


# Completion.


def complete(*typed: str, cwd: Path) -> list[str]:
    """What bash would offer for the last word."""
    asked = {"COMP_WORDS": " ".join(typed), "COMP_CWORD": str(len(typed) - 1)}
    done = subprocess.run(
        ztdeploy_command(),
        cwd=cwd,
        env=environment(_ZTDEPLOY_COMPLETE="complete_bash", **asked),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    return done.stdout.split()


def test_completion_offers_verbs_and_options(tmp_path: Path) -> None:
    assert complete("ztdeploy", "in", cwd=tmp_path) == ["install", "inspect"]
    assert complete("ztdeploy", "profiles", "", cwd=tmp_path) == ["list", "schedules", "show", "check"]
    assert complete("ztdeploy", "build", "--keep", cwd=tmp_path) == ["--keep-ratio"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str, tmp_path: Path) -> None:
    done = subprocess.run(
        ztdeploy_command(),
        cwd=tmp_path,
        env=environment(_ZTDEPLOY_COMPLETE=f"source_{shell}"),
        capture_output=True,
        text=True,
        check=True,
    )
    assert "_ZTDEPLOY_COMPLETE=complete_" in done.stdout
    assert re.search(r"\bcomp(lete|def)\b.*\bztdeploy\b", done.stdout)
    assert done.stderr == ""


def test_show_completion_finds_the_shell_it_is_called_from(tmp_path: Path) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash here")
    command = " ".join(f"'{part}'" for part in ztdeploy_command("--show-completion"))
    terminal = Terminal([bash, "--norc", "-c", f"{command} > script; source ./script; complete -p ztdeploy"], tmp_path)
    assert terminal.close() == 0, terminal.text
    assert "-F _ztdeploy_completion ztdeploy" in terminal.text
