"""How many tokens each block is given."""

from __future__ import annotations

from collections.abc import Sequence

from ztdeploy.report.kit.figure import Figure
from ztdeploy.report.kit.numbers import counted
from ztdeploy.report.kit.plots.frame import Frame, block_numbers, names_of_ends, path, x_range, y_range
from ztdeploy.report.kit.plots.scale import Scale, linear
from ztdeploy.report.sweep.panels import is_dense
from ztdeploy.target.measure.sweep_report import VariantFacts


def token_plot(variants: Sequence[VariantFacts]) -> Figure | None:
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
    x = Scale(0, blocks, *x_range(room=76), ())
    y = linear([0, *(count for tokens in schedules for count in tokens)], *y_range())
    marks, ends = block_numbers([str(block) for block in range(blocks)], x, y.start), []
    for position, (tokens, sharing) in enumerate(sorted(schedules.items(), key=lambda pair: -sum(pair[0]))):
        points = [(x(block + side), y(count)) for block, count in enumerate(tokens) for side in (0, 1)]
        dense, names = is_dense(sharing[0]), ", ".join(one.name for one in sharing)
        opacity = None if dense else round(1 - 0.6 * position / (len(schedules) - 1), 2)
        text = f"{names}: {counted(tokens[-1], 'token')} into the last block"
        marks.append(path(points, "line cd" if dense else "line c0", text, stroke_opacity=opacity))
        ends.append((*points[-1], f"{_name(sharing)}: {tokens[-1]}"))
    size = variants[0].image_size
    frame = Frame(x, y, "block", "tokens into each block")
    plot = frame.draw(f"Tokens per block at {size} px", marks, names_of_ends(ends, x))
    return Figure(f"{size} px", "Beside each line: keep ratio, tokens into the last block.", plot)


def _name(sharing: Sequence[VariantFacts]) -> str:
    if is_dense(sharing[0]):
        return "baseline"
    ratio, *others = {one.keep_ratio for one in sharing}
    return sharing[0].name[:9] if ratio is None or others else f"{ratio:g}"
