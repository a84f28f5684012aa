"""Settings, reports and lists that anybody may have written: read, or refused in one line, whatever is in them."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from helpers.errors import refused
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from ztdeploy.core.data import SETTINGS_LIMIT, errors_of, parse_json, read_json
from ztdeploy.core.errors import CheckpointError, ImageError, InputError, ProfileError, ScheduleError, ZtdeployError
from ztdeploy.core.profile import HardwareProfile, read_profile, schedule_path
from ztdeploy.core.schedule import PruningSchedule, read_schedule
from ztdeploy.host.models.checkpoint import read_tables
from ztdeploy.host.models.facts import read_class_names
from ztdeploy.target.evaluate.data import read_data, read_labels
from ztdeploy.target.measure.report_file import holds_kind
from ztdeploy.target.measure.sweep_report import read_any_report

PROFILE = 'title = "t"\nbackend = "onnxruntime"\n'
LAYER = "[[layer]]\nblock = 1\nkeep_ratio = 0.5\n"
DIGITS, HEX = "9" * 5000, "0x" + "f" * 5000

#: By what is wrong with it, TOML that is neither a profile nor a schedule.
TOML: dict[str, str] = {
    "a number of 5,000 digits": f"{{key}} = {DIGITS}",
    "a number of 5,000 hexadecimal digits": f"{{key}} = {HEX}",
    "many such numbers": f"{{key}} = [{HEX}, {HEX}, [{HEX}]]",
    "such a number in a table": f"{{key}} = {{{{a = {HEX}}}}}",
    "such a number deep in tables": "{key}" + ".a" * 100 + f" = {HEX}",
    "3,000 tables in each other": "{key}" + ".a" * 3000 + " = 1",
    "3,000 quoted tables in each other": "{key}" + '."a"' * 3000 + " = 1",
    "190 tables in each other": "{key}" + ".a" * 190 + " = 1",
    "a table's name of 3,000 parts": "[x" + ".a" * 3000 + "]",
    "3,000 lists in each other": "{key} = " + "[" * 3000 + "]" * 3000,
    "3,000 open lists": "{key} = " + "[" * 3000,
    "90 lists in each other": "{key} = " + "[" * 90 + "]" * 90,
    "3,000 inline tables": "{key} = " + "{{a = " * 3000 + "1" + "}}" * 3000,
    "a key twice": "{key} = 1\n{key} = 2",
    "a table twice": "[int8]\n[int8]",
    "a key of 50,000 letters": "a" * 50_000 + " = 1",
    "an unknown key with an escape": '"\\u001b[31mred" = 1',
    "an unknown key that turns the line": '"\\u202egnp" = 1',
    "an escape in a value": '{key} = "\\u001b[31m"',
    "a value of 50,000 letters": "{key} = '" + "a" * 50_000 + "'",
    "infinity": "{key} = inf",
    "minus infinity": "{key} = -inf",
    "no number": "{key} = nan",
    "10^308": "{key} = 1e308",
    "10^400": "{key} = 1e400",
    "a day": "{key} = 2020-01-01",
    "a moment": "{key} = 2020-01-01T00:00:00Z",
    "a time": "{key} = 00:00:00",
    "text": "{key} = 'x'",
    "a list": "{key} = []",
    "a table": "{key} = {{}}",
    "true": "{key} = true",
    "less than nothing": "{key} = -1",
    "a zero byte": "{key} = 1\0",
    "a control character": "{key} = 'a\x1bb'",
    "no value": "{key} =",
    "no key": "= 1",
    "JSON": '{{"{key}": 1}}',
    "20,000 unknown keys": "".join(f"k{index} = 1\n" for index in range(10_000)),
    "more than any settings": "#" * (SETTINGS_LIMIT + 1),
}


@pytest.mark.parametrize("what", TOML)
@pytest.mark.parametrize("key", ["opset", "image_input", "int8", "title.x", "keep_ratios"])
def test_a_profile_that_cannot_be_is_refused(tmp_path: Path, what: str, key: str) -> None:
    path = tmp_path / "p.toml"
    path.write_text(f"{TOML[what].format(key=key)}\n{PROFILE}")
    message = refused(lambda: read_profile(str(path)), "p.toml", kind=ProfileError)
    _is_harmless(message)


@pytest.mark.parametrize("what", TOML)
@pytest.mark.parametrize("key", ["layer", "options.metric", "method.x", "name"])
def test_a_schedule_that_cannot_be_is_refused(tmp_path: Path, what: str, key: str) -> None:
    path = tmp_path / "s.toml"
    path.write_text(f"{TOML[what].format(key=key)}\n" + ("" if key == "layer" else LAYER))
    try:
        read_schedule(path)
    except ScheduleError as error:
        _is_harmless(str(error))
    else:
        assert (key, what) in {("layer", "a list"), ("name", "text")}


def _is_harmless(message: str) -> None:
    assert message.isprintable()
    assert len(message) < 3500


@pytest.mark.parametrize("model", [HardwareProfile, PruningSchedule])
@pytest.mark.parametrize("number", [16**5000, -(10**400), 2**63, math.inf, -math.inf, math.nan], ids="abcdef")
def test_every_number_of_settings_is_bounded(model: type[BaseModel], number: float) -> None:
    profile = {"title": "t", "backend": "onnxruntime", "precision": "int8"}
    whole = profile if model is HardwareProfile else {"layer": []}
    for place, value in _numbers(model.model_json_schema(), number):
        with pytest.raises(ValidationError) as caught:
            model.model_validate({"name": "x", **whole, place: value})
        assert all(one["loc"][0] == place for one in errors_of(caught.value)), place


def _numbers(schema: dict[str, Any], number: float) -> list[tuple[str, Any]]:
    """By every property that takes a number somewhere inside: a value with that number there."""

    def inside(one: dict[str, Any]) -> list[Any]:
        if "$ref" in one:
            return inside(schema["$defs"][one["$ref"].rpartition("/")[2]])
        found = [number] if one.get("type") in ("integer", "number") else []
        found += [[value] for value in inside(one.get("items", {}))] if one.get("type") == "array" else []
        found += [value for other in one.get("anyOf", []) for value in inside(other)]
        return found + [{name: value} for name, inner in one.get("properties", {}).items() for value in inside(inner)]

    return [(name, value) for name, one in schema["properties"].items() for value in inside(one)]


# -------------------- JSON

JSON: dict[str, str] = {
    "nothing": "",
    "half of it": '{"a": [1, 2',
    "more than it": "{} {}",
    "NaN": '{"kind": NaN}',
    "infinity": "[Infinity]",
    "10^400": "[1e400]",
    "minus 10^400": '[{"file": "a.png", "indices": [-1e400]}]',
    "a number of 5,000 digits": f"[{DIGITS}]",
    "a number of 4,000 digits": f'[{{"file": "a.png", "indices": [{"9" * 4000}]}}]',
    "a key twice": '{"kind": 1, "kind": 2}',
    "a key twice, deep": '[{"a": [{"b": 1, "b": 1}]}]',
    "100,000 lists in each other": "[" * 100_000 + "]" * 100_000,
    "100,000 objects in each other": '{"a":' * 100_000 + "1" + "}" * 100_000,
    "500 lists in each other": "[" * 500 + "]" * 500,
    "three million values": "[" + "1," * 3_000_000 + "1]",
    "text alone": '"text"',
    "a number alone": "3",
    "null": "null",
    "true": "true",
    "a list": "[]",
    "a list of nulls": "[null, null]",
    "a list of lists": "[[], []]",
    "an object": "{}",
    "an unknown kind": '{"kind": "ztdeploy-something", "schema_version": 1}',
    "a kind with an escape": '{"kind": "ztdeploy-\\u001b[31m\\nred"}',
    "a kind of a megabyte": json.dumps({"kind": "ztdeploy-" + "a" * 2**20}),
    "a kind that is a list": '{"kind": ["ztdeploy-bench"]}',
    "no version": '{"kind": "ztdeploy-bench"}',
    "a version that is text": '{"kind": "ztdeploy-bench", "schema_version": "3"}',
    "a version without an end": f'{{"kind": "ztdeploy-bench", "schema_version": {"9" * 4000}}}',
    "a surrogate": '{"kind": "\\ud800"}',
    "a zero": '{"kind": "\\u0000"}',
    "comments": "// a\n{}",
    "TOML": "a = 1",
}
READERS: dict[str, tuple[Callable[[Path], object], type[ZtdeployError]]] = {
    "report": (read_any_report, InputError),
    "class names": (lambda path: read_class_names(path, 2), InputError),
    "labels": (read_labels, ImageError),
    "schedule": (read_schedule, ScheduleError),
}


@pytest.mark.parametrize("what", JSON)
@pytest.mark.parametrize("reader", READERS)
def test_json_that_is_something_else_is_refused(tmp_path: Path, what: str, reader: str) -> None:
    read, kind = READERS[reader]
    path = tmp_path / "x.json"
    path.write_text(JSON[what])
    _is_harmless(refused(lambda: read(path), "x.json", kind=kind))
    assert not holds_kind(path, "ztdeploy-sweep")
    assert list(tmp_path.iterdir()) == [path]


def read_images(path: Path) -> object:
    return read_data(path, None, 3)


BYTES = {
    "UTF-16": "[1]".encode("utf-16"),
    "Latin-1": '["caf\xe9"]'.encode("latin-1"),
    "a cut character": b'["caf\xc3',
    "zeros": bytes(100),
    "an encoded surrogate": b'["\xed\xa0\x80"]',
    "a picture": b"\x89PNG\r\n\x1a\n",
}
PATHS: dict[str, Callable[[Path], Any]] = {
    "a FIFO": os.mkfifo,
    "a folder": Path.mkdir,
    "a device without an end": lambda path: path.symlink_to("/dev/zero"),
    "a device without a beginning": lambda path: path.symlink_to("/dev/null"),
    "a link to nothing": lambda path: path.symlink_to("none"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a file of a terabyte": lambda path: (path.touch(), os.truncate(path, 2**40)),
    "nothing at all": lambda path: None,
    **{name: partial(lambda content, path: path.write_bytes(content), content) for name, content in BYTES.items()},
}


@pytest.mark.parametrize("what", PATHS)
@pytest.mark.parametrize("reader", [*READERS, "profile"])
def test_what_is_no_file_of_text_is_refused_and_not_waited_for(tmp_path: Path, what: str, reader: str) -> None:
    path = tmp_path / ("x.toml" if reader == "profile" else "x.json")
    PATHS[what](path)
    read, kind = READERS.get(reader, (lambda path: read_profile(str(path)), ProfileError))
    _is_harmless(refused(lambda: read(path), path.name, kind=kind))


@pytest.mark.parametrize("name", ["a" * 5000, "a" * 5000 + ".toml", "a\0b", "a\udcffb", "/dev/stdin/x"])
def test_a_name_that_no_file_can_have_is_refused_by_every_reader(name: str) -> None:
    more = {"images": (read_images, ImageError), "checkpoint": (read_tables, CheckpointError)}
    for read, kind in {**READERS, **more}.values():
        _is_harmless(refused(partial(read, Path(name)), kind=kind))
    if not name.endswith(".toml"):  # such a one is then read
        _is_harmless(refused(lambda: schedule_path(Path(name)), kind=ScheduleError))


def test_a_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(b"\xef\xbb\xbf" + b'["a", "b"]')
    (tmp_path / "p.toml").write_bytes(b"\xef\xbb\xbf" + PROFILE.encode())
    assert read_class_names(tmp_path / "x.json", 2) == ("a", "b")
    assert read_profile(str(tmp_path / "p.toml")).title == "t"


def test_one_that_is_too_large_is_refused_by_its_size(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("[" + " " * 100 + "]")
    assert read_json(tmp_path / "x.json", 102) == []
    refused(lambda: read_json(tmp_path / "x.json", 101), "101 bytes", kind=InputError)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
@settings(max_examples=100, deadline=None)
def test_all_that_json_can_mean_is_read(data: Any) -> None:
    assert parse_json(json.dumps(data)) == data


def test_of_very_many_errors_one_is_told() -> None:
    class Many(BaseModel):
        values: tuple[float, ...]

    with pytest.raises(ValidationError) as caught:
        Many.model_validate({"values": ["x"] * 100_000})
    assert [one["msg"] for one in errors_of(caught.value)] == ["100,000 values are wrong"]
