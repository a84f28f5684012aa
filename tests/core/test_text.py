"""Text from outside, for every medium: by kind of what is hostile in it, and by any characters there are."""

from __future__ import annotations

import ast
import csv
import html
import io
import json
import os
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ztdeploy
from ztdeploy.core.text import LONGEST, csv_cell, html_text, json_text, markdown_text, printable

PACKAGE = Path(ztdeploy.__file__).parent
#: By kind, what must not reach a reader as it is.
HOSTILE = {
    "c0": [chr(code) for code in range(32)],
    "del and c1": [chr(code) for code in range(127, 160)],
    "bidi": [*map(chr, range(0x202A, 0x202F)), *map(chr, range(0x2066, 0x206A)), "\u200e", "\u200f", "\u061c"],
    "zero width": ["\u200b", "\u200c", "\u200d", "\u2060", "\ufeff", "\u00ad"],
    "separators": ["\u2028", "\u2029", "\u0085"],
    "surrogates": ["\ud800", "\udbff", "\udc00", "\udcff", "\udc80"],
    "tags": ["\U000e0041", "\U000e007f"],
}
CASES = [pytest.param(character, id=f"{kind} {ord(character):04x}") for kind in HOSTILE for character in HOSTILE[kind]]
#: Every character, lone surrogates among them.
ANY = st.text(st.characters(codec=None, categories=None))


@pytest.mark.parametrize("character", CASES)
def test_no_medium_lets_a_hostile_character_through(character):
    text = f"a{character}b"
    for made in (printable(text), html_text(text), markdown_text(text), str(csv_cell(text))):
        assert character not in made
        assert made.startswith("a")
        assert made.endswith("b")
        made.encode()
    assert json_text(text).isprintable()
    assert json.loads(json_text(text)) == text


@given(ANY)
def test_any_text_is_harmless_everywhere(text):
    assert printable(text).isprintable()
    assert len(printable(text)) <= max(LONGEST, 4 * len(text))
    root = ElementTree.fromstring(f'<p title="{html_text(text)}">{html_text(text)}</p>')
    assert (root.text or "") == root.get("title") == printable(text)
    assert "\n" not in markdown_text(text)
    assert not re.search(r"(?<!\\)[`*_|~$\[\]]|<|>", markdown_text(text).replace("\\\\", ""))
    assert json.loads(json_text([text, {text: 1}])) == [text, {text: 1}]
    sheet = io.StringIO()
    csv.writer(sheet).writerow([csv_cell(text), "next"])
    (row,) = csv.reader(io.StringIO(sheet.getvalue()))
    assert len(row) == 2
    assert not row[0].lstrip().startswith(("=", "+", "-", "@"))


@pytest.mark.parametrize("name", [b"a\xff.png", b"\x80", b"caf\xe9.jpg", b"\xf0\x9f", b"ok\xc3\xa9\xff"])
def test_a_file_name_that_is_not_utf8_is_shown_by_its_bytes_and_survives_json(name):
    text = os.fsdecode(name)
    assert "\\x" in printable(text)
    assert os.fsencode(json.loads(json_text({"image": text}))["image"]) == name


def test_names_people_use_stay_as_they_are():
    for name in ("tench, Tinca tinca", "Straße", "猫", "قط", "🐈", "a/b (c) [d].png", "x" * LONGEST):
        assert printable(name) == name


def test_a_long_text_keeps_both_of_its_ends():
    assert printable("a" * 9 + "x" * 9**5 + "b" * 9, 50) == f"{'a' * 9}{'x' * 13} ... {'x' * 13}{'b' * 9}"


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t=", "\r=", "\n@", " =", "\x00-", "\u00a0="])
def test_no_cell_of_a_table_is_a_formula(start):
    assert str(csv_cell(f"{start}cmd|' /C calc'!A0")).startswith("'")


@pytest.mark.parametrize(
    ("text", "live"),
    [
        ("# heading", r"^#\s"),
        ("- item", r"^\s*-"),
        ("+ item", r"^\s*\+"),
        ("12. item", r"^\d+\."),
        ("1) item", r"^\d+\)"),
        ("=====", "^="),
        ("http://evil.example", "://"),
        ("www.evil.example", r"www\."),
        ("@team", "@t"),
        ("#1", "#1"),
        ("a | b", r"[^\\]\|"),
        ("a\n\n# b", "\n"),
        ("<img src=x>", "<"),
        ("&lt;script&gt;", "&lt;"),
        ("$x$", r"(?<!\\)\$"),
        ("[a](b)", r"(?<!\\)\["),
    ],
)
def test_nothing_in_markdown_is_markup(text, live):
    assert not re.search(live, markdown_text(text))
    shown = html.unescape(re.sub(r"\\(.)", r"\1", markdown_text(text))).replace("\u200b", "")
    assert shown == printable(text)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_json_and_csv_hold_no_number_that_is_not_finite(value):
    assert json.loads(json_text({"a": [value, (value, 1.5)], "b": {"c": value}})) == {
        "a": [None, [None, 1.5]],
        "b": {"c": None},
    }
    assert csv_cell(value) is None


# -------------------- one door


#: The only modules that print, and what processes of ours say to each other.
PRINTS = {"cli/output.py"}

_PRINTING = {"echo", "secho", "print", "Console", "print_exception", "pprint"}


def test_everything_that_prints_goes_through_one_module():
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            called = node.func if isinstance(node, ast.Call) else None
            name = getattr(called, "id", getattr(called, "attr", None))
            stream = isinstance(node, ast.Attribute) and node.attr in ("stdout", "stderr")
            used = stream and isinstance(node.value, ast.Name) and node.value.id == "sys"
            if name in _PRINTING or used:
                found.add((path.relative_to(PACKAGE).as_posix(), name or node.attr))
    assert {path for path, _ in found} - PRINTS == {"cli/app.py", "cli/streams.py"}
    assert ("cli/app.py", "print_exception") in found, "the traceback that --debug asks for"


def test_only_one_module_makes_json_of_records():
    """Pydantic's own methods refuse names of files that are not UTF-8."""
    for path in PACKAGE.rglob("*.py"):
        names = {
            node.attr
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Attribute)
        }
        assert "model_dump_json" not in names, path
        assert "model_validate_json" not in names or path.name == "hf_processor.py", "which reads what others wrote"
