"""Fixtures that tests of graphs share."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.graphs import Store


@pytest.fixture(scope="session", autouse=True)
def _graphs(common: Path) -> None:
    Store.folder = common / "graphs"
