"""What `show` writes: a contact sheet per image, and one page of all, which needs no other file: light and dark."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ztdeploy.core.bundle import Bundle
from ztdeploy.core.errors import OutputError
from ztdeploy.core.files import disk_errors, make_folder, write, writing
from ztdeploy.core.folders import check_folder_path
from ztdeploy.core.text import html_text
from ztdeploy.report.kit.markup import Markup, element, fragment
from ztdeploy.report.kit.numbers import counted
from ztdeploy.report.show.contact_sheet import contact_sheet
from ztdeploy.report.show.drawing import LEAST, MOST, ImageDrawing, LayerDrawing, VariantDrawing, draw
from ztdeploy.report.show.tiles import Grid, css, importance_colour
from ztdeploy.target.evaluate.explain import ExplainedImage
from ztdeploy.target.evaluate.reasons import Pair
from ztdeploy.target.runtime.postprocess import chance

#: What `show` writes is told from everything else by its name, and only that is replaced.
PAGE, SHEET_SUFFIX = "show.html", ".show.png"
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


def sheet_paths(images: Sequence[Path], out: Path) -> list[Path]:
    """The file of each image's contact sheet, each with another name, where case does not matter as well.

    Raises:
        OutputError: `out` is a file, or holds a folder where a file goes.
    """
    names: list[str] = []
    for image in images:
        stem = re.sub(r"[^A-Za-z0-9_-]+", "-", image.stem).strip("-")[:80] or "image"
        taken, count, name = {one.lower() for one in names}, 1, stem
        while name.lower() in taken:
            count += 1
            name = f"{stem}-{count}"
        names.append(name)
    sheets = [out / f"{name}{SHEET_SUFFIX}" for name in names]
    check_folder_path(out)
    with disk_errors(out):
        for file in (*sheets, out / PAGE):
            if file.is_dir():
                raise OutputError(f"'{file}' is a folder", "a file to write", "choose another --out")
    return sheets


def write_show(
    bundle: Bundle, images: Iterable[ExplainedImage], sheets: Sequence[Path], out: Path
) -> Iterator[tuple[ExplainedImage, Path]]:
    """Write a contact sheet per image as images come, and hand both on; and a page of all when the last one is taken.

    Args:
        sheets: as `sheet_paths` gives them.

    Raises:
        OutputError: `out` cannot be written.
    """
    make_folder(out)
    with writing(out / PAGE) as file:
        file.write((_HEAD + _top(bundle)).encode())
        for one, sheet in zip(images, sheets, strict=True):
            drawing, png = draw(one, bundle.manifest), io.BytesIO()
            contact_sheet(drawing).save(png, "PNG")
            write(sheet, png.getbuffer())
            file.write(_section(drawing).encode())
            yield one, sheet
        file.write(b"</html>\n")


def _top(bundle: Bundle) -> Markup:
    title = f"What stays: {bundle.root.resolve().name}"
    random = bundle.manifest.weights.source == "random"
    return fragment(
        element("title", title),
        element("h1", title),
        element(
            "p",
            f"{bundle.manifest.model.timm_name}. Which tokens the engines keep, layer by layer. Blocks count from 1; "
            "tokens include the class token and its like, which always stay.",
        ),
        element("p", "The weights are random: predictions mean nothing.") if random else None,
    )


def _section(drawing: ImageDrawing) -> Markup:
    return element("section", element("h2", drawing.name), [_row(drawing, row) for row in drawing.rows])


def _row(drawing: ImageDrawing, row: VariantDrawing) -> Markup:
    seen = "what the model sees"
    answers = [
        element("tr", element("th", name), [_answer(one.name, chance(one.probability, one.value)) for one in labels])
        for name, labels in row.answers
        if labels
    ]
    return fragment(
        element("h3", row.heading),
        element(
            "div",
            element("figure", _image(drawing.plain, seen), element("figcaption", seen)),
            [_panel(panel, drawing.grid) for panel in row.panels],
            class_="tiles",
        ),
        _key(row),
        element("table", answers) if row.nearness is None else element("p", row.nearness),
        element("p", row.legend),
        None if row.doubt is None else element("p", row.doubt, class_="doubt"),
    )


def _answer(name: str, likely: str) -> Markup:
    return element("td", f"{name} ", element("span", likely))


def _panel(panel: LayerDrawing, grid: Grid) -> Markup:
    importance = panel.importance
    return element(
        "figure",
        element("div", _image(panel.tile, panel.caption), _titles(panel.pairs, grid), class_="over"),
        None if importance is None else _image(importance, f"importance at {panel.caption}"),
        element("figcaption", panel.caption, () if panel.gone is None else (element("br"), panel.gone)),
        _pairs(panel.pairs, grid),
    )


def _titles(pairs: Sequence[Pair], grid: Grid) -> Markup | None:
    """What the pointer says on the patches that went by similarity."""
    marks = []
    for pair in pairs:
        row, column = grid.place(pair.patch)
        words = f"{grid.words(pair.patch)} is like {grid.words(pair.partner)}: {pair.similarity:.3f}"
        marks.append(element("rect", element("title", words), x=column, y=row, width=1, height=1))
    box = f"0 0 {grid.columns} {grid.rows}"
    return element("svg", marks, viewBox=box, preserveAspectRatio="none", aria_hidden="true") if marks else None


def _pairs(pairs: Sequence[Pair], grid: Grid) -> Markup | None:
    if not pairs:
        return None

    def cell(patch: int | None) -> str:
        return "no patch" if patch is None else "{}, {}".format(*(place + 1 for place in grid.place(patch)))

    rows = [(cell(pair.patch), cell(pair.partner), f"{pair.similarity:.3f}") for pair in pairs]
    head = [element("th", text) for text in ("row, column", "is like", "similarity")]
    body = [element("tr", [element("td", text) for text in row]) for row in rows]
    table = element("div", element("table", element("tr", head), body))
    return element("details", element("summary", counted(len(pairs), "similar pair")), table)


def _key(row: VariantDrawing) -> Markup | None:
    """What the colours of patches mean, and those of importance, as far as they are used."""
    parts = [element("span", element("i", style=f"background: {css(colour)}"), text) for text, colour in row.keys]
    if any(panel.importance is not None for panel in row.panels):
        stops = ", ".join(css(colour) for colour in importance_colour(np.linspace(0, 1, 9)))
        ramp = element("i", class_="scale", style=f"background: linear-gradient(to right, {stops})")
        parts.append(element("span", LEAST, ramp, MOST))
    return element("div", parts, class_="key") if parts else None


def _image(tile: Image.Image, words: str) -> Markup:
    file = io.BytesIO()
    tile.save(file, "JPEG", quality=90, subsampling=0)
    data = base64.b64encode(file.getvalue()).decode()
    # An attribute of `element` has at most so many characters.
    return Markup(f'<img src="data:image/jpeg;base64,{data}" alt="{html_text(words)}"/>')
