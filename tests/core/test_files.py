"""The file layer: what it reads, what it writes, and what it refuses."""

import os
import socket
import tempfile
from pathlib import Path

import pytest

from ztdeploy.core.files import open_regular, read_bytes, read_text
from ztdeploy.errors import BundleError, InputError

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
