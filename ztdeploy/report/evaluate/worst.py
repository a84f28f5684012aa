"""The images on which a variant is furthest from the baseline, with what both say."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path

from PIL import Image

from ztdeploy.core.errors import ImageError
from ztdeploy.report.evaluate.answers import counts
from ztdeploy.report.kit.figure import photograph, section
from ztdeploy.report.kit.markup import Markup, element
from ztdeploy.report.kit.numbers import cosine, counted, short
from ztdeploy.target.evaluate.data import image_folder
from ztdeploy.target.evaluate.eval_report import Answer, Apart, EvalReport, Far, VariantScore
from ztdeploy.target.runtime.images import read_image
from ztdeploy.target.runtime.postprocess import chance

SHOWN = 6  #: images per variant; the report has more
_SIDE, _SMALL = 200, 100  #: pixels of a picture; smaller ones are enlarged without smoothing
_OPEN = 4  #: variants up to which the images of all are unfolded


def worst(report: EvalReport) -> Markup | None:
    """A row of images per variant; None where all outputs are the baseline's."""
    folder = image_folder(Path(report.data.path))
    picture = cache(partial(small_picture, folder))
    found = [(score, images) for score in report.variants if (images := _furthest(score))]
    if not found:
        return None
    parts = []
    for place, (score, images) in enumerate(found):
        shown = element("div", [_card(one, score.label, picture(one.image)) for one in images], class_="images")
        open_ = "open" if place == 0 or len(found) <= _OPEN else None
        heading = element("span", f" {_summary(score)}", class_="quiet")
        parts.append(element("details", element("summary", score.label, heading), shown, open=open_))
    return section(
        "Worst images",
        parts,
        quiet="Where each variant is furthest from the baseline, furthest first. Framed: its answer changed.",
    )


def _furthest(score: VariantScore) -> Sequence[Apart | Far]:
    if score.against_dense is not None:
        return score.against_dense.worst[:SHOWN]
    return score.likeness.furthest[:SHOWN] if score.likeness is not None else ()


def _summary(score: VariantScore) -> str:
    """Such as "51 of 300 answers changed: 22 lost, 5 gained"."""
    found = score.against_dense
    if found is None:
        return "" if score.likeness is None else f"mean cosine {cosine(score.likeness.mean.value)}"
    lost, gained, _ = counts(found)
    same = found.agreement
    more = f": {lost} lost, {gained} gained" if found.change is not None else ""
    return f"{same.total - same.count} of {counted(same.total, 'answer')} changed{more}"


def _card(one: Apart | Far, variant: str, picture: Markup) -> Markup:
    if isinstance(one, Far):
        lines, changed = [card_line("cosine", cosine(one.cosine))], False
    else:
        changed = one.dense.index != one.variant.index
        label = [card_line("label", ", ".join(one.labels))] if one.labels else []
        lines = [
            card_line("baseline", _answer(one.dense), _tone(one.dense, one.labels)),
            card_line("pruned", _answer(one.variant), _tone(one.variant, one.labels)),
            *label,
            card_line("KL", f"{short(one.kl, 2)} nats"),
        ]
    name = element("figcaption", one.image.rpartition("/")[2])
    return element("figure", picture, name, element("dl", lines), class_="changed" if changed else None)


def card_line(term: str, text: str, kind: str | None = None) -> Markup:
    return element("div", element("dt", term), element("dd", text, class_=kind))


def _answer(answer: Answer) -> str:
    return f"{answer.name}, {chance(answer.probability, None, 0)}"


def _tone(answer: Answer, labels: Sequence[str]) -> str | None:
    return ("good" if answer.name in labels else "bad") if labels else None


def small_picture(folder: Path, name: str) -> Markup:
    """The image, small; where it is no longer there, words instead of it."""
    try:
        picture = read_image(folder / name)
    except (ImageError, OSError):
        return element("div", "no picture", class_="blank")
    if max(picture.size) < _SMALL:
        scale = _SIDE // max(picture.size)
        picture = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
    picture.thumbnail((_SIDE, _SIDE))
    return photograph(picture, name)
