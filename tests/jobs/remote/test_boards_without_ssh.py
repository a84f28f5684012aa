"""What is decided about boards without reaching one: names, words that travel, the store, answers of any kind."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from helpers.bundles import linked_copy
from helpers.pages import EVIL, check_inert
from helpers.signing import key_pair, signed
from helpers.sweeps import sweep
from hypothesis import given
from hypothesis import strategies as st

from ztdeploy.cli.app import run
from ztdeploy.core.bundle import SIGNATURE, read_bundle
from ztdeploy.core.errors import BoardError, InputError, OutputError
from ztdeploy.jobs.remote import fleet, programs, registry, ssh
from ztdeploy.jobs.remote.installation import install
from ztdeploy.jobs.remote.registry import Board
from ztdeploy.jobs.remote.transfer import deliver, parcel, send_files
from ztdeploy.jobs.remote.wheel import WHEEL_NAME, wheel
from ztdeploy.report.compare.boards import board_rows, boards_page
from ztdeploy.target import board as on_board
from ztdeploy.target.board import BoardFacts, Tree, code_digest, prepare
from ztdeploy.version import __version__

FACTS = BoardFacts(
    **{"version": __version__, "code": code_digest(), "python": "3.11.2", "machine": "x86_64", "title": "A board"},
    **{"rsync": False, "store": "/home/pi/.cache/ztdeploy/remote/incoming", "free_bytes": 10**9},
)


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("ZTDEPLOY_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ZTDEPLOY_SSH", raising=False)


# Names.


@pytest.mark.parametrize(
    ("text", "host", "user", "port"),
    [
        ("lab1", "lab1", None, None),
        ("pi@lab1.local", "lab1.local", "pi", None),
        ("pi@10.0.0.7:2222", "10.0.0.7", "pi", 2222),
        ("pi@[fe80::1%eth0]:22", "fe80::1%eth0", "pi", 22),
        ("[::1]", "::1", None, None),
    ],
)
def test_targets(text: str, host: str, user: str | None, port: int | None) -> None:
    found = registry.target(text)
    assert (found.host, found.user, found.port) == (host, user, port)
    assert registry.target(str(found)) == found


@pytest.mark.parametrize(
    "text",
    [
        *("", "@", "-oProxyCommand=x", "pi@-oProxyCommand=x", "-l@host", "a b", "host:", "host:0", "host:65536"),
        *("host:x", "::1", "a;b", "$(x)", "a\nb", "a\0", "host:22:22", "[]", "[-o]", "pi@", "é"),
    ],
)
def test_what_is_no_target(text: str) -> None:
    with pytest.raises(InputError):
        registry.target(text)


@given(st.text())
def test_whatever_is_taken_for_a_target_is_no_option(text: str) -> None:
    try:
        found = registry.target(text)
    except InputError:
        return
    assert not found.host.startswith("-")
    assert not (found.user or "").startswith("-")
    assert not set(found.host + (found.user or "")) & set(" '\"\\$`;&|<>\n\0")


def test_the_list_of_boards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["remote", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["result"] == {"boards": {}}
    assert run(["remote", "check"]) == 0
    assert capsys.readouterr().err == "no board has a name yet: ztdeploy remote add NAME USER@HOST\n"
    assert run(["remote", "add", "lab.1", "pi@[::1]:22", "--python", "~/env/bin/python", "-q"]) == 0
    assert run(["remote", "add", "lab-2", "orin", "-q"]) == 0
    assert registry.read_boards() == {
        "lab-2": Board(host="orin"),
        "lab.1": Board(host="::1", user="pi", port=22, python="~/env/bin/python"),
    }
    capsys.readouterr()
    for line, words in (
        (["add", "lab-2", "other"], "board 'lab-2' exists"),
        (["remove", "lab2"], "did you mean 'lab-2'?"),
        (["add", "-x", "orin"], ""),
        (["add", "a b", "orin"], "the name 'a b'"),
        (["add", "a", "orin", "--python", "a b"], "--python 'a b'"),
    ):
        assert run(["remote", *line]) in (2, 3), line
        (error,) = capsys.readouterr().err.splitlines()
        assert words in error
    assert run(["remote", "remove", "lab.1", "-q"]) == 0
    assert list(registry.read_boards()) == ["lab-2"]
    path = registry.registry_path()
    for text in ("board = 1", "[board.x]\nhost = '-o'", "[board.x]\nhost = 'h'\ncommand = 'x'", "\0", "[["):
        path.write_text(text)
        assert run(["remote", "list"]) == 3, text
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_folder_of_settings_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "file" / "below"))
    assert run(["remote", "add", "lab", "orin"]) == 3
    (error,) = capsys.readouterr().err.splitlines()
    assert "XDG_CONFIG_HOME" in error


# What travels.


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, digits_bundle: Path) -> list[fleet.Call]:
    """The calls that command lines make; no board is asked."""
    found = list[fleet.Call]()

    def noted(boards: Any, call: fleet.Call, told: Any) -> list[fleet.Outcome]:
        found.append(call)
        failure = fleet.Failed(message="it was asked for nothing", exit_code=5)
        return [fleet.Outcome(name, failure=failure) for name in boards]

    monkeypatch.setattr(fleet, "run_on", noted)
    monkeypatch.chdir(tmp_path)
    linked_copy(digits_bundle, tmp_path / "digits")
    (tmp_path / "load.toml").touch()
    registry.add_board("lab", Board(host="lab"))
    return found


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("verify digits -p cpu", ["--profile=cpu", "--", "<digits>"]),
        ("finalize digits", ["--", "<digits>"]),
        ("run digits a.png -k 0.7 --cascade", ["--keep-ratio=0.7", "--cascade", "--", "<digits>", "<a.png>"]),
        (
            "bench digits -k 0.9,0.7 -k 0.5 --no-reference",
            ["--keep-ratio=0.9,0.7", "--keep-ratio=0.5", "--no-reference"],
        ),
        ("bench digits --governor --load load.toml --page p.html", ["--governor", "--load=<load.toml>"]),
        ("bench digits --governor --load bursts", ["--governor", "--load=bursts"]),
        ("eval digits -d photos --out e.json --no-record --fresh", ["--data=<photos>", "--no-record", "--fresh"]),
        ("sweep --bundle digits --limit 5 -v", ["--bundle=<digits>", "--limit=5"]),
    ],
)
def test_words_that_travel(typed: str, words: list[str], calls: list[fleet.Call]) -> None:
    assert run([*typed.split(), "--on", "lab"]) == 5
    (call,) = calls
    shown = [word if isinstance(word, str) else f"{word.before}<{word.path}>" for word in call.words]
    assert shown[: len(words)] == words or sorted(shown[: len(words)]) == sorted(words)
    assert not {"--on", "--json", "-v", "--verbose", "--out", "--page"} & {word.partition("=")[0] for word in shown}


def test_public_keys_travel_and_secret_ones_never(calls: list[fleet.Call], tmp_path: Path) -> None:
    """A board checks by the key that was read here, and signs with a file of its own."""
    fleet_key, old = key_pair(tmp_path, "fleet"), key_pair(tmp_path, "old")
    demanded = ["--signed-by", f"fleet.pub,{old.line}", "--signed-by", "old.pub"]
    assert run(["finalize", "digits", *demanded, "--sign", "fleet.key", "--on", "lab"]) == 5
    words = [f"--signed-by={fleet_key.line},{old.line}", f"--signed-by={old.line}", "--sign=fleet.key"]
    assert list(calls[0].words)[:3] == words
    assert run(["finalize", "digits", "--signed-by", "fleet.key", "--on", "lab"]) == 3


def test_what_cannot_be_written_here_is_said_first(calls: list[fleet.Call], tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "bench-lab.json").write_text("mine")
    for line in (
        ["bench", "digits", "--out", "bench.json"],
        ["run", "digits", "a.png", "--maps", "maps"],
        ["sweep", "--bundle", "digits", "--out", "load.toml"],
        ["eval", "digits", "--data", "photos", "--cache", "cache"],
    ):
        code = run([*line, "--on", "lab"])
        assert code in (3, 5), line
        assert code == 3 or line[0] == "sweep"
        assert len([one for one in capsys.readouterr().err.splitlines() if one.startswith("error")]) == 1
    assert (tmp_path / "bench-lab.json").read_text() == "mine"


@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), min_size=1, max_size=4))
def test_a_shell_gives_words_back_as_they_were(words: list[str]) -> None:
    line = ssh.remote_line([sys.executable, "-c", "x", *words])
    assert shlex.split(line)[3:] == words


# The store on a board.


def tree(folder: Path, **files: str) -> tuple[Tree, Path]:
    here = folder / "sent"
    here.mkdir(exist_ok=True)
    for name, text in files.items():
        (here / name).write_text(text)
    return parcel(here).tree, here


def test_files_are_stored_once_and_only_as_they_were_promised(tmp_path: Path) -> None:
    store, (made, here) = tmp_path / "store", tree(tmp_path, one="same", two="same", three="other")
    incoming = store / "incoming"
    incoming.mkdir(parents=True)
    found = prepare([made], store)
    assert len(found.missing) == 2, "two files of one content are sent once"
    by_content = {file.sha256: here / path.split("/")[1] for path, file in made.files.items()}
    first, second = found.missing
    (incoming / first).write_bytes(by_content[first].read_bytes())
    (incoming / second).write_bytes(b"x" * len(by_content[second].read_bytes()))
    assert prepare([made], store).missing == (second,)
    assert not (incoming / second).exists(), "damaged"
    (incoming / second).write_bytes(by_content[second].read_bytes()[:2])
    assert prepare([made], store).missing == (second,)
    assert (incoming / second).exists(), "rsync goes on with a part"
    (incoming / second).write_bytes(by_content[second].read_bytes())
    assert prepare([made], store).missing == ()
    place = store / "trees" / made.key / "sent"
    assert {path.name: path.read_text() for path in place.iterdir()} == {"one": "same", "two": "same", "three": "other"}
    assert (place / "one").stat().st_ino == (place / "two").stat().st_ino
    assert prepare([made], store).missing == ()


def test_a_board_without_space_says_so_before_anything_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, _ = tree(tmp_path, one="x" * 1000)
    usage = on_board.shutil.disk_usage(tmp_path)._replace(free=on_board._SPARE + 999)
    monkeypatch.setattr(on_board.shutil, "disk_usage", lambda _path: usage)
    with pytest.raises(OutputError, match="do not fit into"):
        prepare([made], tmp_path / "store")


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a/../../x", "", ".", "a//b", "a\0"])
def test_no_request_leads_out_of_the_store(path: str) -> None:
    request = {"do": "prepare", "trees": [{"key": "0" * 64, "files": {path: {"sha256": "0" * 64, "bytes": 1}}}]}
    reply, code = on_board.answer(json.dumps(request).encode(), sys.stdout)
    assert code == 3
    assert "a request with" in json.loads(reply)["error"]["message"]


def test_a_bundle_keeps_its_key_when_an_evaluation_is_recorded(digits_bundle: Path, tmp_path: Path) -> None:
    linked_copy(digits_bundle, tmp_path / "digits")
    before = parcel(tmp_path / "digits").tree.key
    text = (tmp_path / "digits" / "manifest.json").read_text()
    (tmp_path / "digits" / "manifest.json").unlink()
    (tmp_path / "digits" / "manifest.json").write_text(text + "\n")
    assert parcel(tmp_path / "digits").tree.key == before


def test_a_signature_travels_with_its_manifest(digits_bundle: Path, tmp_path: Path) -> None:
    folder = linked_copy(digits_bundle, tmp_path / "digits")
    unsigned = parcel(folder).tree
    tree = parcel(signed(folder, key_pair(tmp_path, "fleet"))).tree
    assert tree.key != unsigned.key
    assert tree.files.keys() - unsigned.files.keys() == {f"digits/{SIGNATURE}"}


# What a board may answer.


class Answering:
    """A transport whose board answers so."""

    def __init__(self, *replies: bytes, code: int = 0, err: Sequence[str] = ()) -> None:
        self.replies, self.code, self.err = list(replies), code, tuple(err)

    def __call__(self, command: Sequence[str], sent: bytes, **_more: Any) -> programs.Ended:
        if "-G" in command or "-O" in command:
            return programs.Ended(0)
        return programs.Ended(self.code, self.replies.pop(0), self.err)


def connection(*replies: bytes, **more: Any) -> ssh.Connection:
    return ssh.Connection("lab", Board(host="lab"), Answering(*replies, **more))


@pytest.mark.parametrize(
    "reply",
    [
        *(b"", b"\xff", b"{", b"[]", b"null", b"{}", b'{"version": 1}', b"[" * 100_000, b'{"a": NaN}'),
        FACTS.model_copy(update={"store": "/home/x y"}).model_dump_json().encode(),
        FACTS.model_copy(update={"store": "-e sh"}).model_dump_json().encode(),
        *(b'{"error": 5}', b'{"error": {"message": "\\u001b[2J", "exit_code": "x"}}'),
    ],
)
def test_any_other_answer_is_one_error(reply: bytes) -> None:
    with pytest.raises(BoardError) as found:
        connection(reply).hello()
    assert str(found.value).isprintable()


def test_a_board_for_another_processor(digits_bundle: Path, tmp_path: Path) -> None:
    linked_copy(digits_bundle, tmp_path / "digits")
    manifest = read_bundle(tmp_path / "digits").manifest
    data = json.loads((tmp_path / "digits" / "manifest.json").read_text())
    for name in manifest.profiles:
        data["profiles"][name]["machine"] = "aarch64"
    (tmp_path / "digits" / "manifest.json").unlink()
    (tmp_path / "digits" / "manifest.json").write_text(json.dumps(data))
    call = fleet.Call("verify", ("--", fleet.SentPath("", tmp_path / "digits")), object)  # type: ignore[arg-type]
    transport = Answering(FACTS.model_dump_json().encode())
    (outcome,) = fleet.run_on({"lab": Board(host="lab")}, call, lambda *_: None, transport=transport)
    assert outcome.exit_code == 6
    assert outcome.failure is not None
    assert "is of the kind x86_64; expected aarch64" in outcome.failure.message


LOOK = b'{"python": [3, 11], "machine": "aarch64", "venv": true, "rsync": false, "wheels": {}}'


@pytest.mark.parametrize(
    ("ended", "error", "words"),
    [
        (
            programs.Ended(1, err=("ERROR: No matching distribution found for numpy>=1.26", "some notice")),
            BoardError,
            "Python 3.11, aarch64.*No matching distribution found for numpy.*fetch wheels for aarch64",
        ),
        (
            programs.Ended(1, err=("ERROR: Could not install: No space left on device",)),
            OutputError,
            "is full",
        ),
    ],
)
def test_what_pip_could_not_do(ended: programs.Ended, error: type[Exception], words: str) -> None:
    replies = iter([programs.Ended(0, LOOK), programs.Ended(0), ended])
    scripted = ssh.Connection("lab", Board(host="lab"), lambda *_, **__: next(replies))  # type: ignore[arg-type]
    with pytest.raises(error, match=words):
        install(scripted)


@pytest.mark.parametrize(
    ("said", "error", "words"),
    [
        (
            "rsync: write failed on '/x': No space left on device (28)",
            OutputError,
            "the disk of board 'lab'",
        ),
        ("ssh: connect to host lab port 22: Connection timed out", BoardError, "cannot be reached"),
    ],
)
def test_what_cannot_be_sent(said: str, error: type[Exception], words: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    ended = programs.Ended(11, err=(said, "rsync error: error in file IO (code 11)"))
    scripted = ssh.Connection("lab", Board(host="lab"), lambda *_, **__: ended)  # type: ignore[arg-type]
    with pytest.raises(error, match=words):
        send_files(scripted, {"0" * 64: tmp_path / "file"}, "/store", rsync=True)


def test_a_board_that_asks_for_other_files_gets_none(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("x")
    reply = json.dumps({"missing": ["f" * 64], "places": {}}).encode()
    with pytest.raises(BoardError, match="asks for files that were not offered"):
        deliver(connection(reply), FACTS, [parcel(tmp_path / "mine")])


def test_the_page_of_boards_is_inert(tmp_path: Path) -> None:
    made = sweep()
    machine = made.runs[0].machine.model_copy(update={"board": EVIL})
    runs = [one.model_copy(update={"on": EVIL, "machine": machine}) for one in made.runs]
    evil = made.model_copy(update={"runs": tuple(runs)})
    (tmp_path / "boards.html").write_text(boards_page([made, evil]))
    check_inert(tmp_path / "boards.html")
    assert all(text.isprintable() for row in board_rows([made, evil]) for text in row.cells[2:])


def test_options_of_ssh_never_loosen_it() -> None:
    words = " ".join(ssh.Connection("lab", Board(host="lab", user="pi", port=22)).ssh)
    assert "BatchMode=yes" in words
    assert "HostKey" not in words
    assert "KnownHosts" not in words


def test_the_exit_code_is_that_of_the_first_board_that_failed() -> None:
    failed = [fleet.Outcome("x", failure=fleet.Failed(message="", exit_code=code)) for code in (6, 3)]
    assert fleet.exit_code_of([fleet.Outcome("a"), *failed]) == 6
    assert fleet.exit_code_of([fleet.Outcome("a")]) == 0


# The wheel.


def test_the_wheel_is_that_of_the_build(tmp_path: Path) -> None:
    content = wheel()
    assert content == wheel(), "the same bytes whenever it is made"
    with zipfile.ZipFile(BytesIO(content)) as archive:
        names = archive.namelist()
        assert {name.partition("/")[0] for name in names} == {"ztdeploy", f"ztdeploy-{__version__}.dist-info"}
        assert "ztdeploy/data/profiles/cpu.toml" in names
        assert f"Version: {__version__}\n" in archive.read(f"ztdeploy-{__version__}.dist-info/METADATA").decode()
        archive.extractall(tmp_path / "there")
    (tmp_path / WHEEL_NAME).write_bytes(content)
    code = "from ztdeploy.target.board import code_digest; print(code_digest())"
    there = {"PYTHONPATH": str(tmp_path / "there"), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=there, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == code_digest()
