"""An HTML page: one file, no script, no network; a policy in it forbids both, whatever a name may hold."""

from __future__ import annotations

from ztdeploy.report.kit.markup import Markup, element, fragment
from ztdeploy.report.kit.styles import PAGE_STYLE, style

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def document(title: str, main: Markup) -> str:
    """The whole document, which is well-formed XML as well."""
    head = element(
        "head",
        fragment(
            element("meta", charset="utf-8"),
            element("meta", name="viewport", content="width=device-width, initial-scale=1"),
            element("meta", name="color-scheme", content="light dark"),
            element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
            element("title", title),
            style(*PAGE_STYLE),
        ),
    )
    return f"<!DOCTYPE html>\n{element('html', head, element('body', main), lang='en')}\n"
