"""Draws the picture of the README: what a variant keeps of a photograph, layer by layer, and latency against answers.

    python scripts/readme_picture.py BUNDLE SWEEP [--variant NAME] [--photo FILE] [--out docs/img/overview.png]

BUNDLE and SWEEP are folders of `ztdeploy build` and `ztdeploy sweep --data`. By default the photograph is Chelsea the
cat by Stéfan van der Walt, which ships in ztdeploy and is free of copyright (CC0). The picture has its own paper, so
that it is legible on light and dark pages.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ztdeploy.core.bundle import read_bundle
from ztdeploy.core.files import make_folder, write
from ztdeploy.report.kit.plots.labels import Box, beside
from ztdeploy.report.kit.plots.scale import Scale, linear
from ztdeploy.report.show.tiles import Grid, layer_tile, plain_tile
from ztdeploy.report.sweep.pages import read_sweep
from ztdeploy.report.sweep.panels import Panel, panels
from ztdeploy.target.evaluate.explain import ExplainedImage, explain_bundle
from ztdeploy.target.evaluate.patches import GONE, LayerPatches
from ztdeploy.target.verdict import CONTROLS

WIDTH, HEIGHT, MARGIN, GAP, SIDE = 1280, 556, 30, 14, 188
TILES = 6  #: the photograph and five layers, in two rows
INK, FAINT, RULE, PAPER = (24, 27, 32), (92, 99, 110), (222, 226, 231), (255, 255, 255)
BASELINE, COLOURS = (60, 67, 75), ((0, 114, 178), (213, 94, 0), (0, 137, 107), (168, 71, 127))
SMALL, TEXT, TITLE = 15, 17, 22
#: Of the plot: its left, top, right and bottom.
PLOT = (MARGIN + 3 * (SIDE + GAP) + 84, 92, WIDTH - MARGIN - 24, HEIGHT - 112)
_LABELS = 0.66  #: size of a page's labels over that of this plot's
_MEAN_SHARE = 0.75  #: how far merged patches take the colour of their token


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("sweep", type=Path)
    parser.add_argument("--variant", help="whose tokens are drawn (default: the first that prunes)")
    parser.add_argument("--photo", type=Path, help="an image that may be redistributed (default: Chelsea the cat)")
    parser.add_argument("--out", type=Path, default=Path("docs/img/overview.png"))
    asked = parser.parse_args(arguments)
    bundle = read_bundle(asked.bundle)
    name = asked.variant or next(one.name for one in bundle.manifest.variants if one.plan.layers)
    with as_file(files("ztdeploy.host.assets") / "photos" / "chelsea.jpg") as cat:
        seen = next(explain_bundle(bundle, [asked.photo or cat], variants=[name]))
    grid = Grid(*bundle.manifest.model.architecture.rows_and_columns)
    panel = next(one for one in panels(read_sweep(asked.sweep)[0]) if one.pruned)
    picture = draw(seen, grid, bundle.manifest.model.timm_name, panel)
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    make_folder(asked.out.parent)
    write(asked.out, file.getbuffer())
    print(f"wrote {asked.out}: {len(file.getvalue()) / 1e3:.0f} kB")


def draw(seen: ExplainedImage, grid: Grid, model: str, panel: Panel) -> Image.Image:
    """The whole picture, in 256 colours: in all of them a photograph would be three times as large."""
    paper = Image.new("RGB", (WIDTH, HEIGHT), PAPER)
    pen = ImageDraw.Draw(paper)
    _write(pen, (MARGIN, 24), "What is left of a photograph, block by block", TITLE)
    _draw_tiles(paper, seen, grid)
    shared = "; patches within a line share a token" if seen.variants[0].layers[0].plan.merges else ""
    _write(pen, (MARGIN, HEIGHT - 36), f"{model}: {_answers(seen)}{shared}", SMALL, FAINT)
    _write(pen, (PLOT[0] - 54, 24), "Latency against answers that stay", TITLE)
    _draw_plot(pen, panel)
    pen.rectangle((0, 0, WIDTH - 1, HEIGHT - 1), outline=RULE)
    return paper.quantize(256, dither=Image.Dither.FLOYDSTEINBERG)


def _draw_tiles(paper: Image.Image, seen: ExplainedImage, grid: Grid) -> None:
    plain, variant = plain_tile(seen.pixels, grid), seen.variants[0]
    places = np.linspace(0, len(variant.layers) - 1, min(TILES - 1, len(variant.layers))).round().astype(int)
    layers = [variant.layers[place] for place in places]
    tiles = [(plain, f"{grid.patches} patches")]
    for layer in layers:
        what = "tokens" if layer.plan.merges else "patches"
        tiles.append((_tile(plain, layer, grid), f"block {layer.plan.block + 1}: {len(layer.kept)} {what}"))
    pen = ImageDraw.Draw(paper)
    for place, (tile, caption) in enumerate(tiles):
        row, column = divmod(place, 3)
        x, y = MARGIN + column * (SIDE + GAP), 68 + row * (SIDE + 36)
        paper.paste(tile.resize((SIDE, SIDE), Image.Resampling.LANCZOS), (x, y))
        _write(pen, (x, y + SIDE + 6), caption, SMALL, FAINT)


def _answers(seen: ExplainedImage) -> str:
    """What baseline and variant say."""
    found = {"baseline": seen.dense_labels, seen.variants[0].variant.name: seen.variants[0].labels}
    return "; ".join(f"{name}: {labels[0].words(0)}" for name, labels in found.items() if labels)


def _tile(plain: Image.Image, layer: LayerPatches, grid: Grid) -> Image.Image:
    """Patches that share a token in its mean colour, with a line around them; of a method that drops, dimmed ones."""
    if not layer.plan.merges:
        return layer_tile(plain, layer, grid)
    pixels, cell = np.asarray(plain).astype(np.float64), grid.cell(plain.size)
    owner = layer.holder.reshape(grid.rows, grid.columns)
    for token in np.unique(layer.holder):
        boxes = [grid.box(int(patch), cell) for patch in np.flatnonzero(layer.holder == token)]
        mean = np.mean([pixels[box].mean((0, 1)) for box in boxes], axis=0) if token != GONE else np.zeros(3)
        for box in boxes if len(boxes) > 1 or token == GONE else ():
            pixels[box] = (1 - _MEAN_SHARE) * pixels[box] + _MEAN_SHARE * mean
    for row, column in np.ndindex(owner.shape):
        top, left = row * cell[0], column * cell[1]
        if row and owner[row, column] != owner[row - 1, column]:
            pixels[top - 1 : top + 1, left : left + cell[1]] = PAPER
        if column and owner[row, column] != owner[row, column - 1]:
            pixels[top : top + cell[0], left - 1 : left + 1] = PAPER
    return Image.fromarray(pixels.round().astype(np.uint8))


def _draw_plot(pen: ImageDraw.ImageDraw, panel: Panel) -> None:
    """Share of the baseline's answers over the median latency of a call; a line per method, the baseline on top."""
    points: dict[str, list[tuple[float, float, str]]] = {}
    for row in panel.pruned:
        latency, known = row.measured.latency, row.facts.fidelity
        if row.facts.method in CONTROLS or latency is None or known is None or known.agreement is None:
            continue
        ratio = "" if row.facts.keep_ratio is None else f"{row.facts.keep_ratio:g}"
        points.setdefault(row.facts.method, []).append((latency.p50_ms, 100 * known.agreement, ratio))
    if not points or panel.dense is None or panel.dense.measured.latency is None:
        raise SystemExit("the sweep has no variant with latency and answers: sweep with --data")
    start = (panel.dense.measured.latency.p50_ms, 100.0, "baseline")
    everything = [start, *(point for found in points.values() for point in found)]
    x = linear([ms for ms, _, _ in everything], PLOT[0], PLOT[2])
    y = linear([share for _, share, _ in everything], PLOT[3], PLOT[1])
    _draw_axes(pen, x, y, panel)
    marks = [(x(ms), y(share), text) for ms, share, text in everything]
    for place, (method, found) in enumerate(points.items()):
        colour = COLOURS[place % len(COLOURS)]
        line = [(x(ms), y(share)) for ms, share, _ in sorted([start, *found], reverse=True)]
        pen.line(line, colour, 3, joint="curve")
        for ms, share, _ in found:
            _dot(pen, x(ms), y(share), colour)
        pen.rectangle((PLOT[0] + 8, PLOT[3] - 28 - 26 * place, PLOT[0] + 22, PLOT[3] - 14 - 26 * place), colour)
        _write(pen, (PLOT[0] + 30, PLOT[3] - 31 - 26 * place), f"{method}, by keep ratio", TEXT)
    _dot(pen, x(start[0]), y(start[1]), BASELINE)
    small = [(across * _LABELS, down * _LABELS, text) for across, down, text in marks]
    for one in beside(small, Box(0, 0, WIDTH * _LABELS, HEIGHT * _LABELS)):
        anchor = {"start": "ls", "end": "rs", "middle": "ms"}[one.anchor]
        spot = one.x / _LABELS, one.y / _LABELS
        pen.text(spot, one.text, INK, ImageFont.load_default(size=TEXT), anchor=anchor)


