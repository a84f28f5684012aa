"""How near a dense model's maps are to the baseline's: figures, and the worst images with both maps side by side."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ztdeploy.core.files import make_folder
from ztdeploy.report.kit.figure import Figure, plots, section
from ztdeploy.report.kit.map_files import MAP_SUFFIX, write_png
from ztdeploy.report.kit.map_pictures import compared_tiles
from ztdeploy.report.kit.markup import Markup, element
from ztdeploy.report.kit.numbers import short
from ztdeploy.report.kit.paper import FAINT, GAP, TITLE, blank
from ztdeploy.report.kit.plots.estimates import estimate_of, estimates_plot
from ztdeploy.report.kit.sheet import Column, estimated, table
from ztdeploy.report.show.page import map_figures, sheet_paths
from ztdeploy.report.show.tiles import Grid, plain_tile
from ztdeploy.target.evaluate.eval_report import EvalReport, MapNearness, Mean, VariantScore
from ztdeploy.target.evaluate.maps import figure_words, figures_in_words
from ztdeploy.target.evaluate.worst_maps import MapPair


@dataclass(frozen=True)
class DrawnMaps:
    """One of a variant's worst images."""

    variant: str  #: its label in the report
    image: str
    figures: str  #: in words
    tiles: tuple[tuple[str, Image.Image], ...]  #: the image, both maps and their difference, with captions


def draw_maps(report: EvalReport, found: Iterable[MapPair]) -> list[DrawnMaps]:
    """The worst images of each variant; see `worst_maps`."""
    drawn = []
    for pair in found:
        plain = plain_tile(pair.pixels, Grid(*(report.grid or (1, 1))))
        drawn.append(
            DrawnMaps(
                pair.variant,
                pair.figures.image,
                figures_in_words(pair.figures, report.activation),
                (("what the model sees", plain), *compared_tiles(pair.dense, pair.own, report.activation, plain.size)),
            )
        )
    return drawn


def write_maps(drawn: Sequence[DrawnMaps], out: Path) -> None:
    """A PNG of each, named after image and variant.

    Raises:
        OutputError: `out` cannot be written.
    """
    names = [Path(f"{Path(one.image).stem}-{one.variant}.png") for one in drawn]
    make_folder(out)
    for one, file in zip(drawn, sheet_paths(names, out, MAP_SUFFIX), strict=True):
        write_png(_sheet(one), file)


def _sheet(one: DrawnMaps) -> Image.Image:
    width, height = one.tiles[0][1].size
    sheet = blank(len(one.tiles) * (width + GAP) + GAP, height + 200)
    sheet.write(f"{one.image}, {one.variant}", size=TITLE)
    sheet.write(one.figures, colour=FAINT)
    sheet.y += GAP // 2
    for column, (caption, tile) in enumerate(one.tiles):
        sheet.place(tile, column, caption.split("; "))
    return sheet.picture.crop((0, 0, sheet.picture.width, sheet.y + height + 80))


def maps(report: EvalReport, drawn: Sequence[DrawnMaps]) -> list[Markup | None]:
    """
    Args:
        drawn: the worst images, as `draw_maps` gives them.
    """
    found = [(score, score.maps) for score in report.variants if score.maps is not None]
    return [_figures(report, found), _worst(drawn)] if found else []


def _figures(report: EvalReport, found: Sequence[tuple[VariantScore, MapNearness]]) -> Markup:
    words = figure_words(report.activation, report.request.threshold)
    shown = [name for name in words if getattr(found[0][1], name) is not None]

    def column(name: str) -> Column[tuple[VariantScore, MapNearness]]:
        def read(pair: tuple[VariantScore, MapNearness]) -> Mean | None:
            mean: Mean | None = getattr(pair[1], name)
            return mean

        return estimated(words[name].head, read)

    def figure(name: str) -> Figure:
        drawn = [estimate_of(score.label, getattr(one, name)) for score, one in found]
        head, text = words[name].head, words[name].text
        return Figure(
            f"{head[:1].upper()}{head[1:]}", f"{text[:1].upper()}{text[1:]}.", estimates_plot(head, head, drawn)
        )

    columns: list[Column[tuple[VariantScore, MapNearness]]] = [
        Column("variant", lambda pair: pair[0].label, kind="heading"),
        *map(column, shown),
        Column("GMACs", value=lambda pair: pair[0].gmacs, show=short),
    ]
    return section(
        "Maps compared with the baseline's",
        plots(*map(figure, shown[:3])),
        table("Maps compared with the baseline's", columns, found),
        quiet="Means over images, each against the baseline's map of the same image; whiskers: 95 % interval.",
    )


def _worst(drawn: Sequence[DrawnMaps]) -> Markup | None:
    if not drawn:
        return None
    parts = []
    for variant in dict.fromkeys(one.variant for one in drawn):
        own = [one for one in drawn if one.variant == variant]
        parts.append(element("details", element("summary", variant), [_image(one) for one in own], open="open"))
    return section("Worst images", parts, quiet="Where each variant's maps are furthest from the baseline's.")


def _image(one: DrawnMaps) -> Markup:
    heading = element("h3", one.image, element("span", f" {one.figures}", class_="quiet"))
    return element("div", heading, map_figures(one.tiles))


def notes_of(report: EvalReport) -> dict[str, str]:
    """What the figures are, for the end of the page."""
    words = figure_words(report.activation, report.request.threshold)
    means = [score.maps for score in report.variants if score.maps is not None]
    known = [words[name] for name in words if any(getattr(one, name) is not None for one in means)]
    return {f"{one.head[:1].upper()}{one.head[1:]}": f"{one.text[:1].upper()}{one.text[1:]}." for one in known}
