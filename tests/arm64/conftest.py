"""Emulated boards, and a table of what was seen on them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from helpers.arm_boards import BOARDS, Board

SEEN = pytest.StashKey[list[str]]()


@pytest.fixture(scope="session")
def boards() -> dict[str, Board]:
    """By name; `make test-arm64` says where they are."""
    folder = os.environ.get("ZTDEPLOY_ARM64")
    if not folder:
        pytest.skip("ZTDEPLOY_ARM64 is not set: these tests are run by 'make test-arm64'")
    found = {name: Board(Path(folder).resolve() / "boards" / name) for name in BOARDS}
    for board in found.values():
        assert (board.folder / "bin" / "python").is_file(), f"{board.folder} holds no board; run scripts/arm64.sh"
    return found


@pytest.fixture
def seen(request: pytest.FixtureRequest) -> list[str]:
    """Lines for the end of the run."""
    return request.config.stash.setdefault(SEEN, [])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for line in config.stash.get(SEEN, []):
        terminalreporter.write_line(line)
