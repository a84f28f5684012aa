"""How many tokens each block is given."""

from __future__ import annotations

from collections.abc import Sequence

from ztdeploy.report.kit.figures import counted
from ztdeploy.report.kit.markup import Markup, element
from ztdeploy.report.kit.plots.frame import HEIGHT, RIGHT, TOP, WIDTH, Frame, block_numbers, label, x_range, y_range
from ztdeploy.report.kit.plots.labels import spread
from ztdeploy.report.kit.plots.scale import Scale, linear
from ztdeploy.report.sweep.panels import is_dense
from ztdeploy.target.measure.sweep_report import VariantFacts

_NAMES = 62.0  #: room for labels on the right


def token_plot(variants: Sequence[VariantFacts]) -> Markup | None:
    """A staircase per schedule; variants whose methods differ and whose tokens do not share one. None without pruning.

    Args:
        variants: of one image size.
    """
    schedules: dict[tuple[int, ...], list[VariantFacts]] = {}
    for one in variants:
        if one.tokens_per_block:
            schedules.setdefault(one.tokens_per_block, []).append(one)
    if len(schedules) < 2:
        return None
    blocks = max(map(len, schedules))
    start, end = x_range()
    x = Scale(0, blocks, start, end - _NAMES, ())
    y = linear([0, *(count for tokens in schedules for count in tokens)], *y_range())
    ordered = sorted(schedules.items(), key=lambda pair: -sum(pair[0]))
    places = spread([y(tokens[-1]) for tokens, _ in ordered], 12.5, TOP, HEIGHT)
    marks = block_numbers([str(block) for block in range(blocks)], x, y.start)
    for position, ((tokens, sharing), place) in enumerate(zip(ordered, places, strict=True)):
        marks += _staircase(tokens, sharing, place, x, y, shade=position / (len(ordered) - 1))
    return Frame(x, y, "block", "tokens into each block").draw(
        f"Tokens per block at {variants[0].image_size} px", marks
    )


def _staircase(
    tokens: tuple[int, ...], sharing: Sequence[VariantFacts], place: float, x: Scale, y: Scale, shade: float
) -> list[Markup]:
    names = ", ".join(one.name for one in sharing)
    points = [(x(block + side), y(count)) for block, count in enumerate(tokens) for side in (0, 1)]
    dense = is_dense(sharing[0])
    ratios = {one.keep_ratio for one in sharing}
    ratio = next(iter(ratios)) if len(ratios) == 1 else None
    text = "dense" if dense else f"{ratio:g}" if ratio is not None else sharing[0].name[:9]
    read_out = element("title", f"{names}: {counted(tokens[-1], 'token')} into the last block")
    joined = " ".join(f"{across:.2f},{down:.2f}" for across, down in points)
    opacity = None if dense else round(1 - 0.6 * shade, 2)
    kind = "line cd" if dense else "line c0"
    line = element("polyline", read_out, points=joined, class_=kind, stroke_opacity=opacity)
    leader = element(
        "polyline",
        points=f"{points[-1][0] + 2:.2f},{points[-1][1]:.2f} {x.end + 8:.2f},{place:.2f}",
        class_="leader",
    )
    name = label(WIDTH - RIGHT - _NAMES + 12, place + 3.5, f"{text}: {tokens[-1]}", "note", anchor="start")
    return [line, leader, name]
