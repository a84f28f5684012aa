"""One PNG per image: a row per variant, with the input, a tile per pruning layer with the importance that it went by
below, and what the engines answer.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ztdeploy.core.text import printable
from ztdeploy.report.show.captions import (
    ALIKE,
    BEFORE,
    LEAST,
    MOST,
    UNIMPORTANT,
    answers,
    heading,
    layer_caption,
    legend,
    nearness,
    reason_caption,
)
from ztdeploy.report.show.colours import NOTHING, SIMILAR_COLOUR, UNIMPORTANT_COLOUR, importance_colour

if TYPE_CHECKING:
    from ztdeploy.report.show.show import Seen, ShownImage

#: Tiles side by side, the input left out.
_ACROSS = 4
_GAP, _TEXT, _TITLE = 20, 19, 28
_INK, _FAINT, _PAPER, _RULE = (24, 27, 32), (92, 99, 110), (255, 255, 255), (217, 221, 227)


@dataclass
class _Sheet:
    """Paper that is filled from top to bottom."""

    picture: Image.Image
    y: int = _GAP

    def write(self, text: str, *, x: int = _GAP, size: int = _TEXT, colour: tuple[int, int, int] = _INK) -> None:
        """A line, cut with an ellipsis where it would leave the paper."""
        draw, font, room = (
            ImageDraw.Draw(self.picture),
            ImageFont.load_default(size=size),
            self.picture.width - _GAP - x,
        )
        shown = text = printable(text)
        while draw.textlength(shown, font=font) > room and text:
            text = text[:-1]
            shown = text + "..."
        draw.text((x, self.y), shown, fill=colour, font=font)
        self.y += round(1.5 * size)

    def write_wrapped(self, text: str) -> None:
        for line in textwrap.wrap(text, max(20, int((self.picture.width - 2 * _GAP) / (0.55 * _TEXT)))):
            self.write(line, colour=_FAINT)

    def rule(self) -> None:
        self.y += _GAP // 2
        ImageDraw.Draw(self.picture).line((_GAP, self.y, self.picture.width - _GAP, self.y), fill=_RULE, width=2)
        self.y += _GAP


def contact_sheet(one: ShownImage) -> Image.Image:
    """RGB, on white, whatever the theme of who looks at it."""
    side, high = one.plain.size
    across = min(_ACROSS, max(len(seen.tiles) for seen in one.seen))
    lines = sum(-(-len(seen.tiles) // across) for seen in one.seen)
    width = (across + 1) * (side + _GAP) + _GAP
    height = 200 + lines * (2 * high + 110) + len(one.seen) * 480  # cut to what is used in the end
    sheet = _Sheet(Image.new("RGB", (width, height), _PAPER))
    sheet.write(one.image.name, size=_TITLE)
    for seen in one.seen:
        sheet.rule()
        _row(sheet, one, seen, across)
    return sheet.picture.crop((0, 0, width, sheet.y + _GAP // 2))


def _row(sheet: _Sheet, one: ShownImage, seen: Seen, across: int) -> None:
    sheet.write(heading(seen.variant, one.dense), size=22)
    sheet.y += 6
    side = one.plain.height
    _tile(sheet, one.plain, 0, ["what the model sees"])
    for first in range(0, len(seen.tiles), across):
        places = range(first, min(first + across, len(seen.tiles)))
        for column, place in enumerate(places, 1):
            lines = (layer_caption(seen.layers[place], one.depth), reason_caption(seen.reasons[place]))
            _tile(sheet, seen.tiles[place], column, [line for line in lines if line])
        sheet.y += side + (70 if any(seen.reasons[place] for place in places) else 44)
        maps = [(column, seen.maps[place]) for column, place in enumerate(places, 1)]
        for column, drawn in maps:
            if drawn is not None:
                _tile(sheet, drawn, column, [])
        if any(drawn is not None for _, drawn in maps):
            _key(sheet, one.plain.size, seen)
            sheet.y += side + _GAP
    column = round(max(ImageFont.load_default(size=_TEXT).getlength(name) for name in ("dense", seen.variant.name)))
    near = nearness(seen)
    if near is not None:
        sheet.write(near)
    both = (("dense", one.dense_labels), (seen.variant.name, seen.labels))
    for name, labels in both if near is None else ():
        top = sheet.y
        sheet.write(name, colour=_FAINT)
        sheet.y = top
        sheet.write(answers(labels), x=2 * _GAP + column)
    sheet.write_wrapped(legend(seen))
    if seen.doubt is not None:
        sheet.write_wrapped(seen.doubt)


def _tile(sheet: _Sheet, tile: Image.Image, column: int, captions: Sequence[str]) -> None:
    """A tile with its captions below; the sheet's position stays."""
    x, top = _GAP + column * (tile.width + _GAP), sheet.y
    sheet.picture.paste(tile, (x, top))
    sheet.y = top + tile.height + 6
    for caption in captions:
        sheet.write(caption, x=x, size=18, colour=_FAINT)
    sheet.y = top


def _key(sheet: _Sheet, size: tuple[int, int], seen: Seen) -> None:
    """In the first column: what the colours of patches mean, and upright those of importance; the position stays."""
    top, width, (wide, side) = sheet.y, 24, size
    draw, font = ImageDraw.Draw(sheet.picture), ImageFont.load_default(size=18)
    colours = importance_colour(np.linspace(1, 0, side)).round().astype(np.uint8)
    x = _GAP + wide - width
    sheet.picture.paste(Image.fromarray(np.repeat(colours[:, None], width, 1)), (x, top))
    for text, y in ((MOST, top), (LEAST, top + side - 24)):
        sheet.y = y
        sheet.write(text, x=x - 10 - round(font.getlength(text)), size=18, colour=_FAINT)
    reasons, dots = [one for one in seen.reasons if one], any(layer.plan.merges for layer in seen.layers)
    used = (
        (ALIKE, SIMILAR_COLOUR, any(one.by_similarity for one in reasons)),
        (UNIMPORTANT, UNIMPORTANT_COLOUR, any(one.by_importance for one in reasons)),
        (BEFORE, NOTHING, not dots and len(seen.layers) > 1),
    )
    keys = [(text, colour) for text, colour, wanted in used if wanted]
    for place, (text, colour) in enumerate(keys):
        sheet.y = top + side // 2 + round((place - len(keys) / 2) * 34)
        box = (_GAP, sheet.y + 2, _GAP + 18, sheet.y + 20)
        (draw.ellipse if dots else draw.rectangle)(box, colour)
        sheet.write(text, x=_GAP + 28, size=18, colour=_FAINT)
    sheet.y = top
