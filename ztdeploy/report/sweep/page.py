"""The HTML page of a sweep. To add a part, write a file in `parts/` with a function, and add a line to `PARTS`."""

from __future__ import annotations

from pkgutil import resolve_name

from ztdeploy.report.kit.document import document
from ztdeploy.report.kit.markup import element
from ztdeploy.report.sweep.panels import View, title
from ztdeploy.version import __version__

_PARTS = "ztdeploy.report.sweep.parts"
#: The functions that make the parts, from the top of the page to its end, as "module:function". Each takes the `View`
#: of the sweep and returns markup, or None where it has nothing to show.
PARTS: dict[str, str] = {
    "summary": f"{_PARTS}.summary:summary",
    "settings": f"{_PARTS}.settings:settings",
    "tokens": f"{_PARTS}.inside:tokens",
    "time": f"{_PARTS}.inside:time",
    "staircase": f"{_PARTS}.inside:staircase",
    "failures": f"{_PARTS}.evidence:failures",
    "warnings": f"{_PARTS}.evidence:warnings",
    "machine": f"{_PARTS}.evidence:machine",
    "notes": f"{_PARTS}.evidence:how_to_read",
}


def page(view: View) -> str:
    """The whole document, which is well-formed XML as well."""
    footer = f"Written by ztdeploy {__version__} from sweep.json, which holds every single sample."
    parts = [resolve_name(place)(view) for place in PARTS.values()]
    return document(title(view.report), parts, element("footer", footer))
