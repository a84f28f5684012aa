"""Pictures that are filled from top to bottom with tiles and words, for PNG files."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from ztdeploy.core.text import printable
from ztdeploy.report.kit.colours import Colour

GAP, TEXT, SMALL, TITLE = 20, 19, 18, 28
INK, FAINT, RULE = (24, 27, 32), (92, 99, 110), (217, 221, 227)


@dataclass
class Paper:
    """Paper that is filled from top to bottom."""

    picture: Image.Image
    y: int = GAP

    def write(self, text: str, *, x: int = GAP, size: int = TEXT, colour: Colour = INK) -> None:
        """A line, cut with an ellipsis where it would leave the paper."""
        draw, font, room = ImageDraw.Draw(self.picture), font_of(size), self.picture.width - GAP - x
        shown = text = printable(text)
        while draw.textlength(shown, font=font) > room and text:
            text = text[:-1]
            shown = text + "..."
        draw.text((x, self.y), shown, fill=colour, font=font)
        self.y += round(1.5 * size)

    def write_wrapped(self, text: str) -> None:
        for line in textwrap.wrap(text, max(20, int((self.picture.width - 2 * GAP) / (0.55 * TEXT)))):
            self.write(line, colour=FAINT)

    def place(self, tile: Image.Image, column: int, captions: Sequence[str | None] = ()) -> None:
        """A tile with its captions below; the position stays."""
        x, top = GAP + column * (tile.width + GAP), self.y
        self.picture.paste(tile, (x, top))
        self.y = top + tile.height + 6
        for caption in filter(None, captions):
            self.write(caption, x=x, size=SMALL, colour=FAINT)
        self.y = top

    def rule(self) -> None:
        self.y += GAP // 2
        ImageDraw.Draw(self.picture).line((GAP, self.y, self.picture.width - GAP, self.y), fill=RULE, width=2)
        self.y += GAP


def font_of(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)


def blank(width: int, height: int) -> Paper:
    """White, whatever the theme of who looks at it."""
    return Paper(Image.new("RGB", (width, height), (255, 255, 255)))
