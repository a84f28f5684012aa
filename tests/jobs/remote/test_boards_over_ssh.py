"""Verbs on boards over a real sshd: what arrives, what a board's failure is called, what a second call leaves out."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.boards import Lab, why_no_sshd
from helpers.bundles import linked_copy
from helpers.leftovers import leftovers
from helpers.processes import HANG_S

from ztdeploy.cli.app import run
from ztdeploy.core.bundle import read_bundle, sha256_of
from ztdeploy.core.files import make_folder
from ztdeploy.core.locks import only_one
from ztdeploy.jobs.remote import programs, ssh, transfer
from ztdeploy.target.evaluate.eval_report import EvalReport
from ztdeploy.target.measure.bench_report import read_report
from ztdeploy.target.measure.sweep_report import read_any_report

pytestmark = pytest.mark.skipif(why_no_sshd() is not None, reason=why_no_sshd() or "")

BENCH = ["--rounds", "3", "--iterations", "6", "--warmup", "0", "--threads", "1", "--no-reference"]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Three boards with ztdeploy, and a bare one."""
    found = Lab(tmp_path_factory.mktemp("lab"), "a", "b", "c", "bare")
    try:
        for name in "abc":
            found.with_ztdeploy(name)
        yield found
    finally:
        found.close()


@pytest.fixture
def desk(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digits_bundle: Path) -> Path:
    """A folder to work in with a bundle, where ssh knows the boards and ztdeploy has their names."""
    monkeypatch.setenv("ZTDEPLOY_SSH", lab.ssh)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("ZTDEPLOY_CACHE", str(tmp_path / "cache"))
    lab.know(*lab.ports)
    here = tmp_path / "desk"
    here.mkdir()
    monkeypatch.chdir(here)
    linked_copy(digits_bundle, here / "digits")
    for name in lab.ports:
        assert run(["remote", "add", name, name, "-q"]) == 0
    return here


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[Sequence[str]]:
    """The programs that were run, and on which board."""
    found, call = list[Sequence[str]](), programs.Programs.__call__

    def noted(self: programs.Programs, command: Sequence[str], sent: bytes, **more: Any) -> programs.Ended:
        found.append(command)
        return call(self, command, sent, **more)

    monkeypatch.setattr(programs.Programs, "__call__", noted)
    return found


def sent_by(commands: list[Sequence[str]]) -> list[str]:
    return [command[0] for command in commands if command[0] in ("rsync", "sftp")]


def wait_until(what: Callable[[], Any]) -> None:
    until = time.monotonic() + HANG_S
    while time.monotonic() < until:
        if what():
            return
        time.sleep(0.02)
    pytest.fail("nothing of the kind happened")


