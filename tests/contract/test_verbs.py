"""What holds for the options of every verb."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from ztdeploy import cli
from ztdeploy.cli import app


def options_of(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Each option of each command, behind the words that lead there."""
    for name, inner in getattr(command, "commands", {}).items():
        yield from options_of(inner, (*path, name))
    if not hasattr(command, "commands"):
        yield from ((path, one) for one in command.params if one.param_type_name == "option")


SINGLE = [
    (path, option.opts[0])
    for path, option in options_of(get_command(app.app))
    if option.name in app._NAMING and not option.multiple
]


@pytest.mark.parametrize(("path", "option"), SINGLE, ids=lambda one: one if isinstance(one, str) else " ".join(one))
def test_what_names_one_thing_is_never_dropped(
    path: tuple[str, ...], option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.run([*path, option, "one", option, "other"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert option in line
    assert "it is given twice and takes one value" in line


def test_there_are_such_options() -> None:
    assert len(SINGLE) > 30
    assert (("sweep",), "--profile") in SINGLE
    assert (("build",), "--profile") not in SINGLE, "which is repeatable"


def test_of_numbers_the_last_one_counts(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["bench", "nowhere", "--rounds", "3", "--rounds", "6"]) == 4
    assert "'nowhere' has no manifest.json" in capsys.readouterr().err


VERB = """
import typer

def register(app):
    app.command(help="Greet somebody.")(greet)

def greet(name: str) -> None:
    typer.echo(f"hello {name}")
"""


def test_a_verb_is_one_file_and_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "greet.py").write_text(VERB)
    monkeypatch.setattr(cli, "__path__", [*cli.__path__, str(tmp_path)])
    monkeypatch.setattr(app, "VERBS", (*app.VERBS, "greet"))
    monkeypatch.setattr(app, "app", app.application())
    assert app.run(["greet", "somebody"]) == 0
    assert capsys.readouterr().out == "hello somebody\n"
    assert app.run(["--help"]) == 0
    assert "Greet somebody." in capsys.readouterr().out
    assert app.run(["greet"]) == 2
