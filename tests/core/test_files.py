"""The file layer: what it reads, what it writes, and what it refuses."""

import errno
import os
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest
from helpers.errors import refused
from helpers.places import as_nobody, mounted
from hypothesis import given
from hypothesis import strategies as st

from ztdeploy.core.errors import BundleError, InputError, OutputError
from ztdeploy.core.files import (
    copy_file,
    disk_errors,
    is_temporary,
    make_folder,
    move,
    new_name,
    open_regular,
    read_bytes,
    read_text,
    remove,
    remove_leftovers,
    system_error,
    write,
    writing,
)

# -------------------- reading


def a_fifo(path):
    os.mkfifo(path)


def a_link_to_a_fifo(path):
    os.mkfifo(path.with_name("fifo"))
    path.symlink_to("fifo")


def a_socket(path):
    with socket.socket(socket.AF_UNIX) as unix:
        short = Path(tempfile.mkdtemp(), "socket")  # whose path may not be long
        unix.bind(str(short))
        short.rename(path)
        short.parent.rmdir()


def a_circle(path):
    path.symlink_to(path.name)


STRANGE = {
    "folder": lambda path: path.mkdir(),
    "fifo": a_fifo,
    "link to a fifo": a_link_to_a_fifo,
    "socket": a_socket,
    "endless device": lambda path: path.symlink_to("/dev/zero"),
    "full device": lambda path: path.symlink_to("/dev/full"),
    "circle of links": a_circle,
    "link to nothing": lambda path: path.symlink_to("nowhere"),
    "nothing": lambda path: None,
    "memory of a process": lambda path: path.symlink_to("/proc/self/mem"),
}


@pytest.mark.parametrize("kind", STRANGE)
def test_only_regular_files_are_read_and_nothing_is_waited_for(tmp_path, kind):
    path = tmp_path / "given"
    STRANGE[kind](path)
    with pytest.raises(InputError, match=r"schedule '.*given' cannot be read"):
        read_bytes(path, 100, what="schedule")


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000, "y/" * 5000 + "z", "\ud800", "file/below", ""])
def test_names_that_no_file_can_have(tmp_path, name):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be read"):
        read_bytes(tmp_path / name, 100)


def test_a_limit_is_a_limit_and_the_error_is_of_the_kind_asked_for(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert read_bytes(path, 5) == b"12345"
    with pytest.raises(BundleError, match="more than 4 bytes"):
        read_bytes(path, 4, error=BundleError)


def test_names_that_are_no_text_are_read(tmp_path):
    path = tmp_path / os.fsdecode(b"\xff\xfe\x1b[31m")
    path.write_bytes(b"1")
    (tmp_path / "link").symlink_to(path)
    assert read_bytes(path, 5) == read_bytes(tmp_path / "link", 5) == b"1"


def test_text_is_utf_8_with_or_without_a_mark(tmp_path):
    path = tmp_path / "file"
    for content in (b"\xef\xbb\xbfgr\xc3\xbcn", b"gr\xc3\xbcn"):
        path.write_bytes(content)
        assert read_text(path) == "grün"
    path.write_bytes(b"gr\xfcn")
    with pytest.raises(InputError, match="not text in UTF-8"):
        read_text(path)


def test_what_is_swapped_after_the_first_look_is_refused(tmp_path, monkeypatch):
    path, real = tmp_path / "given", os.stat
    path.touch()
    os.mkfifo(tmp_path / "fifo")

    def swapped(at, *args, **kwargs):
        found = real(at, *args, **kwargs)
        if at == path:
            (tmp_path / "fifo").replace(path)
        return found

    monkeypatch.setattr(os, "stat", swapped)
    with pytest.raises(OSError, match="FIFO"):
        open_regular(path)


# -------------------- writing

PREPARED = {
    "file": lambda path, mine: path.write_text("old"),
    "link to a file": lambda path, mine: path.symlink_to(mine),
    "link to a folder": lambda path, mine: path.symlink_to(mine.parent),
    "link to nothing": lambda path, mine: path.symlink_to(mine.with_name("nowhere")),
    "hard link": lambda path, mine: path.hardlink_to(mine),
    "circle of links": lambda path, mine: a_circle(path),
    "fifo": lambda path, mine: a_fifo(path),
    "socket": lambda path, mine: a_socket(path),
    "device": lambda path, mine: path.symlink_to("/dev/full"),
}


@pytest.mark.parametrize("kind", PREPARED)
def test_what_stands_there_is_replaced_and_never_written_into(tmp_path, kind):
    mine, out = tmp_path / "mine" / "thesis.txt", tmp_path / "out" / "report.json"
    mine.parent.mkdir()
    out.parent.mkdir()
    mine.write_text("years of work")
    PREPARED[kind](out, mine)
    write(out, "new")
    assert out.read_text() == "new"
    assert not out.is_symlink()
    assert mine.read_text() == "years of work"
    assert [path.name for path in (*mine.parent.iterdir(), *out.parent.iterdir())] == ["thesis.txt", "report.json"]


@pytest.mark.parametrize(
    "name", ["a\0b", "x" * 256, "x" * 5000, "y/" * 3000 + "z", "\ud800", "file/below", "folder", "circle/x", "."]
)
def test_where_no_file_can_be(tmp_path, name):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    a_circle(tmp_path / "circle")
    before = sorted(tmp_path.rglob("*"))
    for call in (lambda: write(tmp_path / name, "new"), lambda: copy_file(tmp_path / "file", tmp_path / name)):
        refused(call, "cannot write", kind=OutputError)
    assert sorted(tmp_path.rglob("*")) == before


@given(
    name=st.binary(min_size=1, max_size=255).filter(lambda name: not {0, 47} & set(name) and name not in (b".", b".."))
)
def test_every_name_that_the_file_system_gives(tmp_path_factory, name):
    path = tmp_path_factory.mktemp("names") / os.fsdecode(name)
    write(path, b"1")
    write(path, b"2")
    assert read_bytes(path, 10) == b"2"
    assert len(list(path.parent.iterdir())) == 1
    move(path, path.with_name("other"))
    remove(path.with_name("other"))
    assert list(path.parent.iterdir()) == []


@given(name=st.text(st.characters(exclude_characters="/"), min_size=1, max_size=300))
def test_any_text_is_a_name_or_refused(tmp_path_factory, name):
    folder = tmp_path_factory.mktemp("names")
    try:
        write(folder / "below" / name, b"1")
    except OutputError:
        assert list(folder.iterdir()) == []


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt(), OSError(28, "full")])
@pytest.mark.parametrize("old", [None, "old"])
def test_a_file_is_written_whole_or_not_at_all(tmp_path, error, old):
    path = tmp_path / "file"
    if old is not None:
        path.write_text(old)

    def half():
        with writing(path) as file:
            file.write(b"half")
            raise error

    with pytest.raises(OutputError if isinstance(error, OSError) else type(error)):
        half()
    assert [one.read_text() for one in tmp_path.iterdir()] == ([] if old is None else [old])


