"""One HTML page with all images, which needs no other file: light and dark, all text escaped."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Iterator
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from ztdeploy.bundle import Bundle
from ztdeploy.errors import printable
from ztdeploy.fidelity.captions import heading, layer_caption, legend

if TYPE_CHECKING:
    from ztdeploy.fidelity.show import Seen, ShownImage
    from ztdeploy.runtime.postprocess import Label

_HEAD = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<style>
:root { color-scheme: light dark; --ink: #181b20; --faint: #5c636e; --paper: #fff; --rule: #d9dde3; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ee; --faint: #a0a8b4; --paper: #14171b; --rule: #343a43; } }
body { font: 16px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 0 auto;
  padding: 1.5rem; max-width: 1500px; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.25rem; margin: 0; overflow-wrap: anywhere; }
h3 { font-size: 1rem; margin: 1.25rem 0 .5rem; }
p { color: var(--faint); margin: .25rem 0; max-width: 75ch; }
section { border-top: 2px solid var(--rule); margin-top: 2rem; padding-top: 1.25rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(230px, 1fr)); gap: 1rem; }
figure { margin: 0; } figure img { width: 100%; height: auto; display: block; border-radius: 4px; }
figcaption { color: var(--faint); font-size: .875rem; margin-top: .25rem; }
table { border-collapse: collapse; margin: .75rem 0; } th { text-align: left; font-weight: 600; }
th, td { padding: .15rem 1.5rem .15rem 0; vertical-align: top; } td span { color: var(--faint); }
</style>
"""


def write_page(path: Path, bundle: Bundle, images: Iterable[ShownImage]) -> Iterator[ShownImage]:
    """Write the page as images come, and hand them on; it takes its place when the last one is in it."""
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)  # it might be a link to somewhere else
    try:
        with partial.open("x", encoding="utf-8") as file:
            file.write(_HEAD + _top(bundle))
            for one in images:
                file.write(_section(one))
                yield one
            file.write("</html>\n")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _text(text: str) -> str:
    return escape(printable(text))


def _top(bundle: Bundle) -> str:
    name, model = bundle.root.resolve().name, bundle.manifest.model.timm_name
    random = (
        "<p>The weights are random: predictions mean nothing.</p>" if bundle.manifest.weights.source == "random" else ""
    )
    return (
        f"<title>What stays: {_text(name)}</title>\n<h1>What stays: {_text(name)}</h1>\n"
        f"<p>{_text(model)}. Which tokens the engines keep, layer by layer. Blocks count from 1; "
        f"tokens include the class token and its like, which always stay.</p>{random}\n"
    )


def _section(one: ShownImage) -> str:
    return f"<section><h2>{_text(one.image.name)}</h2>\n{''.join(_row(one, seen) for seen in one.seen)}</section>\n"


def _row(one: ShownImage, seen: Seen) -> str:
    tiles = _figure(one.plain, "what the model sees") + "".join(
        _figure(tile, layer_caption(layer, one.depth)) for tile, layer in zip(seen.tiles, seen.layers, strict=True)
    )
    rows = "".join(
        f"<tr><th>{_text(name)}</th>{_labels(labels)}</tr>"
        for name, labels in (("dense", one.dense_labels), (seen.variant.name, seen.labels))
        if labels
    )
    return (
        f'<h3>{_text(heading(seen.variant, one.dense))}</h3>\n<div class="tiles">{tiles}</div>\n'
        f"<table>{rows}</table>\n<p>{_text(legend(seen.variant))}</p>\n"
    )


def _labels(labels: tuple[Label, ...]) -> str:
    return "".join(f"<td>{_text(one.name)} <span>{100 * one.probability:.1f} %</span></td>" for one in labels)


def _figure(tile: Image.Image, caption: str) -> str:
    file = io.BytesIO()
    tile.save(file, "JPEG", quality=90, subsampling=0)
    data = base64.b64encode(file.getvalue()).decode()
    text = _text(caption)
    return f'<figure><img src="data:image/jpeg;base64,{data}" alt="{text}"><figcaption>{text}</figcaption></figure>\n'
