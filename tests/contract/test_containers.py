"""The Dockerfiles, which nobody has built so far: what they copy is there, and they install what exists."""

from __future__ import annotations

import re
from fnmatch import fnmatch
from pathlib import Path

import pytest
from helpers.processes import CHECKOUT

from ztdeploy.core.data import parse_toml

DOCKERFILES = sorted((CHECKOUT / "docker").glob("*.Dockerfile"))
SHIPPED = ("ztdeploy", "profiles", "plugins", "pyproject.toml", "README.md", "LICENSE")  #: what a wheel is built from


def instructions(path: Path) -> list[list[str]]:
    text = re.sub(r"^#.*\n", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE).replace("\\\n", " ")
    return [line.split() for line in text.splitlines() if line.strip()]


def copied(path: Path) -> list[str]:
    """The paths that come from the checkout, and not from another stage."""
    found = [words[1:-1] for words in instructions(path) if words[0] == "COPY"]
    return [name for words in found if not words[0].startswith("--from") for name in words]


def test_there_are_two() -> None:
    assert [path.name for path in DOCKERFILES] == ["jetson.Dockerfile", "target.Dockerfile"]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_what_is_copied_is_there_and_not_ignored(path: Path) -> None:
    rules = (CHECKOUT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert set(SHIPPED) <= set(copied(path))
    for name in copied(path):
        assert (CHECKOUT / name).exists(), name
        last = [rule for rule in rules if fnmatch(name, rule.removeprefix("!"))][-1]
        assert last.startswith("!"), f"{name} is ignored by {last}"


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_it_runs_our_command_as_an_ordinary_user(path: Path) -> None:
    found = instructions(path)
    users = [words[1] for words in found if words[0] == "USER"]
    made = [words[-1] for words in found if words[0] == "RUN" and "useradd" in words]
    assert users == made == ["ztdeploy"]
    project = parse_toml((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (entry,) = (re.findall(r'"(\S+)"', " ".join(words)) for words in found if words[0] == "ENTRYPOINT")
    assert set(entry) <= set(project["scripts"])
    text = path.read_text(encoding="utf-8")
    extras = {extra for group in re.findall(r"\[([a-z,-]+)\]", text) for extra in group.split(",")}
    assert extras <= set(project["optional-dependencies"])
