"""Folders that vanish, and locks: what a killed process leaves, and who waits for whom."""

import os
import subprocess
import sys
import time

import pytest
from helpers.errors import refused
from helpers.leftovers import dead_folder, leftovers
from helpers.places import mounted

from ztdeploy.core.errors import BundleError, OutputError
from ztdeploy.core.files import new_name, write
from ztdeploy.core.folders import check_file_writable, check_writable, new_folder, scratch_folder
from ztdeploy.core.locks import only_command, only_one, only_writer


def test_a_scratch_folder_vanishes_and_nobody_else_may_enter_it(tmp_path):
    with scratch_folder(tmp_path) as folder:
        write(folder / "deep" / "file", "1")
        assert folder.stat().st_mode & 0o777 == 0o700
    assert list(tmp_path.iterdir()) == []


def test_what_a_living_process_has_is_left_alone(tmp_path):
    with scratch_folder(tmp_path) as first, scratch_folder(tmp_path) as second:
        assert first.is_dir()
        assert second.is_dir()


def test_what_a_killed_process_left_goes(tmp_path):
    code = """
import os, sys
from pathlib import Path
from ztdeploy.core.folders import scratch_folder
with scratch_folder(Path(sys.argv[1])) as folder:
    (folder / "half").touch()
    os._exit(9)
"""
    assert subprocess.run([sys.executable, "-c", code, tmp_path], check=False).returncode == 9
    assert leftovers(tmp_path)
    with scratch_folder(tmp_path) as folder:
        assert list(tmp_path.iterdir()) == [folder]


def test_what_looks_like_a_leftover_and_may_be_something_else_stays(tmp_path):
    (tmp_path / "mine").mkdir()
    for name in ("thesis.txt", "lock"):
        (tmp_path / "mine" / name).touch()
    (tmp_path / new_name()).symlink_to("mine")
    (tmp_path / ".ztdeploy-mine").mkdir()
    (tmp_path / new_name()).mkdir()  # whose lock is just being made
    fifo = tmp_path / new_name()
    fifo.mkdir()
    os.mkfifo(fifo / "other")
    linked = tmp_path / new_name()
    linked.mkdir()
    (linked / "lock").symlink_to("../mine/lock")
    before = sorted(tmp_path.rglob("*"))
    with scratch_folder(tmp_path):
        pass
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_that_never_got_its_lock_goes_after_a_day(tmp_path):
    folder = tmp_path / new_name()
    folder.mkdir()
    os.utime(folder, (time.time() - 2 * 24 * 3600,) * 2)
    with scratch_folder(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt(), BundleError("a", "b", "c")])
def test_a_folder_that_fails_leaves_nothing_at_any_depth(tmp_path, inside, error):
    final = tmp_path / "deep" / "er" / "final"
    if inside:
        write(final / "last", "old")

    def half():
        with new_folder(final, "last") as folder:
            write(folder / "half", "1")
            raise error

    with pytest.raises(type(error)):
        half()
    assert [path.name for path in tmp_path.rglob("*")] == (["deep", "er", "final", "last"] if inside else [])


def test_a_folder_that_appears_meanwhile_is_not_replaced(tmp_path):
    def late():
        with new_folder(tmp_path / "final", "last") as folder:
            write(folder / "last", "new")
            write(tmp_path / "final" / "thesis.txt", "years of work")

    refused(late, "appeared there meanwhile", kind=OutputError)
    assert [path.name for path in tmp_path.rglob("*")] == ["final", "thesis.txt"]


def test_a_folder_keeps_what_is_its_own(tmp_path):
    """A shell may stand in it, it may be a mount, and who may enter it is somebody's decision."""
    final = tmp_path / "final"
    write(final / "deep" / "old", "old")
    (final / "linked").symlink_to(tmp_path)
    final.chmod(0o750)
    before = final.stat()
    with new_folder(final, "last") as folder:
        write(folder / "other" / "new", "new")
    after = final.stat()
    assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)
    assert sorted(path.name for path in final.rglob("*")) == ["new", "other"]


def test_a_library_that_does_not_say_that_the_disk_is_full(tmp_path):
    (tmp_path / "disk").mkdir()
    mounted("-t", "tmpfs", "-o", "size=128k", "tmpfs", tmp_path / "disk")

    def fill():
        with scratch_folder(tmp_path / "disk") as folder:
            try:
                (folder / "file").write_bytes(bytes(2**20))
            except OSError:
                raise BundleError("a graph that cannot be saved", "b", "c") from None

    try:
        refused(fill, "the disk is full", kind=OutputError)
        assert list((tmp_path / "disk").iterdir()) == []
    finally:
        subprocess.run(["umount", str(tmp_path / "disk")], check=True)


@pytest.mark.parametrize("name", ["a\0b", "x" * 256, "y/" * 3000, "file/below", "\ud800", "/proc/x"])
def test_places_are_tried_before_the_work(tmp_path, name):
    (tmp_path / "file").touch()
    for check in (check_writable, check_file_writable):
        refused(lambda check=check: check(tmp_path / name), "cannot write", kind=OutputError)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("entered", [only_writer, only_one])
def test_one_at_a_time_and_the_next_when_it_is_left(tmp_path, entered):
    place, said = tmp_path if entered is only_writer else tmp_path / "lock", []
    with entered(place):

        def waiting():
            said.append("waits")
            raise InterruptedError

        with pytest.raises(InterruptedError), entered(place, waiting):
            pytest.fail("two are in it")
    with entered(place, lambda: pytest.fail("nobody is in it")):
        pass
    assert said == ["waits"]


def test_the_second_command_is_refused_and_new_folders_go(tmp_path):
    out = tmp_path / "deep" / "out"
    with only_command(out, "sweep"):
        refused(lambda: only_command(out, "sweep").__enter__(), "another sweep", kind=OutputError)
    assert list(tmp_path.iterdir()) == []


def test_a_share_without_locks_lets_everybody_in(tmp_path, monkeypatch):
    def none(*_):
        raise OSError(95, "not supported")

    monkeypatch.setattr("fcntl.flock", none)
    dead_folder(tmp_path)  # which may be alive
    with only_writer(tmp_path), only_writer(tmp_path), scratch_folder(tmp_path):
        pass
    assert len(leftovers(tmp_path)) == 1
