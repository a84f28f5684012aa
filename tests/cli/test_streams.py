"""Standard streams that are closed, full, or gone: one line where somebody hears it, and no file in their place."""

import json
import subprocess
import sys

import pytest

HERE = [sys.executable, "-m", "ztdeploy", "profiles", "list", "--json"]


def ended(redirected: str) -> tuple[int, str, str]:
    """Exit code and what was heard of a command whose streams a shell has redirected."""
    command = ["sh", "-c", f'"$@" {redirected}', "sh", *HERE]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("redirected", [">&-", ">/dev/full", "<&- >&-", "1</dev/null"])
def test_standard_output_that_takes_nothing(redirected):
    code, out, err = ended(redirected)
    assert (code, out) == (3, "")
    assert err.startswith("error: standard output cannot be written: ")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("redirected", ["2>&-", "2>/dev/full", "<&- 2>&-", "2</dev/null"])
def test_standard_error_that_takes_nothing_changes_nothing(redirected):
    code, out, err = ended(redirected)
    assert (code, err) == (0, "")
    assert json.loads(out)


@pytest.mark.parametrize("redirected", ["<&- >&- 2>&-", ">/dev/full 2>/dev/full", ">&- 2>/dev/full"])
def test_nobody_can_be_told_and_the_code_says_it(redirected):
    assert ended(redirected) == (3, "", "")


def test_a_reader_that_has_had_enough_is_no_error():
    assert ended("| true")[0] == 0
    assert ended("| head -c 1")[2] == ""


CLOSED = """
import os, sys
for one in (0, 1, 2):
    os.close(one)
sys.stdin = sys.stdout = sys.stderr = None
from ztdeploy.cli.streams import prepare_streams
from ztdeploy.core.errors import StreamError
prepare_streams()
first = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
os.write(2, b"a library speaks")
try:
    os.write(1, b"a library speaks")
    os._exit(7)
except OSError:
    os._exit(first)
"""


def test_a_file_of_ours_never_gets_the_number_of_a_closed_stream(tmp_path):
    done = subprocess.run([sys.executable, "-c", CLOSED, str(tmp_path / "bundle")], check=False)
    assert done.returncode >= 3
    assert done.returncode != 7
    assert (tmp_path / "bundle").read_bytes() == b""
