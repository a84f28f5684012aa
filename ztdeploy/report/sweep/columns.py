"""The columns of a setting's table, one row per configuration: the page, Markdown and the terminal take from these."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from ztdeploy.report.kit.numbers import cosine, fixed, percent, short, span, times
from ztdeploy.report.kit.sheet import Column, interval
from ztdeploy.target.measure.sweep_report import Row

_ANSWERS, _VECTORS, _MAPS = ("agreement", "KL", "top-1"), ("mean cosine",), ("mean IoU", "mean error")
_FIDELITY: dict[str, tuple[str, Callable[[float | None], str]]] = {
    "agreement": ("agreement", percent),
    "KL": ("kl", short),
    "top-1": ("top1", percent),
    "mean cosine": ("cosine", cosine),
    "mean IoU": ("iou", cosine),
    "mean error": ("error", short),
}
_TONES = {"faster": "good", "slower": "bad"}


_VARIANT: Column[Row] = Column("variant", lambda row: row.facts.name, kind="heading")


def columns(rows: Sequence[Row]) -> list[Column[Row]]:
    """What decides, in the order of the page; fidelity's only where that of any row is known."""
    return [
        _VARIANT,
        Column("method", lambda row: "baseline" if row.dense else row.facts.method),
        Column("keep", value=lambda row: row.facts.keep_ratio, show=partial(fixed, decimals=2)),
        *_of_cascade("mean ms", "mean_ms", rows),
        Column("p50 ms", value=_value("measured.latency.p50_ms")),
        Column("p90 ms", value=_value("measured.latency.p90_ms")),
        *_of_cascade("worst ms", "max_ms", rows),
        Column("images/s", value=_value("measured.images_per_s"), show=partial(short, digits=4)),
        Column("speed-up", _speedup, _value("comparison.speedup"), kind=_tone),
        interval("95 % interval", lambda row: span(row.comparison.interval) if row.comparison else ""),
        *_fidelity(rows),
        Column("less work", value=_value("comparison.work_ratio"), show=lambda one: times(one) if one else ""),
    ]


def details() -> list[Column[Row]]:
    """What else was measured of each configuration."""
    return [
        _VARIANT,
        Column("p95 ms", value=_value("measured.latency.p95_ms")),
        Column("p99 ms", value=_value("measured.latency.p99_ms")),
        Column("MAD ms", value=_value("measured.latency.mad_ms"), digits=2),
        Column("GMACs", value=_value("facts.gmacs"), show=short),
        Column("peak MB", value=_value("measured.peak_rss_mb"), show=short),
        Column("engine MB", value=_value("measured.engine_mb"), show=short),
        Column("cold start ms", value=_value("measured.cold_start.total_ms"), show=partial(fixed, decimals=0)),
        Column("calls", _calls, _value("measured.latency.samples")),
    ]


def chosen(rows: Sequence[Row], *heads: str) -> list[Column[Row]]:
    """The columns of these heads, and those of fidelity behind them."""
    known = {one.head: one for one in (*columns(rows), *details())}
    return [known[head] for head in (*heads, *(one.head for one in _fidelity(rows)))]


def attribute(of: object, path: str) -> object:
    """`attribute(row, "measured.latency.p50_ms")`; None as soon as one of these is None."""
    for name in path.split("."):
        of = None if of is None else getattr(of, name)
    return of


def _value(path: str) -> Callable[[Row], float | None]:
    def value(row: Row) -> float | None:
        found = attribute(row, path)
        assert found is None or isinstance(found, int | float)
        return found

    return value


def _fidelity(rows: Sequence[Row]) -> list[Column[Row]]:
    """Other figures for answers than for embeddings and features, and for maps."""
    known = [row.facts.fidelity for row in rows if row.facts.fidelity]
    if not known:
        return []
    heads: tuple[str, ...] = _ANSWERS if any(found.agreement is not None for found in known) else _VECTORS
    if any(found.error is not None for found in known):
        heads = _MAPS
    return [
        Column(head, value=_value(f"facts.fidelity.{name}"), show=show)
        for head, (name, show) in ((head, _FIDELITY[head]) for head in heads)
    ]


def _of_cascade(head: str, figure: str, rows: Sequence[Row]) -> list[Column[Row]]:
    """What also counts where the rows have a cascade, whose calls take different times."""
    return [Column(head, value=_value(f"measured.latency.{figure}"))] if any(row.cascade for row in rows) else []


def _speedup(row: Row) -> str:
    return times(row.comparison.speedup, row.comparison.interval) if row.comparison else ""


def _tone(row: Row) -> str:
    return _TONES.get(row.comparison.outcome, "doubt") if row.comparison else ""


def _calls(row: Row) -> str:
    if row.measured.latency:
        return str(row.measured.latency.samples)
    return "failed" if row.measured.failure else "-"
