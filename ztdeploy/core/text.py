"""Text from outside, made harmless: one function for each medium that it reaches.

Names of classes, files, profiles and nodes, strings of a manifest and messages of libraries come from others. In a
terminal they could move the cursor or reverse the order of what is read, in a page they could be markup, in a
spreadsheet a formula. A file name that is not UTF-8 reaches Python with lone surrogates in it (`os.fsdecode`), which no
encoder takes.
"""

from __future__ import annotations

import html
import json
import math
import re
from typing import Any

#: How many characters of one name, value or part of a message are shown at most.
LONGEST = 1000
_LONGEST_REASON = 200

_MARKDOWN = re.compile(r"([\\`*_\[\]|~$])")
#: The start of a line that makes it a list in Markdown, or the line above it a heading.
_LINE_START = re.compile(r"^(\s*(?:\d+(?=[.)])|(?=[-+=])))")
#: What a forge turns into links even where it is escaped, unless a zero-width space follows.
_LINKING = re.compile(r"([@#]|:(?=//)|www(?=\.))", re.IGNORECASE)
#: How a formula of a spreadsheet begins; tabs and line breaks in front of it are ignored there.
_FORMULA = ("=", "+", "-", "@")


def printable(text: str, longest: int | None = LONGEST) -> str:
    """Text for a terminal, on one line: no control characters, nothing invisible, nothing that reorders what is read.

    Such characters become blanks. A byte of a file name that is not UTF-8 is shown as its number, such as `\\xff`.

    Args:
        longest: how many characters of a longer text are kept, from both of its ends; None: all.
    """
    if longest is not None and len(text) > longest:
        half = (longest - 5) // 2
        text = f"{text[:half]} ... {text[-half:]}"
    return text if text.isprintable() else "".join(map(_shown, text))


def _shown(character: str) -> str:
    if character.isprintable():
        return character
    if "\udc80" <= character <= "\udcff":
        return f"\\x{ord(character) - 0xDC00:02x}"
    return " "


def first_line(error: BaseException) -> str:
    """The first line of a library's message, short enough for ours."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0][:_LONGEST_REASON]


def one_line(error: BaseException) -> str:
    """A library's whole message on one line, short enough for ours."""
    return " ".join(str(error).split())[:_LONGEST_REASON] or type(error).__name__


def html_text(text: str) -> str:
    """Text of an HTML page or an SVG, in an element or a quoted attribute: no markup, nothing unknown to XML."""
    return html.escape(printable(text), quote=True)


def markdown_text(text: str) -> str:
    """Text that Markdown shows as it is, in table cells as well: no markup, no HTML, no link, no mention."""
    escaped = html.escape(_MARKDOWN.sub(r"\\\1", printable(text)), quote=False)
    return _LINKING.sub(r"\1&#8203;", _LINE_START.sub(r"\1\\", escaped))


def csv_cell(value: object) -> object:
    """A value of a CSV file: text stays on one line, and no spreadsheet reads it as a formula."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if text.lstrip().startswith(_FORMULA) else text


def json_text(data: Any, *, indent: int | None = None) -> str:
    """Plain data as JSON in ASCII, which every locale prints and every terminal shows as it is.

    A number that is not finite becomes null. `json.loads` gives text back as it was, lone surrogates included.
    """
    separators = (",", ":") if indent is None else (",", ": ")
    text = json.dumps(finite(data), indent=indent, separators=separators, allow_nan=False)
    return text.replace("\x7f", "\\u007f")


def finite(data: Any) -> Any:
    """The same plain data, with None for every number that is not finite."""
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if isinstance(data, dict):
        return {key: finite(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [finite(value) for value in data]
    return data
