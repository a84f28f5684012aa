"""Fixtures that unit tests share."""

from __future__ import annotations

import subprocess

import pytest


@pytest.fixture
def children(monkeypatch):
    """The processes that a measurement starts."""
    started, popen = [], subprocess.Popen

    def recording(*arguments, **options):
        started.append(popen(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", recording)
    return started