def _draw_axes(pen: ImageDraw.ImageDraw, x: Scale, y: Scale, panel: Panel) -> None:
    font = ImageFont.load_default(size=SMALL)
    for tick, text in zip(y.ticks, y.labels, strict=True):
        pen.line((PLOT[0], y(tick), PLOT[2], y(tick)), RULE, 1)
        pen.text((PLOT[0] - 10, y(tick)), f"{text} %", FAINT, font, anchor="rm")
    for tick, text in zip(x.ticks, x.labels, strict=True):
        pen.text((x(tick), PLOT[3] + 10), text, FAINT, font, anchor="mt")
    where = f"ms per call, at {panel.label}"
    pen.text(((PLOT[0] + PLOT[2]) / 2, PLOT[3] + 40), where, FAINT, font, anchor="mt")


def _dot(pen: ImageDraw.ImageDraw, x: float, y: float, colour: tuple[int, int, int]) -> None:
    pen.ellipse((x - 7, y - 7, x + 7, y + 7), colour, PAPER, 2)


def _write(
    pen: ImageDraw.ImageDraw, place: tuple[float, float], text: str, size: int, colour: tuple[int, int, int] = INK
) -> None:
    pen.text(place, text, colour, ImageFont.load_default(size=size))


if __name__ == "__main__":
    main()
