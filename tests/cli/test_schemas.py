"""The JSON schemas of what verbs print: shipped, current, one for every verb."""

from __future__ import annotations

import json

import pytest
from test_cli_values import commands

from scripts.schemas import FOLDER, texts
from ztdeploy.cli.app import run
from ztdeploy.cli.results import RESULTS


def test_every_verb_has_a_result_and_the_options_of_all() -> None:
    found = {" ".join(names): command for names, command in commands()}
    assert set(found) == set(RESULTS)
    for verb, command in found.items():
        options = {name for option in command.params for name in option.opts}
        assert {"--json", "--verbose", "-v", "--quiet", "-q"} <= options, verb


def test_schemas_are_current() -> None:
    files = {path.name: path.read_text() for path in FOLDER.iterdir()}
    assert files == texts(), "run: python -m scripts.schemas"


@pytest.mark.parametrize(
    ("arguments", "verb", "code"),
    [
        ("profiles show none --json", "profiles show", 3),
        ("inspect --json", "inspect", 2),
        ("--json models --check none", "models", 3),
        ("bogus --json", None, 2),
    ],
)
def test_errors_are_in_the_same_envelope(
    arguments: str, verb: str | None, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments.split()) == code
    out, err = capsys.readouterr()
    said = json.loads(out)
    assert (said["verb"], said["error"]["exit_code"]) == (verb, code)
    assert err == f"error: {said['error']['message']}\n"
