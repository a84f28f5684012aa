"""One HTML page with all images, which needs no other file: light and dark, all text escaped."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ztdeploy.core.bundle import Bundle
from ztdeploy.core.files import writing
from ztdeploy.core.text import html_text
from ztdeploy.report.show.captions import (
    ALIKE,
    LEAST,
    MOST,
    UNIMPORTANT,
    heading,
    layer_caption,
    legend,
    nearness,
    position,
    reason_caption,
)
from ztdeploy.report.show.colours import SIMILAR_COLOUR, UNIMPORTANT_COLOUR, importance_colour
from ztdeploy.target.runtime.postprocess import chance

if TYPE_CHECKING:
    from ztdeploy.report.show.show import Seen, ShownImage
    from ztdeploy.report.show.tiles import Grid
    from ztdeploy.target.evaluate.reasons import LayerReasons, Pair
    from ztdeploy.target.runtime.postprocess import Label

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
.over { position: relative; } .over + .over, .over + img { margin-top: .5rem; }
.over svg { position: absolute; inset: 0; width: 100%; height: 100%; }
.over rect { fill: transparent; } .over rect:hover { stroke: #fff; stroke-width: .12; }
.key { display: flex; flex-wrap: wrap; gap: .3rem 1.5rem; color: var(--faint); font-size: .875rem; margin: .75rem 0; }
.key span { display: flex; align-items: center; gap: .5rem; }
.key i { width: .9rem; height: .9rem; border-radius: 3px; }
.key i.scale { width: 10rem; }
details { color: var(--faint); font-size: .875rem; } summary { cursor: pointer; }
details div { max-height: 18rem; overflow: auto; } details th, details td { padding-right: .9rem; white-space: nowrap; }
.doubt { border-left: 3px solid #d98324; padding-left: .75rem; }
figcaption { color: var(--faint); font-size: .875rem; margin-top: .25rem; }
table { border-collapse: collapse; margin: .75rem 0; } th { text-align: left; font-weight: 600; }
th, td { padding: .15rem 1.5rem .15rem 0; vertical-align: top; } td span { color: var(--faint); }
</style>
"""


def write_page(path: Path, bundle: Bundle, images: Iterable[ShownImage]) -> Iterator[ShownImage]:
    """Write the page as images come, and hand them on; it takes its place when the last one is in it."""
    with writing(path) as file:
        file.write((_HEAD + _top(bundle)).encode())
        for one in images:
            file.write(_section(one).encode())
            yield one
        file.write(b"</html>\n")


def _top(bundle: Bundle) -> str:
    name, model = bundle.root.resolve().name, bundle.manifest.model.timm_name
    random = (
        "<p>The weights are random: predictions mean nothing.</p>" if bundle.manifest.weights.source == "random" else ""
    )
    return (
        f"<title>What stays: {html_text(name)}</title>\n<h1>What stays: {html_text(name)}</h1>\n"
        f"<p>{html_text(model)}. Which tokens the engines keep, layer by layer. Blocks count from 1; "
        f"tokens include the class token and its like, which always stay.</p>{random}\n"
    )


def _section(one: ShownImage) -> str:
    return f"<section><h2>{html_text(one.image.name)}</h2>\n{''.join(_row(one, seen) for seen in one.seen)}</section>\n"


def _row(one: ShownImage, seen: Seen) -> str:
    tiles = f"<figure>{_image(one.plain, 'what the model sees')}<figcaption>what the model sees</figcaption></figure>\n"
    tiles += "".join(_layer(one, seen, place) for place in range(len(seen.layers)))
    rows = "".join(
        f"<tr><th>{html_text(name)}</th>{_labels(labels)}</tr>"
        for name, labels in (("dense", one.dense_labels), (seen.variant.name, seen.labels))
        if labels
    )
    near = nearness(seen)
    answers = f"<table>{rows}</table>" if near is None else f"<p>{html_text(near)}</p>"
    doubt = f'<p class="doubt">{html_text(seen.doubt)}</p>\n' if seen.doubt is not None else ""
    return (
        f'<h3>{html_text(heading(seen.variant, one.dense))}</h3>\n<div class="tiles">{tiles}</div>\n{_key(seen)}'
        f"{answers}\n<p>{html_text(legend(seen))}</p>\n{doubt}"
    )


