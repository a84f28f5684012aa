"""One PNG per image: a row per variant, or stage of a cascade, with the input, a tile per pruning layer with the
importance that it went by below, and what the engines answer.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ztdeploy.core.text import printable
from ztdeploy.report.kit.colours import NOTHING, Colour, scale_colour
from ztdeploy.report.show.drawing import LEAST, MOST, ImageDrawing, VariantDrawing
from ztdeploy.target.runtime.postprocess import chance

#: Tiles side by side, the input left out.
_ACROSS = 4
_GAP, _TEXT, _SMALL, _TITLE = 20, 19, 18, 28
_INK, _FAINT, _PAPER, _RULE = (24, 27, 32), (92, 99, 110), (255, 255, 255), (217, 221, 227)
CHANGED = (138, 90, 0)  #: what pages call doubt


@dataclass
class _Sheet:
    """Paper that is filled from top to bottom."""

    picture: Image.Image
    y: int = _GAP

    def write(self, text: str, *, x: int = _GAP, size: int = _TEXT, colour: Colour = _INK) -> None:
        """A line, cut with an ellipsis where it would leave the paper."""
        draw, font, room = ImageDraw.Draw(self.picture), _font(size), self.picture.width - _GAP - x
        shown = text = printable(text)
        while draw.textlength(shown, font=font) > room and text:
            text = text[:-1]
            shown = text + "..."
        draw.text((x, self.y), shown, fill=colour, font=font)
        self.y += round(1.5 * size)

    def write_wrapped(self, text: str) -> None:
        for line in textwrap.wrap(text, max(20, int((self.picture.width - 2 * _GAP) / (0.55 * _TEXT)))):
            self.write(line, colour=_FAINT)

    def place(self, tile: Image.Image, column: int, captions: Sequence[str | None] = ()) -> None:
        """A tile with its captions below; the position stays."""
        x, top = _GAP + column * (tile.width + _GAP), self.y
        self.picture.paste(tile, (x, top))
        self.y = top + tile.height + 6
        for caption in filter(None, captions):
            self.write(caption, x=x, size=_SMALL, colour=_FAINT)
        self.y = top

    def rule(self) -> None:
        self.y += _GAP // 2
        ImageDraw.Draw(self.picture).line((_GAP, self.y, self.picture.width - _GAP, self.y), fill=_RULE, width=2)
        self.y += _GAP


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)


def contact_sheet(drawing: ImageDrawing) -> Image.Image:
    """RGB, on white, whatever the theme of who looks at it."""
    side, high = drawing.plain.size
    across = min(_ACROSS, max(len(row.panels) for row in drawing.rows))
    lines = sum(-(-len(row.panels) // across) for row in drawing.rows)
    width = (across + 1) * (side + _GAP) + _GAP
    height = 200 + lines * (2 * high + 110) + len(drawing.rows) * 480  # cut to what is used in the end
    sheet = _Sheet(Image.new("RGB", (width, height), _PAPER))
    sheet.write(drawing.name, size=_TITLE)
    for row in drawing.rows:
        sheet.rule()
        _write_row(sheet, drawing.plain, row, across)
    return sheet.picture.crop((0, 0, width, sheet.y + _GAP // 2))


def _write_row(sheet: _Sheet, plain: Image.Image, row: VariantDrawing, across: int) -> None:
    if row.changed:  # nothing else on the sheet has this colour
        bar = (0, sheet.y - _GAP, _GAP // 3, sheet.y + 2 * _TEXT)
        ImageDraw.Draw(sheet.picture).rectangle(bar, fill=CHANGED)
    sheet.write(row.heading, size=22)
    if row.outcome:
        sheet.write(row.outcome, colour=CHANGED if row.changed else _FAINT)
    sheet.y += 6
    if row.panels:
        sheet.place(plain, 0, ["what the model sees"])
    for first in range(0, len(row.panels), across):
        panels = row.panels[first : first + across]
        for column, panel in enumerate(panels, 1):
            sheet.place(panel.tile, column, [panel.caption, panel.gone])
        sheet.y += plain.height + (70 if any(panel.gone for panel in panels) else 44)
        for column, panel in enumerate(panels, 1):
            if panel.importance is not None:
                sheet.place(panel.importance, column)
        if any(panel.importance is not None for panel in panels):
            _write_key(sheet, plain.size, row)
            sheet.y += plain.height + _GAP
    if row.nearness is not None:
        sheet.write(row.nearness)
    column = max((round(_font(_TEXT).getlength(name)) for name, _ in row.answers), default=0)
    for name, labels in row.answers:
        top = sheet.y
        sheet.write(name, colour=_FAINT)
        sheet.y = top
        answers = "   ".join(f"{label.name} {chance(label.probability, label.value)}" for label in labels)
        sheet.write(answers or "no classifier", x=2 * _GAP + column)
    for text in filter(None, (row.legend, row.doubt)):
        sheet.write_wrapped(text)


def _write_key(sheet: _Sheet, size: tuple[int, int], row: VariantDrawing) -> None:
    """In the first column: what the colours of patches mean, and upright those of importance; the position stays."""
    top, width, (wide, side) = sheet.y, 24, size
    draw, font = ImageDraw.Draw(sheet.picture), _font(_SMALL)
    colours = scale_colour(np.linspace(1, 0, side)).round().astype(np.uint8)
    x = _GAP + wide - width
    sheet.picture.paste(Image.fromarray(np.repeat(colours[:, None], width, 1)), (x, top))
    for text, y in ((MOST, top), (LEAST, top + side - 24)):
        sheet.y = y
        sheet.write(text, x=x - 10 - round(font.getlength(text)), size=_SMALL, colour=_FAINT)
    earlier = not row.merges and len(row.panels) > 1
    keys = [*row.keys, *([("gone at an earlier layer", NOTHING)] if earlier else [])]
    for place, (text, colour) in enumerate(keys):
        sheet.y = top + side // 2 + round((place - len(keys) / 2) * 34)
        box = (_GAP, sheet.y + 2, _GAP + 18, sheet.y + 20)
        (draw.ellipse if row.merges else draw.rectangle)(box, colour)
        sheet.write(text, x=_GAP + 28, size=_SMALL, colour=_FAINT)
    sheet.y = top