def test_of_three_boards_one_dies_and_the_same_command_goes_on_with_it(
    lab: Lab, desk: Path, commands: list[Sequence[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["bench", "digits", *BENCH, "--on", "a,b", "--on", "c", "--out", "bench.json"]

    def pull_the_plug() -> None:
        wait_until(lambda: lab.processes("c", "ztdeploy.target.measure.worker"))
        lab.cut("c")

    plug = threading.Thread(target=pull_the_plug)
    plug.start()
    code = run(line)
    plug.join()
    said = capsys.readouterr()
    assert code == 6, said.err
    (error,) = [one for one in said.err.splitlines() if one.startswith("error: ")]
    assert error.startswith("error: c: board 'c' (c) cannot be reached, or the connection broke")
    assert said.err.splitlines()[-1] == "the same command goes on with the boards that failed"
    whole = {name: Path(f"bench-{name}.json").read_bytes() for name in "ab"}
    assert sorted(path.name for path in desk.iterdir()) == ["bench-a.json", "bench-b.json", "digits"]
    assert sorted(map(os.path.basename, sent_by(commands))) == ["rsync"] * 3
    wait_until(lambda: not lab.processes("c"))

    commands.clear()
    assert run(line) == 0
    said = capsys.readouterr()
    assert "kept from" in said.err
    assert sent_by(commands) == []
    assert {command[command.index("--") + 1] for command in commands} == {"c"}, "the others are not asked"
    assert {name: Path(f"bench-{name}.json").read_bytes() for name in "ab"} == whole
    report = read_report(Path("bench-c.json"))
    assert (report.progress, report.on, report.bundle.path) == ("complete", "c", "digits")
    beside = said.out.partition("# Boards side by side\n")[2].splitlines()
    assert [row.split("\t")[0] for row in beside[1:-1]] == ["a", "b", "c"]
    assert list((desk.parent / "cache" / "remote").iterdir()) == [], "the same command would measure anew"


def test_images_travel_and_paths_come_back_as_typed(
    lab: Lab, desk: Path, digit_images: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    for image in digit_images[:8]:
        (desk / "it's 1 folder" / image.stem[-1]).mkdir(parents=True, exist_ok=True)
        shutil.copy(image, desk / "it's 1 folder" / image.stem[-1])
    odd = desk / "-$(touch hit) 'quoted' \udcff.png"
    shutil.copy(digit_images[0], odd)
    assert run(["run", "digits", "--on", "a", "--json", "--", "it's 1 folder", odd.name]) == 0
    images = json.loads(capsys.readouterr().out)["boards"]["a"]["result"]["images"]
    assert {Path(one["image"]).parts[0] for one in images} == {"it's 1 folder", odd.name}
    here = {one["image"]: one["labels"][0]["name"] for one in images}
    assert run(["run", "digits", "--json", "--", "it's 1 folder", odd.name]) == 0
    local = json.loads(capsys.readouterr().out)["result"]["images"]
    assert {one["image"]: one["labels"][0]["name"] for one in local} == here
    for where in (["--out", "out-here.npy"], ["--out", "out.npy", "--on", "a,b"]):
        assert run(["run", "digits", "-q", "--threads", "1", *where, "--", odd.name]) == 0
    for name in ("out-a.npy", "out-b.npy"):
        np.testing.assert_allclose(np.load(name), np.load("out-here.npy"), rtol=1e-4, atol=1e-4)
    line = ["eval", "digits", "--data", "it's 1 folder", "--on", "a", "-k", "0.7", "--threads", "1"]
    assert run([*line, "--page", "eval.html", "--out", "eval.json"]) == 0
    report = EvalReport.model_validate_json(Path("eval-a.json").read_text())
    assert (report.data.path, report.data.images, report.bundle.path) == ("it's 1 folder", 8, "digits")
    assert "<title>" in Path("eval-a.html").read_text()
    assert not list(lab.home("a").rglob("hit"))


@pytest.mark.long
def test_a_sweep_on_boards_and_pages_stand_side_by_side(
    lab: Lab, desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = ["--rounds", "2", "--duration", "0.1", "--warmup", "0", "--no-details", "--threads", "1", "-k", "0.7"]
    assert run(["sweep", "--bundle", "digits", *quick, "--on", "a,b"]) == 0
    found = [read_any_report(Path(f"sweep-digits-{name}") / "sweep.json") for name in "ab"]
    assert [{run.on for run in one.runs} for one in found] == [{"a"}, {"b"}]  # type: ignore[union-attr]
    assert Path("sweep-digits-a/report.html").is_file()
    page = Path("sweep-digits-boards.html").read_text()
    assert "a: " in page
    assert "keep-0.70 at batch 1, b" in page


def test_finalized_bundles_stay_on_a_board_that_has_no_rsync(
    lab: Lab,
    desk: Path,
    commands: list[Sequence[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.rmtree(lab.store("c"), ignore_errors=True)
    which, before = shutil.which, read_bundle(Path("digits")).manifest
    monkeypatch.setattr(transfer.shutil, "which", lambda name: None if name == "rsync" else which(name))
    assert run(["finalize", "digits", "--on", "c", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["boards"]["c"]["result"]["rebuilt"]) == 3
    assert sent_by(commands) == ["sftp"]
    assert read_bundle(Path("digits")).manifest == before
    (place,) = (lab.store("c") / "trees").glob("*/digits")
    assert read_bundle(place).manifest.variants != before.variants
    assert run(["verify", "digits", "--on", "c", "-q"]) == 0
    assert sent_by(commands) == ["sftp"]
    objects = list((lab.store("c") / "objects").iterdir())
    assert all(sha256_of(path) == path.name for path in objects), "what others share is unharmed"
    assert leftovers(lab.store("c")) == []
    assert list((lab.store("c") / "incoming").iterdir()) == []


def environment(lab: Lab, name: str, text: str) -> None:
    (lab.home(name) / ".environment").write_text(text)


def fake_python(lab: Lab, script: str) -> None:
    path = lab.home("bare") / "python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def no_key(lab: Lab, _monkeypatch: pytest.MonkeyPatch) -> None:
    lab.know("a")


def changed_key(lab: Lab, _monkeypatch: pytest.MonkeyPatch) -> None:
    lab.know(*lab.ports)
    path = lab.folder / "known_hosts"
    own, other = ((lab.folder / f"{name}.key.pub").read_text().split()[1] for name in ("bare", "a"))
    path.write_text(path.read_text().replace(own, other))


def not_let_in(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    if not (lab.folder / "other").exists():
        lab.key("other")
    monkeypatch.setenv("ZTDEPLOY_SSH", f"{lab.ssh} -o IdentityFile={lab.folder / 'other'}")
    text = (lab.folder / "config").read_text().replace("/id\n", "/other\n")
    (lab.folder / "config-other").write_text(text)
    monkeypatch.setenv("ZTDEPLOY_SSH", f"ssh -F {lab.folder / 'config-other'}")


def gone(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZTDEPLOY_SSH", f"{lab.ssh} -o Port=1")


def without_ssh(_lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZTDEPLOY_SSH", "no-such-program")


def silent(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssh, "SILENCE_S", 1.0)
    fake_python(lab, "sleep 600")


def other_version(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_python(lab, f'exec {sys.executable} "$@"')
    monkeypatch.setattr(ssh, "__version__", "99.0")


def nothing(_lab: Lab, _monkeypatch: pytest.MonkeyPatch) -> None:
    pass


CHECK, INSTALL = ["remote", "check", "bare"], ["remote", "install", "bare"]
#: What is wrong, the command, its exit code, and what its one line says.
BAD: list[tuple[Any, list[str], int, str]] = [
    (gone, CHECK, 6, "Connection refused"),
    (no_key, CHECK, 6, "ssh does not know its host key; .* connect once by hand"),
    (changed_key, CHECK, 6, "its host key is not the one that ssh knows"),
    (not_let_in, CHECK, 6, "does not let this user in without a password"),
    (without_ssh, CHECK, 6, "'no-such-program' cannot be started"),
    (nothing, CHECK, 6, "has no Python '~/python'; expected Python 3.10"),
    (nothing, INSTALL, 6, "has no Python '~/python'; expected Python 3.10"),
    (silent, CHECK, 6, "gave no sign of life for 1 s"),
    (other_version, CHECK, 6, "has ztdeploy 0.*; expected the one of this machine, 99.0; run: ztdeploy remote install"),
    (
        lambda lab, _: fake_python(lab, "echo \"$0: No module named 'ztdeploy'\" >&2; exit 1"),
        CHECK,
        6,
        "has no ztdeploy .* run: ztdeploy remote install bare",
    ),
    (
        lambda lab, _: fake_python(
            lab, """echo '{"python": [3, 9], "machine": "x", "venv": true, "rsync": true, "wheels": {}}'"""
        ),
        INSTALL,
        6,
        "has Python 3.9 as '~/python'; expected Python 3.10",
    ),
    (
        lambda lab, _: fake_python(
            lab, """echo '{"python": [3, 11], "machine": "x", "venv": false, "rsync": true, "wheels": {}}'"""
        ),
        INSTALL,
        6,
        "no module venv; .* apt install python3-venv",
    ),
    (lambda lab, _: fake_python(lab, "echo hello"), CHECK, 6, "answers something else"),
    (lambda lab, _: fake_python(lab, "echo '[]'"), CHECK, 6, "answers something else"),
    (
        lambda lab, _: fake_python(lab, r"""printf '{"error": {"message": "\\u001b[2J\\u202e", "exit_code": 77}}'"""),
        CHECK,
        1,
        "error: bare:",
    ),
    (nothing, ["remote", "check", "nobody"], 3, "board 'nobody'"),
    (nothing, ["verify", "digits", "--on", "nobody"], 3, "board 'nobody'"),
    (nothing, ["verify", "nothing", "--on", "a"], 3, "'nothing'"),
    (nothing, ["eval", "digits", "--data", "digits", "--on", "a", "--maps", "maps"], 3, "--maps with --on"),
    (nothing, ["remote", "install", "bare", "--wheels", "digits"], 3, "'digits' holds no"),
]


@pytest.mark.parametrize(("fault", "line", "code", "words"), BAD, ids=[one[3][:40] for one in BAD])
def test_what_goes_wrong_is_one_line(
    lab: Lab,
    desk: Path,
    fault: Any,
    line: list[str],
    code: int,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (lab.home("bare") / "python").unlink(missing_ok=True)
    if line[:3] == INSTALL and "--wheels" in line:
        fake_python(lab, f'exec {sys.executable} "$@"')
    assert run(["remote", "remove", "bare", "-q"]) == 0
    assert run(["remote", "add", "bare", "bare", "--python", "~/python", "-q"]) == 0
    fault(lab, monkeypatch)
    capsys.readouterr()
    assert run([*line, "-q"]) == code
    said = capsys.readouterr()
    (error,) = said.err.splitlines()
    assert re.search(words, error), error
    assert error.isprintable()
    assert [path.name for path in desk.iterdir()] == ["digits"]
    assert leftovers(desk.parent) == []
    assert not (lab.home("bare") / ".local").exists()
    lab.cut("bare")


def test_a_full_disk(lab: Lab, desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = lab.home("a") / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", small], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("a file system of 2 MB cannot be mounted here")
    try:
        environment(lab, "a", f"export ZTDEPLOY_CACHE={small}\n")
        assert run(["verify", "digits", "--on", "a", "-q"]) == 3
        (error,) = capsys.readouterr().err.splitlines()
        assert "do not fit into" in error
        assert "free space" in error
        assert not (small / "remote" / "trees").exists()
    finally:
        environment(lab, "a", "")
        subprocess.run(["umount", "-l", small], check=True)


def test_a_hung_board_is_named_while_others_go_on(
    lab: Lab, desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ssh, "SILENCE_S", 3.0)
    fake_python(lab, "sleep 600")
    assert run(["remote", "remove", "bare", "-q"]) == 0
    assert run(["remote", "add", "bare", "bare", "--python", "~/python", "-q"]) == 0
    assert run(["remote", "check", "bare", "b", "--json"]) == 6
    found = json.loads(capsys.readouterr().out)["result"]["boards"]
    assert "no sign of life" in found["bare"]["error"]
    assert found["b"]["facts"]["machine"] == platform.machine()
    lab.cut("bare")


def test_verbs_take_turns_on_a_board(lab: Lab, desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A measurement is not disturbed by what other desks ask of the board."""
    make_folder(lab.store("a"))
    with only_one(lab.store("a") / "running"):
        found = list[int]()
        waiting = threading.Thread(target=lambda: found.append(run(["verify", "digits", "--on", "a"])))
        waiting.start()
        wait_until(lambda: "waiting for another run on this board" in capsys.readouterr().err)
        assert lab.processes("a", "verify") == []
        assert found == []
    waiting.join()
    assert found == [0]


@pytest.mark.long
def test_an_interrupted_desk_leaves_nothing_running(lab: Lab, desk: Path) -> None:
    line = [sys.executable, "-m", "ztdeploy", "bench", "digits", "--duration", "60", "--threads", "1", "--on", "a,b"]
    child = subprocess.Popen(line, stderr=subprocess.PIPE, text=True, start_new_session=True)
    wait_until(lambda: all(lab.processes(name, "ztdeploy.target.measure.worker") for name in "ab"))
    child.send_signal(2)
    _, err = child.communicate(timeout=HANG_S)
    assert child.returncode == 130
    assert err.splitlines()[-1] == "error: interrupted"
    wait_until(lambda: not lab.processes("a") and not lab.processes("b"))


@pytest.mark.long
def test_installation_into_an_environment_of_its_own(lab: Lab, desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its Python makes environments that see the packages of the tests, so that nothing has to be fetched."""
    packages = next(path for path in sys.path if path.endswith("site-packages"))
    made = f'"$HOME"/.local/share/ztdeploy/venv/lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages'
    fake_python(
        lab, f'{sys.executable} "$@" || exit\ncase "$*" in "-m venv "*) echo {packages} > {made}/more.pth;; esac'
    )
    environment(lab, "bare", "unset PYTHONPATH\n")
    (desk / "wheels").mkdir()
    (desk / "wheels" / "unrelated-1-py3-none-any.whl").touch()
    assert run(["remote", "remove", "bare", "-q"]) == 0
    assert run(["remote", "add", "bare", "bare", "--python", "~/python", "-q"]) == 0
    assert run(["remote", "install", "bare", "--wheels", "wheels"]) == 0, capsys.readouterr().err
    capsys.readouterr()
    assert run(["remote", "check", "bare", "--json"]) == 0
    venv = lab.home("bare") / ".local" / "share" / "ztdeploy" / "venv"
    assert (venv / "bin" / "ztdeploy").is_file()
    assert run(["verify", "digits", "--on", "bare", "-q"]) == 0
    assert run(["remote", "install", "bare", "--wheels", "wheels"]) == 0, "again, in place"
    environment(lab, "bare", "")
    shutil.rmtree(venv.parents[2])
