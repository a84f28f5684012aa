"""Values on the command line: every option of every verb with what it cannot take, refused before anything is done."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import pytest
import typer
from hypothesis import given as given_by
from hypothesis import strategies as st

from ztdeploy.cli.app import VERBS, app, run
from ztdeploy.cli.help import Application
from ztdeploy.cli.options import each, options, ratio_or_all
from ztdeploy.core.arguments import BATCH
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
    "FILE": NO_PATH,
    "DIR": NO_PATH,
    "BUNDLE": NO_PATH,
    "NAME": NO_WORD,
    "URL": NO_WORD,
    "N": NO_WHOLE,
    "N,...": [*NO_WHOLE[:-6], "0", HUGE, "1,,2", "1,-1", "1,", ",", "1;2", "²"],
    "NUMBER": [*NO_NUMBER, HUGE, "-1.5"],
    "RATIO": [*NO_NUMBER, HUGE, "-1.5"],
    "RATIO,...": ["0.7,,0.5", "0.7,1.5", "most", "0", "nan", ","],
    "NAME,...": ["", ",", "tome,", "\0"],
    "KEY,...": ["", ",", "fleet.pub,", "\0"],
    "TEXT": NO_WORD,
    "PATH": NO_PATH,
    "FILE,...": ["", ",", "a.toml,"],
    "NAME=N": NO_WORD,
    "KIND": ["", "tensorflow"],
    "auto": ["", "fastest"],
    "tpe|random|nsga2": ["", "tpe,random"],
    "curves|counts": ["", "curves,counts"],
    "text|md": ["", "html"],
    "FIELD,...": ["", "batches", "batch,,threads"],
    "SECONDS": [*NO_NUMBER, HUGE, "-1"],
    "PERCENT": [*NO_NUMBER, HUGE, "-1"],
    "PIXELS": ["", "0", "-1", "7", "x", "2.5", HUGE, "96x", "96x384x2", "nan", "\0"],
    "PIXELS,...": ["", "224,", "224,7", "96x384,x"],
    "R,G,B": ["", "a", "0.5,", "0.5;0.5", "nan,1,1", "inf", "1e999", "0.5 0.5 0.5"],
}


def cases() -> list[Any]:
    found = []
    for names, command in commands():
        for option in command.params:
            if option.param_type_name == "option" and not option.is_flag and option.name != "help":
                for value in BAD.get(option.metavar, []):
                    name = option.opts[-1]
                    found.append(
                        pytest.param(names, command, name, value, id=f"{' '.join(names)} {name} {value[:12]!a}")
                    )
    return found


def representative(found: list[Any]) -> list[Any]:
    """All values of a kind at the first option that takes it, and two at every other; the rest are the long tail."""
    by_option: dict[Any, list[Any]] = {}
    for case in found:
        names, _, option, _ = case.values
        by_option.setdefault((names, option), []).append(case)
    seen, marked = set[Any](), []
    for number, several in enumerate(by_option.values()):
        kind = tuple(case.values[-1] for case in several)
        short = {number % len(kind), (number + len(kind) // 2) % len(kind)} if kind in seen else range(len(kind))
        seen.add(kind)
        for at, case in enumerate(several):
            marked.append(case if at in short else pytest.param(*case.values, id=case.id, marks=pytest.mark.long))
    return marked


def valid(command: Any, without: str) -> list[str]:
    """What a command must be given, as far as it takes anything at all; none of it is there."""
    typed = []
    for option in command.params:
        if option.required and without not in option.opts:
            name = [] if option.param_type_name == "argument" else [option.opts[0]]
            typed += [*name, {"KIND": "onnx"}.get(option.metavar, "nothing")]
    return typed


@pytest.mark.parametrize(("names", "command", "option", "value"), representative(cases()))
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
    for names, command in commands():
        for one in command.params:
            checked = one.param_type_name == "argument" or one.is_flag or one.metavar in BAD
            assert checked, (names, one.name, one.metavar)


def given(option: Any, *typed: str) -> Any:
    """What a verb gets of an option that is typed so often."""
    verb = Application()
    found = list[Any]()

    def keep(value: Any = None) -> None:
        found.append(value)

    keep.__annotations__["value"] = Annotated[list[Any] | None, option]
    verb.command()(keep)
    assert run([word for one in typed for word in ("-k", one)], commands=verb) == 0
    return found[0]


@pytest.mark.parametrize(
    ("typed", "values"),
    [
        ((), None),
        (("0.7",), [0.7]),
        (("0.9,0.7", "0.5"), [0.9, 0.7, 0.5]),
        ((" 0.7 , 0.5,0.7",), [0.7, 0.5]),
        (("0.7", "all"), ["all"]),
    ],
)
def test_several_values_come_with_commas_and_repeated(typed, values):
    assert given(options("-k RATIO", ratio_or_all, "Pruning", "Which."), *typed) == values


@given_by(st.lists(st.integers(1, 4096), min_size=1, max_size=5, unique=True))
def test_every_list_of_counts_is_read_back(counts):
    assert each(BATCH)(",".join(map(str, counts))) == tuple(counts)


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
