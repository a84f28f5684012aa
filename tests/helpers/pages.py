"""What every page and plot promises: well-formed, and asking for nothing outside itself."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

from ztdeploy.report.kit.plots.frame import SVG

#: A name that would be somebody's script or address, were it not escaped.
EVIL = "<script>alert(1)</script>&\"'|`](http://evil.example)\x1b[31m"


def check_inert(path: Path) -> None:
    """Of an HTML or SVG file."""
    text = path.read_text(encoding="utf-8")
    tree = ElementTree.fromstring(text.replace("<!DOCTYPE html>", ""))
    tags = {one.tag.rpartition("}")[2] for one in tree.iter()}
    assert not tags & {"script", "link", "img", "image", "use", "a", "iframe", "foreignObject"}
    for one in tree.iter():
        for name, value in one.attrib.items():
            assert not name.startswith("on")
            assert name not in ("href", "src", "style")
            if name in ("points", "x", "y", "x1", "x2", "cx", "cy", "width", "height"):
                assert not re.search(r"nan|inf|e[+-]?\d", value)
    assert "://" not in text.replace(f'xmlns="{SVG}"', "").replace("http://evil.example", "")
    assert "url(" not in text
    assert "\x1b" not in text
