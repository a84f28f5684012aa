"""The exception tree is what its drawing says, and every error is one line that says value, expectation and fix."""

from __future__ import annotations

import copy
import pickle
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ztdeploy.core import errors
from ztdeploy.core.errors import MissingExtraError, ZtdeployError, did_you_mean

CLASSES = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, ZtdeployError)]
EXIT_CODES = {
    "ZtdeployError": 1,
    "InputError": 3,
    "ProfileError": 3,
    "ScheduleError": 3,
    "ModelError": 3,
    "CheckpointError": 3,
    "ImageError": 3,
    "OutputError": 3,
    "StreamError": 3,
    "BundleError": 4,
    "SignatureError": 4,
    "ParityError": 5,
    "AccuracyError": 8,
    "EnvironmentLacksError": 6,
    "MissingExtraError": 6,
    "BoardError": 6,
    "WeightsUnavailableError": 6,
    "EngineMismatchError": 6,
}


def drawn_tree():
    """From the docstring: class name -> (name of its parent, exit code or None)."""
    tree, path = {}, []
    for line in errors.__doc__.splitlines():
        found = re.match(r"^    ([|` -]*)(\w+Error)\s+(\d+ )?", line)
        if found is None:
            continue
        depth = len(found[1]) // 4
        path[depth:] = [found[2]]
        tree[found[2]] = (path[depth - 1] if depth else "Exception", int(found[3]) if found[3] else None)
    return tree


def make(kind, *parts):
    return kind(*(parts or ("profile 'cpx'", "a profile", "did you mean 'cpu'?")))


def subclasses(kind):
    return {kind} | {deeper for child in kind.__subclasses__() for deeper in subclasses(child)}


# -------------------- the tree


def test_the_drawing_lists_every_class():
    assert set(drawn_tree()) == {kind.__name__ for kind in CLASSES}


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_each_class_stands_where_it_is_drawn(kind):
    parent, code = drawn_tree()[kind.__name__]
    assert kind.__bases__[0].__name__ == parent
    assert code in (None, kind.exit_code)


def test_exit_codes():
    assert {kind.__name__: kind.exit_code for kind in CLASSES} == EXIT_CODES


def test_a_class_without_a_drawn_code_has_its_parents():
    for name, (parent, code) in drawn_tree().items():
        if code is None:
            assert EXIT_CODES[name] == EXIT_CODES[parent]


def test_no_error_class_is_defined_elsewhere():
    import ztdeploy.host.models.loading
    import ztdeploy.jobs.build
    import ztdeploy.target.verify  # noqa: F401

    assert {kind.__module__ for kind in subclasses(ZtdeployError)} == {"ztdeploy.core.errors"}


# -------------------- messages


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_the_message_is_given_expected_fix(kind):
    error = make(kind, "what was found", "what is right", "do this")
    assert all(part in str(error) for part in (error.given, error.expected, error.fix))
    assert str(error) == f"{error.given}; expected {error.expected}; {error.fix}"


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("duplicate", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))])
def test_errors_travel_between_processes(kind, duplicate):
    error = make(kind)
    twin = duplicate(error)
    assert type(twin) is kind
    assert str(twin) == str(error)
    assert vars(twin) == vars(error)


def test_a_missing_extra_says_what_to_install():
    error = MissingExtraError("torch", "build", "building a bundle")
    assert "'torch'" in str(error)
    assert "pip install 'ztdeploy[build]'" in str(error)
    assert (error.module, error.extra) == ("torch", "build")


@pytest.mark.parametrize("nasty", ["a\nb", "a\r\nb", "a\x1b[31mb", "a\u2028b", "a\x00b"])
def test_a_message_is_one_line_whatever_a_file_put_into_it(nasty):
    message = str(ZtdeployError(f"key '{nasty}'", f"not {nasty}", f"remove {nasty}"))
    assert len(message.splitlines()) == 1
    assert message.isprintable(), repr(message)


def test_umlauts_and_double_spaces_in_paths_stay_as_they_are():
    assert "'/tmp/Fotos  für Zoë/ü.png'" in str(ZtdeployError("'/tmp/Fotos  für Zoë/ü.png'", "x", "y"))


# -------------------- did_you_mean


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("cpuu", "did you mean 'cpu'?"),
        ("jetson_orin", "did you mean 'jetson-orin'?"),
        ("raspberry-pi", "did you mean 'raspberry-pi5'?"),
        ("cpu", "did you mean 'cpu'?"),
        ("zzzz", "choose from: cpu, jetson-orin, raspberry-pi5"),
        ("", "choose from: cpu, jetson-orin, raspberry-pi5"),
    ],
)
def test_the_nearest_name_or_all_of_them(name, hint):
    assert did_you_mean(name, ["raspberry-pi5", "cpu", "jetson-orin"]) == hint


def test_known_names_may_be_the_keys_of_a_table():
    assert did_you_mean("opsett", {"opset": 1, "title": 2}) == "did you mean 'opset'?"


@settings(deadline=None)
@given(st.text("abcdefgh", min_size=4, max_size=12), st.data())
def test_one_wrong_letter_still_finds_the_name(name, data):
    position = data.draw(st.integers(0, len(name) - 1))
    misspelt = name[:position] + "z" + name[position + 1 :]
    assert did_you_mean(misspelt, [name, "0123456789"]) == f"did you mean '{name}'?"


def test_a_long_list_of_names_is_cut_short():
    hint = did_you_mean("???", [f"name-{number:04}" for number in range(1000)])
    assert "name-0000" in hint
    assert "more" in hint
    assert len(hint) < 500
