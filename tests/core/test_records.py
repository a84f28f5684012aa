"""Records as JSON: what comes back, what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, ValidationError

from ztdeploy.core.errors import ParityError
from ztdeploy.core.records import from_json, to_json


class Row(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str
    value: float
    interval: tuple[float, float] | None = None
    maybe: float | None = None
    path: Path | None = None


class Table(BaseModel):
    rows: tuple[Row, ...]


NAMES = st.text(st.characters(codec=None, categories=None))


@given(NAMES, st.floats(allow_nan=False, allow_infinity=False))
def test_a_record_survives_with_any_name(name, value):
    table = Table(
        rows=(Row(name=name, value=value, interval=(value, value), path=Path("/a" + name.replace("\0", ""))),)
    )
    text = to_json(table, indent=1)
    assert text.isascii()
    assert from_json(Table, text) == from_json(Table, text.encode()) == table


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_null_or_refused(value):
    text = to_json(Table(rows=(Row(name="a", value=1.0, maybe=value),)))
    assert json.loads(text)["rows"][0]["maybe"] is None
    assert from_json(Table, text).rows[0].maybe is None
    for wrong in (Row(name="a", value=value), Row(name="a", value=1.0, interval=(1.0, value))):
        with pytest.raises(ParityError, match=r"'rows\.0\.(value|interval\.1)' of a Table") as caught:
            to_json(Table(rows=(wrong,)))
        assert caught.value.exit_code == 5


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "7" * 5000,
        "[" * 100_000,
        '{"rows": ' * 3000,
        b"\xff\xfe",
        b"\x80",
        '{"rows": [{"name": "a", "value": NaN}]}',
        '{"rows": [{"name": "a", "value": -Infinity}]}',
        '{"rows": [{"name": "a", "value": 1e999}]}',
        '{"rows": [{"name": "a", "value": null}]}',
        '{"rows": [{"name": "a", "value": 1, "more": 1}]}',
        '{"rows": [{"name": 1, "value": 1}]}',
    ],
    ids=range(15),
)
def test_what_is_no_such_record_is_a_validation_error(text):
    with pytest.raises(ValidationError):
        from_json(Table, text)
