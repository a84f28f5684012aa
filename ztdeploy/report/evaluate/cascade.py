"""How a cascade decided: the share of images per stage, whether its bound holds, and the images that went on."""

from __future__ import annotations

from pathlib import Path

from ztdeploy.report.evaluate.worst import SHOWN, card_line, small_picture
from ztdeploy.report.kit.figure import section
from ztdeploy.report.kit.markup import Markup, element
from ztdeploy.report.kit.numbers import counted, short
from ztdeploy.report.kit.sheet import Column, estimated, table
from ztdeploy.target.evaluate.data import image_folder
from ztdeploy.target.evaluate.eval_report import CascadeScore, EvalReport, StageReached, WentOn


def cascade(report: EvalReport) -> Markup | None:
    """None where none was evaluated."""
    score = report.cascade
    if score is None:
        return None
    columns: list[Column[StageReached]] = [
        Column("stage", lambda one: one.variant, kind="heading"),
        estimated("ran on, %", lambda one: one.reached, scale=100),
        Column("expected, %", value=lambda one: 100 * one.expected, show=lambda value: f"{value:.1f}"),
    ]
    return section(
        "Cascade",
        table("Cascade", columns, score.stages),
        _went_on(score, image_folder(Path(report.data.path))),
        quiet=f"{score.sentence} An image goes on where a stage is not confident.",
    )


def _went_on(score: CascadeScore, folder: Path) -> Markup | None:
    """The images that the first stage was least confident in."""
    if not score.went_on:
        return None
    cards = [_card(one, small_picture(folder, one.image)) for one in score.went_on[:SHOWN]]
    count = counted(len(score.went_on), "image")
    heading = element("span", f" {count}, the least confident first", class_="quiet")
    shown = element("div", cards, class_="images")
    return element("details", element("summary", "Went on", heading), shown, open="open")


def _card(one: WentOn, picture: Markup) -> Markup:
    lines = [card_line("confidence", short(one.confidence, 2)), card_line("stage", one.variant)]
    return element("figure", picture, element("figcaption", one.image.rpartition("/")[2]), element("dl", lines))
