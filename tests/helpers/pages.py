"""What every page and plot promises: well-formed, and asking for nothing outside itself."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar
from xml.etree import ElementTree

from ztdeploy.report.kit.plots.frame import SVG

_Report = TypeVar("_Report")
#: A name that would be somebody's script or address, were it not escaped.
EVIL = "<script>alert(1)</script>&\"'|`](http://evil.example)\x1b[31m"


def all_written(
    write: Callable[[_Report, Path], Sequence[Path]], report: _Report, out: Path, *, page: str
) -> tuple[_Report, Path]:
    """A report and the folder that it was written to. Nothing lies there but what the writer names, the page first, and
    pages and plots are inert.
    """
    paths = write(report, out)
    assert set(paths) == {path for path in out.rglob("*") if path.is_file()}
    assert paths[0] == out / page
    for path in paths:
        if path.suffix in (".html", ".svg"):
            check_inert(path)
    return report, out


def check_inert(path: Path) -> None:
    """Of an HTML or SVG file, whose only pictures are inside of it."""
    text = path.read_text(encoding="utf-8")
    tree = ElementTree.fromstring(text.replace("<!DOCTYPE html>", ""))
    tags = {one.tag.rpartition("}")[2] for one in tree.iter()}
    assert not tags & {
        "script",
        "link",
        "image",
        "use",
        "a",
        "iframe",
        "object",
        "embed",
        "form",
        "base",
        "foreignObject",
    }
    for one in tree.iter():
        for name, value in one.attrib.items():
            assert not name.startswith("on")
            assert name not in ("href", "style", "action")
            assert name != "src" or (one.tag == "img" and re.fullmatch(r"data:image/(jpeg|png);base64,[\w+/=]+", value))
            if name in ("points", "d", "x", "y", "x1", "x2", "y1", "y2", "cx", "cy", "width", "height"):
                assert not re.search(r"nan|inf|e[+-]?\d", value), (one.tag, name, value)
            if name in ("width", "height") and "rect" in one.tag:
                assert float(value) >= 0
    if path.suffix == ".html":
        (policy,) = [one.attrib["content"] for one in tree.iter("meta") if "http-equiv" in one.attrib]
        assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert "://" not in text.replace(f'xmlns="{SVG}"', "").replace("http://evil.example", "")
    assert "url(" not in text
    assert "@import" not in text
    assert "\x1b" not in text