def test_a_failed_write_leaves_no_folders_either(tmp_path):
    refused(lambda: write(tmp_path / "deep" / "er" / ("x" * 300), "new"), "too long", kind=OutputError)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_a_mount_point_is_written_into(tmp_path):
    """Such as `docker run -v report.json:/report.json` makes it."""
    for name in ("shared", "out"):
        (tmp_path / name).write_text("something long before")
    mounted("--bind", tmp_path / "shared", tmp_path / "out")
    try:
        write(tmp_path / "out", "new")
        assert (tmp_path / "shared").read_text() == "new"
    finally:
        subprocess.run(["umount", str(tmp_path / "out")], check=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "shared"]


def test_a_file_in_a_folder_that_cannot_be_written_is_written_into(open_folder):
    path, closed = open_folder / "report.json", open_folder / "closed.json"
    for one in (path, closed):
        one.write_text("something long before")
    path.chmod(0o666)
    closed.chmod(0o444)
    (open_folder / "link.json").symlink_to(path)
    open_folder.chmod(0o555)
    try:
        assert as_nobody(lambda: write(path, "new")) == 0
        assert path.read_text() == "new"
        for other in (closed, open_folder / "other.json", open_folder / "link.json"):
            assert as_nobody(lambda other=other: write(other, "newer")) == OutputError.exit_code
        assert path.read_text() == "new"
    finally:
        open_folder.chmod(0o755)


def test_a_folder_that_somebody_made_a_link_is_not_written_through(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "schedules").symlink_to("mine")
    refused(lambda: make_folder(tmp_path / "schedules", own=True), "is a link", kind=OutputError)
    (tmp_path / "schedules").unlink()
    make_folder(tmp_path / "schedules", own=True)
    make_folder(tmp_path / "schedules", own=True)


def test_temporary_names_cannot_be_guessed_and_are_known_again():
    names = {new_name() for _ in range(1000)}
    assert len(names) == 1000
    assert all(map(is_temporary, names))
    assert not any(map(is_temporary, (".ztdeploy-mine", "mine.partial", "manifest.json")))


def test_files_of_killed_processes_go_after_a_day(tmp_path):
    old, young, mine = tmp_path / new_name(), tmp_path / new_name(), tmp_path / "mine"
    for path in (old, young, mine):
        path.touch()
    for path in (old, mine):
        os.utime(path, (0, 0))
    remove_leftovers(tmp_path)
    assert set(tmp_path.iterdir()) == {young, mine}


@pytest.mark.parametrize("code", sorted(errno.errorcode))
def test_whatever_the_system_says_is_one_line_of_ours(tmp_path, code):
    def fail():
        with disk_errors(tmp_path):
            raise OSError(code, os.strerror(code))

    refused(fail, "cannot write", "; ", kind=OutputError)
    assert "\n" not in str(system_error(OSError(code, os.strerror(code), b"\xff\n")))
