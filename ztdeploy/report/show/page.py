"""What `show` writes: a contact sheet per image, and one page of all, which needs no other file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ztdeploy.core.bundle import Bundle
from ztdeploy.core.errors import OutputError
from ztdeploy.core.files import disk_errors, make_folder, writing
from ztdeploy.core.folders import check_folder_path
from ztdeploy.report.kit.colours import css, scale_colour
from ztdeploy.report.kit.document import CLOSING, opening
from ztdeploy.report.kit.figure import folded, legend, photograph, trust
from ztdeploy.report.kit.map_files import write_png
from ztdeploy.report.kit.markup import Markup, element, fragment
from ztdeploy.report.kit.numbers import counted
from ztdeploy.report.kit.sheet import Column, table
from ztdeploy.report.show.contact_sheet import contact_sheet
from ztdeploy.report.show.drawing import LEAST, MOST, ImageDrawing, LayerDrawing, VariantDrawing, draw
from ztdeploy.report.show.tiles import Grid
from ztdeploy.target.evaluate.explain import ExplainedImage
from ztdeploy.target.evaluate.reasons import Pair
from ztdeploy.target.runtime.postprocess import Label
from ztdeploy.version import __version__

#: What `show` writes is told from everything else by its name, and only that is replaced.
PAGE, SHEET_SUFFIX = "show.html", ".show.png"
#: Images up to which all are unfolded; of more, only those whose answer changed.
_UNFOLDED = 3


def sheet_paths(images: Sequence[Path], out: Path, suffix: str = SHEET_SUFFIX) -> list[Path]:
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
    sheets = [out / f"{name}{suffix}" for name in names]
    check_folder_path(out)
    with disk_errors(out):
        for file in (*sheets, out / PAGE):
            if file.is_dir():
                raise OutputError(f"'{file}' is a folder", "a file to write", "choose another --out")
    return sheets


def write_show(
    bundle: Bundle, images: Iterable[ExplainedImage], sheets: Sequence[Path], out: Path, *, cascade: bool = False
) -> Iterator[tuple[ExplainedImage, Path]]:
    """Write a contact sheet per image as images come, and hand both on; and a page of all when the last one is taken.

    Args:
        sheets: as `sheet_paths` gives them.
        cascade: the images went through stages of the bundle's cascade.

    Raises:
        OutputError: `out` cannot be written.
    """
    make_folder(out)
    title = f"What stays: {bundle.root.resolve().name}"
    with writing(out / PAGE) as file:
        file.write((opening(title) + _top(bundle, title, len(sheets), cascade=cascade)).encode())
        for one, sheet in zip(images, sheets, strict=True):
            drawing = draw(one, bundle.manifest)
            write_png(contact_sheet(drawing), sheet)
            file.write(_image(drawing, unfolded=drawing.changed or len(sheets) <= _UNFOLDED).encode())
            yield one, sheet
        file.write((element("footer", f"Written by ztdeploy {__version__}.") + CLOSING).encode())


def _top(bundle: Bundle, title: str, images: int, *, cascade: bool) -> Markup:
    manifest = bundle.manifest
    text = (
        f"{manifest.model.timm_name}. Which tokens the engines keep, layer by layer. Blocks count from 1; tokens "
        "include the class token and its like, which always stay."
    )
    if cascade and manifest.cascade is not None:
        text += (
            f" A cascade of {manifest.cascade.chain}: an image goes on to the next stage where the confidence is below"
            " the threshold. Stages that did not run are left out."
        )
    fold = (
        "Images whose answer changed are unfolded." if images > _UNFOLDED and manifest.model.gives == "logits" else ""
    )
    return fragment(
        element("header", element("h1", title), element("p", f"{text} {fold}", class_="lead")),
        trust(["The weights are random: predictions mean nothing."] if manifest.weights.source == "random" else []),
    )


def _image(drawing: ImageDrawing, *, unfolded: bool) -> Markup:
    said = [
        element("span", f"{row.name}: {row.outcome}", class_="doubt" if row.changed else "quiet")
        for row in drawing.rows
        if row.outcome
    ]
    return element(
        "details",
        element("summary", drawing.name, said),
        [_row(drawing, row) for row in drawing.rows],
        class_="image changed" if drawing.changed else "image",
        open="open" if unfolded else None,
    )


def _row(drawing: ImageDrawing, row: VariantDrawing) -> Markup:
    seen = "what the model sees"
    return fragment(
        element("h3", row.heading),
        None if row.decision is None else element("p", row.decision.words, class_="quiet"),
        _answers(row),
        element(
            "div",
            element("figure", photograph(drawing.plain, seen), element("figcaption", element("span", seen))),
            [_panel(panel, drawing.grid) for panel in row.panels],
            class_="tiles",
        )
        if row.panels
        else None,
        map_figures(row.maps),
        _key(row),
        element("p", row.legend, class_="quiet") if row.legend else None,
        None if row.doubt is None else trust([row.doubt]),
    )


def map_figures(tiles: Iterable[tuple[str, Image.Image]]) -> Markup | None:
    """Maps of an image side by side.

    Args:
        tiles: with captions.
    """
    drawn = [
        element("figure", photograph(tile, caption), element("figcaption", element("span", caption)))
        for caption, tile in tiles
    ]
    return element("div", drawn, class_="maps") if drawn else None


def _answers(row: VariantDrawing) -> Markup | None:
    """What baseline and variant say, likeliest first; of vectors how near they are."""
    if row.nearness is not None:
        return element("p", row.nearness)

    def likeliest(place: int) -> Column[tuple[str, tuple[Label, ...]]]:
        return Column(
            ("answer", "second", "third")[place],
            lambda pair: pair[1][place].words() if place < len(pair[1]) else "",
            kind=lambda pair: "prose doubt" if row.changed and not place and pair is row.answers[-1] else "prose",
        )

    columns: list[Column[tuple[str, tuple[Label, ...]]]] = [Column("", lambda pair: pair[0], kind="heading")]
    most = max((len(labels) for _, labels in row.answers), default=0)
    columns += [likeliest(place) for place in range(min(3, most))]
    return table(f"Answers of {row.name}", columns, row.answers) if most else None


def _panel(panel: LayerDrawing, grid: Grid) -> Markup:
    importance = panel.importance
    return element(
        "figure",
        element("div", photograph(panel.tile, panel.caption), _titles(panel.pairs, grid), class_="over"),
        None if importance is None else photograph(importance, f"importance at {panel.caption}"),
        element("figcaption", element("span", panel.caption), element("span", panel.gone) if panel.gone else None),
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
    def cell(patch: int | None) -> str:
        return "no patch" if patch is None else "{}, {}".format(*(place + 1 for place in grid.place(patch)))

    columns: list[Column[Pair]] = [
        Column("row, column", lambda pair: cell(pair.patch)),
        Column("is like", lambda pair: cell(pair.partner)),
        Column("cosine", lambda pair: f"{pair.similarity:.3f}", lambda pair: pair.similarity),
    ]
    return folded(counted(len(pairs), "similar pair"), table("Similar pairs", columns, pairs))


def _key(row: VariantDrawing) -> Markup | None:
    """What the colours of patches mean, and those of importance, as far as they are used."""
    keys = [(_coloured([colour]), text) for text, colour in row.keys]
    if any(panel.importance is not None for panel in row.panels):
        keys.append((_coloured(scale_colour(np.linspace(0, 1, 9))), f"importance, from {LEAST} to {MOST}"))
    return legend(keys) if keys else None


def _coloured(colours: Iterable[Iterable[float]]) -> Markup:
    """Squares of colours side by side."""
    drawn = [
        element("rect", x=10 * place, y=0, width=10.5, height=10, fill=css(colour))
        for place, colour in enumerate(colours)
    ]
    return element(
        "svg", drawn, viewBox=f"0 0 {10 * len(drawn)} 10", width=14 * len(drawn), height=14, aria_hidden="true"
    )
