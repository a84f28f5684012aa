"""One PNG per image: a row per variant, with the input, a tile per pruning layer, and what the engines answer."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

from ztdeploy.errors import printable
from ztdeploy.fidelity.captions import answers, heading, layer_caption, legend

if TYPE_CHECKING:
    from ztdeploy.fidelity.show import Seen, ShownImage

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
    side = one.plain.width
    across = min(_ACROSS, max(len(seen.tiles) for seen in one.seen))
    lines = sum(-(-len(seen.tiles) // across) for seen in one.seen)
    width = (across + 1) * (side + _GAP) + _GAP
    height = 200 + lines * (side + 60) + len(one.seen) * 340  # cut to what is used in the end
    sheet = _Sheet(Image.new("RGB", (width, height), _PAPER))
    sheet.write(one.image.name, size=_TITLE)
    for seen in one.seen:
        sheet.rule()
        _row(sheet, one, seen, across)
    return sheet.picture.crop((0, 0, width, sheet.y + _GAP // 2))


def _row(sheet: _Sheet, one: ShownImage, seen: Seen, across: int) -> None:
    sheet.write(heading(seen.variant, one.dense), size=22)
    sheet.y += 6
    _tile(sheet, one.plain, 0, "what the model sees")
    for first in range(0, len(seen.tiles), across):
        for place in range(first, min(first + across, len(seen.tiles))):
            caption = layer_caption(seen.layers[place], one.depth)
            _tile(sheet, seen.tiles[place], place - first + 1, caption)
        sheet.y += one.plain.height + 44
    column = round(max(ImageFont.load_default(size=_TEXT).getlength(name) for name in ("dense", seen.variant.name)))
    for name, labels in (("dense", one.dense_labels), (seen.variant.name, seen.labels)):
        top = sheet.y
        sheet.write(name, colour=_FAINT)
        sheet.y = top
        sheet.write(answers(labels), x=2 * _GAP + column)
    sheet.write_wrapped(legend(seen.variant))


def _tile(sheet: _Sheet, tile: Image.Image, column: int, caption: str) -> None:
    """A tile with its caption below; the sheet's position stays."""
    x, top = _GAP + column * (tile.width + _GAP), sheet.y
    sheet.picture.paste(tile, (x, top))
    sheet.y = top + tile.height + 6
    sheet.write(caption, x=x, size=18, colour=_FAINT)
    sheet.y = top
