"""Tables of `build` and `inspect` about precision: what was chosen and why, and what fp16 would have to hold."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ztdeploy.cli.output import cell, table
from ztdeploy.core.names import block_name

if TYPE_CHECKING:
    from ztdeploy.core.bundle import Bundle
    from ztdeploy.core.manifest import CandidateRecord, ChoiceRecord, GateRow

_WORDS = ("candidate", "precision", "result")
_TIMES, _ANSWERS = ("candidate", "precision", "ms", "speed-up"), ("same answer, in %", "mean KL", "top-1, points")


def show_choices(bundle: Bundle) -> None:
    """What `build --precision auto` found out, a table per profile."""
    for choice in bundle.manifest.choices:
        plural = "s" if choice.threads > 1 else ""
        where = f"{choice.variant}, batch {choice.batch}, {choice.threads} thread{plural} of {choice.processor}"
        answers = f"against dense of {choice.asked} on {choice.images} images of '{choice.data}'"
        vectors = bundle.manifest.model.gives != "logits"
        headings = (*_TIMES, *(("mean cosine",) if vectors else _ANSWERS), "result")
        table(
            f"Candidates for '{choice.asked}': '{choice.shipped}' is in the bundle",
            [(heading, "left" if heading in _WORDS else "right") for heading in headings],
            [_candidate(one, choice, vectors=vectors) for one in choice.candidates],
            caption=f"{where}, {choice.rounds} rounds; in brackets: 95 % intervals; answers: {answers}",
        )


def _candidate(one: CandidateRecord, choice: ChoiceRecord, *, vectors: bool) -> tuple[str, ...]:
    timing, row = one.timing, next((row for row in one.rows if row.variant == choice.variant), None)
    return (
        one.profile,
        one.precision,
        "-" if timing is None else f"{timing.median_ms:.2f} ({_span(timing.interval)})",
        "-" if timing is None else f"{timing.speedup:.2f}x ({_span(timing.speedup_interval)})",
        *(_vector_costs(row) if vectors else _answer_costs(row)),
        "ships" if one.reason is None else one.reason,
    )


def _vector_costs(row: GateRow | None) -> tuple[str, ...]:
    return (cell(row.cosine if row else None, ".4f"),)


def _answer_costs(row: GateRow | None) -> tuple[str, ...]:
    if row is None:
        return "-", "-", "-"
    return cell(row.agreement, ".1f", 100), cell(row.kl, ".4f"), cell(row.drop, "+.1f", -1)


def _span(interval: tuple[float, float]) -> str:
    return f"{interval[0]:.2f} to {interval[1]:.2f}"


def show_ranges(bundle: Bundle) -> None:
    """What fp16 would have to hold, by block, where that was probed."""
    for variant in bundle.manifest.variants:
        found = variant.fp16_range
        if found is None:
            continue
        headings = ("block", "residual stream", "attention, linear", "attention logits", "MLP")
        table(
            f"{variant.name}: largest magnitudes, of which fp16 holds 65504",
            [(heading, "left" if heading == "block" else "right") for heading in headings],
            [
                (
                    block_name(one.block),
                    *(f"{value:.4g}" for value in (one.residual, one.attention, one.logits, one.mlp)),
                )
                for one in found.blocks
            ],
            caption=f"in fp32, on {found.images} images of '{found.data}'",
        )
