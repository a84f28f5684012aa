"""Tables of `build` and `inspect` about precision: what was chosen and why, and what fp16 would have to hold."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ztdeploy.cli.output import table

if TYPE_CHECKING:
    from ztdeploy.bundle import Bundle
    from ztdeploy.manifest import CandidateRecord, ChoiceRecord

_WORDS = ("candidate", "precision", "result")
_HEADINGS = ("candidate", "precision", "ms", "speed-up", "same answer, in %", "mean KL", "top-1, points", "result")


def show_choices(bundle: Bundle) -> None:
    """What `build --precision auto` found out, a table per profile."""
    for choice in bundle.manifest.choices:
        plural = "s" if choice.threads > 1 else ""
        where = f"{choice.variant}, batch {choice.batch}, {choice.threads} thread{plural} of {choice.processor}"
        answers = f"against dense of {choice.asked} on {choice.images} images of '{choice.data}'"
        table(
            f"Candidates for '{choice.asked}': '{choice.shipped}' is in the bundle",
            [(heading, "left" if heading in _WORDS else "right") for heading in _HEADINGS],
            [_candidate(one, choice) for one in choice.candidates],
            caption=f"{where}, {choice.rounds} rounds; in brackets: 95 % intervals; answers: {answers}",
        )


def _candidate(one: CandidateRecord, choice: ChoiceRecord) -> tuple[str, ...]:
    timing, row = one.timing, next((row for row in one.rows if row.variant == choice.variant), None)
    return (
        one.profile,
        one.precision,
        "-" if timing is None else f"{timing.median_ms:.2f} ({_span(timing.interval)})",
        "-" if timing is None else f"{timing.speedup:.2f}x ({_span(timing.speedup_interval)})",
        "-" if row is None else f"{100 * row.agreement:.1f}",
        "-" if row is None else f"{row.kl:.4f}",
        "-" if row is None or row.drop is None else f"{-row.drop:+.1f}",
        "ships" if one.reason is None else one.reason,
    )


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
                    f"blocks.{one.block}",
                    *(f"{value:.4g}" for value in (one.residual, one.attention, one.logits, one.mlp)),
                )
                for one in found.blocks
            ],
            caption=f"in fp32, on {found.images} images of '{found.data}'",
        )
