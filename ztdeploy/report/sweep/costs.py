"""The columns of tables that say what a variant costs in fidelity: other ones for answers than for vectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ztdeploy.report.kit.figures import cosine, percent, short
from ztdeploy.target.measure.sweep_report import Fidelity, Row

ANSWERS, VECTORS = ("agreement", "KL", "top-1"), ("mean cosine",)
_FIGURES: dict[str, tuple[Callable[[Fidelity], float | None], Callable[[float | None], str]]] = {
    "agreement": (lambda found: found.agreement, percent),
    "KL": (lambda found: found.kl, short),
    "top-1": (lambda found: found.top1, percent),
    "mean cosine": (lambda found: found.cosine, cosine),
}


def fidelity_headings(rows: Sequence[Row]) -> tuple[str, ...]:
    """Which columns there are; none where nothing is known of any row."""
    known = [row.facts.fidelity for row in rows if row.facts.fidelity]
    if not known:
        return ()
    return ANSWERS if any(found.agreement is not None for found in known) else VECTORS


def fidelity_figures(found: Fidelity | None, headings: Sequence[str]) -> list[tuple[str, float | None]]:
    """A row's figures as text, each with its value."""
    if found is None:
        return [("-", None) for _ in headings]
    return [(text(of(found)), of(found)) for of, text in (_FIGURES[heading] for heading in headings)]
