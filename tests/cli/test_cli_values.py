"""Values on the command line: every option of every verb with what it cannot take, refused before anything is done."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from ztdeploy.cli import options
from ztdeploy.cli.app import VERBS, app, run
from ztdeploy.core.profile import profile_names
from ztdeploy.host.models.catalogue import CATALOGUE, near_short_name

HUGE = str(10**20)
NO_NUMBER = [
    "",
    " ",
    "nan",
    "inf",
    "1e400",
    "x",
    "0x10",
    "٣",
    "\0",
    "1\0",
    "9" * 5000,
    "\x1b[31m",
    "1,2",
]
NO_WHOLE = [*NO_NUMBER, "2.5", "1e3", HUGE, f"-{HUGE}", "-1"]
NO_PATH = ["", "\0", "a\0b", "x" * 5000, "a/" * 3000, f"a/{'y' * 256}/b"]
NO_WORD = ["", " ", "\0", "a\0", "x" * 5000]


def commands(group: Any = None, names: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command with its names on the command line."""
    group = group or typer.main.get_command(app)
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*names, name))
        else:
            yield (*names, name), command


#: What kinds of value are refused, by what the help calls them.
BAD = {
    "PATH": NO_PATH,
    "TEXT": NO_WORD,
    "INTEGERS": [*NO_WHOLE[:-6], "0", HUGE, "1,,2", "1,-1", "2.5", "1;2"],
    "INTEGER": NO_WHOLE,
    "K": NO_WHOLE,
    "NUMBER": [*NO_NUMBER, HUGE, "-1.5"],
    "SECONDS": [*NO_NUMBER, HUGE, "-1"],
    "PERCENT": [*NO_NUMBER, HUGE, "-1"],
    "PIXELS|HEIGHTxWIDTH": ["", "0", "-1", "7", "x", "2.5", HUGE, "96x", "96x384x2", "nan", "\0"],
}


def cases() -> list[Any]:
    found = []
    for names, command in commands():
        for option in command.params:
            if option.param_type_name == "option" and not option.is_flag and option.name != "help":
                for value in BAD.get(option.metavar, []):
                    name = option.opts[0]
                    found.append(
                        pytest.param(names, command, name, value, id=f"{' '.join(names)} {name} {value[:12]!a}")
                    )
    return found


def valid(command: Any, without: str) -> list[str]:
    """What a command must be given, as far as it takes anything at all; none of it is there."""
    typed = []
    for option in command.params:
        if option.required and without not in option.opts:
            typed += ["nothing"] if option.param_type_name == "argument" else [option.opts[0], "nothing"]
    return typed


@pytest.mark.parametrize(("names", "command", "option", "value"), cases())
def test_a_value_that_an_option_cannot_take(names, command, option, value, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    code = run([*names, *valid(command, option), f"{option}={value}" if option.startswith("--") else value])
    said = capfd.readouterr()
    assert code in (2, 3), said
    assert option in said.err
    assert len(said.err.splitlines()) == 1
    assert said.err.rstrip("\n").isprintable()
    assert len(said.err) < 2000
    assert "this is a bug" not in said.err
    assert said.out == ""
    assert not list(tmp_path.iterdir()), "nothing was done"


@pytest.mark.parametrize("value", NO_PATH, ids=lambda value: f"{value[:5]!a}")
@pytest.mark.parametrize(
    "names",
    [
        names
        for names, command in commands()
        if any(one.name == "bundle" for one in command.params if one.param_type_name == "argument")
    ],
    ids=" ".join,
)
def test_a_path_that_no_bundle_can_have(names, value, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    command = dict(commands())[names]
    required = valid(command, "")
    code = run([*names, value, *required[1:]])
    said = capfd.readouterr()
    assert code in (2, 3), said
    assert len(said.err.splitlines()) == 1
    assert "this is a bug" not in said.err


def test_every_option_is_checked_by_one_of_the_kinds():
    """A new option with a plain type of Typer's would take NaN, an empty path, or a number of any size."""
    for path in Path(options.__file__).parent.glob("*.py"):
        if path.name in ("options.py", "app.py"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.arg) and "typer.Option" in ast.unparse(node.annotation or node):
                kind = ast.unparse(node.annotation)
                assert re.match(r"Annotated\[(bool|Literal)", kind), (path.name, kind)


def test_every_verb_is_walked():
    assert {names[0] for names, _ in commands()} >= set(VERBS)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("deit_tiny", "deit_t"),
        ("DeiT-Tiny", "deit_t"),
        ("deit-s", "deit_s"),
        ("Deit_S", "deit_s"),
        ("deit_smal", "deit_s"),
        ("deit base", "deit_b"),
        ("vit_tiny", "vit_t"),
        ("vit-large", "vit_l"),
        ("dinov2_small", "dinov2_s"),
        ("vit_digit", "vit_digits"),
        ("digits", "vit_digits"),
        ("clip", "clip_b"),
        ("mae_large", "mae_l"),
        ("lvvit_medium", "lvvit_m"),
        ("resnet50", None),
        ("vit_base_patch16_224", None),
        ("x" * 5000, None),
    ],
)
def test_a_word_that_is_nearly_a_short_name_is_corrected_to_ours(typed, meant):
    assert near_short_name(typed) == meant


@pytest.mark.parametrize("name", sorted(CATALOGUE))
def test_a_short_name_is_nearest_to_itself(name):
    assert near_short_name(name) == near_short_name(name.upper().replace("_", "-")) == name


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        *((["profiles", "show", name.upper().replace("-", "_")], name) for name in profile_names() if name != "cpu"),
        (["profiles", "check", "cpu-int"], "cpu-int8"),
        (["profiles", "show", "jetson orin"], "jetson-orin"),
        (["build", "-m", "vit_digits", "-p", "cpu", "--schedule", "deit_t_reduction_35"], "deit_t-reduction-35"),
        (["biuld"], "build"),
        (["quick-start"], "quickstart"),
        (["tune", "-m", "vit_digits", "-d", ".", "--method", "novelty_merge"], "novelty-merge"),
        (["tune", "-m", "vit_digits", "-d", ".", "--sampler", "TPE"], "tpe"),
        (["compare", "a", "b", "--match", "image_size"], "image-size"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_a_word_that_is_nearly_a_known_one_is_corrected(arguments, meant, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert run(arguments) in (2, 3)
    (line,) = capfd.readouterr().err.splitlines()
    assert f"id you mean '{meant}'?" in line