def _layer(one: ShownImage, seen: Seen, place: int) -> str:
    layer, reasons, drawn = seen.layers[place], seen.reasons[place], seen.maps[place]
    caption, grid = layer_caption(layer, one.depth), one.grid
    pictures = f'<div class="over">{_image(seen.tiles[place], caption)}{_titles(reasons, grid)}</div>'
    if drawn is not None:
        pictures += _image(drawn, f"importance at {caption}")
    why = reason_caption(reasons)
    words = html_text(caption) + (f"<br>{html_text(why)}" if why is not None else "")
    return f"<figure>{pictures}<figcaption>{words}</figcaption>{_pairs(reasons, grid)}</figure>\n"


def _titles(reasons: LayerReasons | None, grid: Grid) -> str:
    """What the pointer says on the patches that went by similarity."""
    if reasons is None or not reasons.pairs:
        return ""
    marks = "".join(
        f'<rect x="{grid.place(pair.patch)[1]}" y="{grid.place(pair.patch)[0]}" width="1" height="1">'
        f"<title>{html_text(_words(pair, grid))}</title></rect>"
        for pair in reasons.pairs
    )
    return f'<svg viewBox="0 0 {grid.columns} {grid.rows}" preserveAspectRatio="none" aria-hidden="true">{marks}</svg>'


def _words(pair: Pair, grid: Grid) -> str:
    return f"{position(pair.patch, grid)} is like {position(pair.partner, grid)}: {pair.similarity:.3f}"


def _pairs(reasons: LayerReasons | None, grid: Grid) -> str:
    if reasons is None or not reasons.pairs:
        return ""
    rows = "".join(
        f"<tr><td>{_cell(pair.patch, grid)}</td><td>{_cell(pair.partner, grid)}</td><td>{pair.similarity:.3f}</td></tr>"
        for pair in reasons.pairs
    )
    head = "<tr><th>row, column</th><th>is like</th><th>similarity</th></tr>"
    count = f"{len(reasons.pairs)} similar pair{'s' if len(reasons.pairs) > 1 else ''}"
    return f"<details><summary>{count}</summary><div><table>{head}{rows}</table></div></details>"


def _cell(patch: int | None, grid: Grid) -> str:
    if patch is None:
        return "no patch"
    row, column = grid.place(patch)
    return f"{row + 1}, {column + 1}"


def _key(seen: Seen) -> str:
    """What the colours of patches mean, and those of importance, as far as they are used."""
    reasons = [one for one in seen.reasons if one is not None]
    used = (
        (ALIKE, SIMILAR_COLOUR, any(one.by_similarity for one in reasons)),
        (UNIMPORTANT, UNIMPORTANT_COLOUR, any(one.by_importance for one in reasons)),
    )
    parts = [
        f'<span><i style="background: {_css(colour)}"></i>{html_text(words)}</span>'
        for words, colour, wanted in used
        if wanted
    ]
    if any(one.has_importance for one in reasons):
        stops = ", ".join(_css(colour) for colour in importance_colour(np.linspace(0, 1, 9)))
        ramp = f'<i class="scale" style="background: linear-gradient(to right, {stops})"></i>'
        parts.append(f"<span>{html_text(LEAST)}{ramp}{html_text(MOST)}</span>")
    return f'<div class="key">{"".join(parts)}</div>\n' if parts else ""


def _css(colour: Iterable[float]) -> str:
    return f"rgb({' '.join(str(round(float(part))) for part in colour)})"


def _labels(labels: tuple[Label, ...]) -> str:
    cells = ((html_text(one.name), html_text(chance(one.probability, one.value))) for one in labels)
    return "".join(f"<td>{name} <span>{likely}</span></td>" for name, likely in cells)


def _image(tile: Image.Image, words: str) -> str:
    file = io.BytesIO()
    tile.save(file, "JPEG", quality=90, subsampling=0)
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img src="data:image/jpeg;base64,{data}" alt="{html_text(words)}">'
