"""One PNG per image: a row per variant, or stage of a cascade, with the input, a tile per pruning layer with the
importance that it went by below, and what the engines answer.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from ztdeploy.report.kit.colours import NOTHING, scale_colour
from ztdeploy.report.kit.paper import FAINT, GAP, SMALL, TEXT, TITLE, Paper, blank, font_of
from ztdeploy.report.show.drawing import LEAST, MOST, ImageDrawing, VariantDrawing
from ztdeploy.target.runtime.postprocess import chance

#: Tiles side by side, the input left out.
_ACROSS = 4
CHANGED = (138, 90, 0)  #: what pages call doubt


def contact_sheet(drawing: ImageDrawing) -> Image.Image:
    """RGB, on white, whatever the theme of who looks at it."""
    side, high = drawing.plain.size
    across = min(_ACROSS, max(max(len(row.panels), len(row.maps)) for row in drawing.rows))
    lines = sum(-(-len(row.panels) // across) + bool(row.maps) for row in drawing.rows)
    width = (across + 1) * (side + GAP) + GAP
    height = 200 + lines * (2 * high + 110) + len(drawing.rows) * 480  # cut to what is used in the end
    sheet = blank(width, height)
    sheet.write(drawing.name, size=TITLE)
    for row in drawing.rows:
        sheet.rule()
        _write_row(sheet, drawing.plain, row, across)
    return sheet.picture.crop((0, 0, width, sheet.y + GAP // 2))


def _write_row(sheet: Paper, plain: Image.Image, row: VariantDrawing, across: int) -> None:
    if row.changed:  # nothing else on the sheet has this colour
        bar = (0, sheet.y - GAP, GAP // 3, sheet.y + 2 * TEXT)
        ImageDraw.Draw(sheet.picture).rectangle(bar, fill=CHANGED)
    sheet.write(row.heading, size=22)
    if row.outcome:
        sheet.write(row.outcome, colour=CHANGED if row.changed else FAINT)
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
            sheet.y += plain.height + GAP
    for column, (caption, tile) in enumerate(row.maps, 1):
        sheet.place(tile, column, caption.split("; "))
    sheet.y += plain.height + 70 if row.maps else 0
    if row.nearness is not None:
        sheet.write(row.nearness)
    column = max((round(font_of(TEXT).getlength(name)) for name, _ in row.answers), default=0)
    for name, labels in row.answers:
        top = sheet.y
        sheet.write(name, colour=FAINT)
        sheet.y = top
        answers = "   ".join(f"{label.name} {chance(label.probability, label.value)}" for label in labels)
        sheet.write(answers or "no classifier", x=2 * GAP + column)
    for text in filter(None, (row.legend, row.doubt)):
        sheet.write_wrapped(text)


def _write_key(sheet: Paper, size: tuple[int, int], row: VariantDrawing) -> None:
    """In the first column: what the colours of patches mean, and upright those of importance; the position stays."""
    top, width, (wide, side) = sheet.y, 24, size
    draw, font = ImageDraw.Draw(sheet.picture), font_of(SMALL)
    colours = scale_colour(np.linspace(1, 0, side)).round().astype(np.uint8)
    x = GAP + wide - width
    sheet.picture.paste(Image.fromarray(np.repeat(colours[:, None], width, 1)), (x, top))
    for text, y in ((MOST, top), (LEAST, top + side - 24)):
        sheet.y = y
        sheet.write(text, x=x - 10 - round(font.getlength(text)), size=SMALL, colour=FAINT)
    earlier = not row.merges and len(row.panels) > 1
    keys = [*row.keys, *([("gone at an earlier layer", NOTHING)] if earlier else [])]
    for place, (text, colour) in enumerate(keys):
        sheet.y = top + side // 2 + round((place - len(keys) / 2) * 34)
        box = (GAP, sheet.y + 2, GAP + 18, sheet.y + 20)
        (draw.ellipse if row.merges else draw.rectangle)(box, colour)
        sheet.write(text, x=GAP + 28, size=SMALL, colour=FAINT)
    sheet.y = top
