"""Where the cache lies, what entries are named after, and who writes when."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from helpers.errors import refused

from ztdeploy.core import cache
from ztdeploy.core.cache import cache_errors, cache_folder, key_of, source_digest
from ztdeploy.core.errors import OutputError
from ztdeploy.core.locks import only_one


@pytest.mark.parametrize(
    ("given", "variables", "expected"),
    [
        ("/given", {"ZTDEPLOY_CACHE": "/named", "XDG_CACHE_HOME": "/shared"}, "/given"),
        (None, {"ZTDEPLOY_CACHE": "/named", "XDG_CACHE_HOME": "/shared"}, "/named"),
        (None, {"XDG_CACHE_HOME": "/shared"}, "/shared/ztdeploy"),
        (None, {"XDG_CACHE_HOME": "relative"}, "/home/somebody/.cache/ztdeploy"),
        (None, {}, "/home/somebody/.cache/ztdeploy"),
    ],
)
def test_where_it_lies(given, variables, expected, monkeypatch):
    for name in ("ZTDEPLOY_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "/home/somebody", **variables}.items():
        monkeypatch.setenv(name, value)
    assert cache_folder(None if given is None else Path(given)) == Path(expected)


def test_a_relative_folder_does_not_follow_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cache_folder(Path("here")) == tmp_path / "here"


def test_a_key_is_of_everything_and_in_no_order(monkeypatch):
    key = key_of(model="deit_s", ratio=0.7)
    assert key == key_of(ratio=0.7, model="deit_s")
    assert (
        len({key, key_of(model="deit_s", ratio=0.70001), key_of(model="deit_s"), key_of(model="deit_t", ratio=0.7)})
        == 4
    )
    with monkeypatch.context() as patch:
        patch.setattr(cache, "source_digest", lambda: "an older ztdeploy")
        assert key_of(model="deit_s", ratio=0.7) != key
    monkeypatch.setattr(cache, "tool_versions", lambda: {"torch": "0.1"})
    assert key_of(model="deit_s", ratio=0.7) != key


def test_every_source_file_counts(tmp_path, monkeypatch):
    package = tmp_path / "ztdeploy"
    package.mkdir()
    (package / "cache.py").write_text("pass")
    monkeypatch.setattr(cache, "__file__", str(package / "cache.py"))
    monkeypatch.setattr(cache, "data_folder", lambda name: tmp_path / name)
    digests = [source_digest.__wrapped__()]
    (package / "new.py").write_text("")
    digests.append(source_digest.__wrapped__())
    (package / "new.py").write_text("1")
    digests.append(source_digest.__wrapped__())
    assert len(set(digests)) == 3
    (package / "__pycache__").mkdir()
    (package / "__pycache__" / "new.pyc").write_text("1")
    assert source_digest.__wrapped__() == digests[-1]


def test_one_at_a_time(tmp_path):
    """The second one says that it waits, and comes in when the first has left."""
    lock, events = tmp_path / "deep" / "entry.lock", []
    inside, leave, waits = threading.Event(), threading.Event(), threading.Event()

    def first():
        with only_one(lock):
            inside.set()
            assert leave.wait(20)
            events.append("first leaves")

    thread = threading.Thread(target=first)
    thread.start()
    assert inside.wait(20)

    def waiting():
        events.append("second waits")
        waits.set()
        leave.set()

    with only_one(lock, waiting):
        events.append("second is in")
    thread.join()
    assert events == ["second waits", "first leaves", "second is in"]


def test_a_killed_process_holds_nothing(tmp_path):
    code = """
import os, sys
from pathlib import Path
from ztdeploy.core.locks import only_one
with only_one(Path(sys.argv[1])):
    os._exit(9)
"""
    lock = tmp_path / "entry.lock"
    assert subprocess.run([sys.executable, "-c", code, lock], check=False).returncode == 9
    with only_one(lock, lambda: pytest.fail("it waits for a process that is dead")):
        pass


def test_a_cache_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")

    def enter():
        with cache_errors(tmp_path / "file"), only_one(tmp_path / "file" / "entry.lock"):
            pytest.fail("there is no such folder")

    refused(enter, "the cache", "--cache", "ZTDEPLOY_CACHE", kind=OutputError)


def test_a_user_without_a_home_is_told_how_to_have_a_cache(monkeypatch):
    for name in ("ZTDEPLOY_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 2**30)
    refused(cache_folder, "home folder", "--cache", "ZTDEPLOY_CACHE", kind=OutputError)
