"""One row per configuration, for spreadsheets and data frames: every figure as it is in the JSON, nothing rounded."""

from __future__ import annotations

import csv
import io

from ztdeploy.core.text import csv_cell
from ztdeploy.target.measure.sweep_report import Row, SweepReport, rows


def csv_text(report: SweepReport) -> str:
    """The table with its heading; the heading alone where nothing was measured."""
    sheet = [_cells(report, row) for row in rows(report)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(sheet[0] if sheet else ["variant"])
    writer.writerows(map(csv_cell, cells.values()) for cells in sheet)
    return text.getvalue()


def _cells(report: SweepReport, row: Row) -> dict[str, object]:
    facts, one = row.facts, row.measured
    return {
        **_origin(report, row),
        "image_size": facts.image_size.plain,
        "batch": one.batch,
        "threads": one.threads,
        "variant": facts.name,
        "method": facts.method,
        "keep_ratio": facts.keep_ratio,
        "dense": row.dense,
        "gmacs": facts.gmacs,
        "pruning_gmacs": facts.pruning_gmacs,
        "tokens_per_block": " ".join(map(str, facts.tokens_per_block)),
        **_latency(row),
        **_comparison(row),
        "peak_rss_mb": one.peak_rss_mb,
        "model_mb": one.model_mb,
        "engine_mb": one.engine_mb,
        "shared_weights_mb": one.shared_weights_mb,
        **_cold_start(row),
        **_fidelity(row),
        "failure": one.failure.message if one.failure else None,
    }


def _origin(report: SweepReport, row: Row) -> dict[str, object]:
    run = next(run for run in report.runs if run.bundle.image_size == row.facts.image_size)
    return {
        "model": run.bundle.model,
        "timm_name": run.bundle.timm_name,
        "weights": run.bundle.weights,
        "profile": run.bundle.profile,
        "backend": run.bundle.backend,
        "runtime": run.bundle.runtime,
        "processor": run.machine.processor,
        "board": run.machine.board,
        "measured_at": run.before.at,
    }


def _latency(row: Row) -> dict[str, object]:
    found, one = row.measured.latency, row.measured
    names = ("samples", "min_ms", "mean_ms", "p50_ms", "p90_ms", "p95_ms", "p99_ms", "max_ms", "mad_ms")
    figures = {name: getattr(found, name) if found else None for name in names}
    return {"rounds": len(one.turns), **figures, "images_per_s": one.images_per_s}


def _comparison(row: Row) -> dict[str, object]:
    found = row.comparison
    interval = found.interval if found else None
    return {
        "speedup": found.speedup if found else None,
        "speedup_low": interval.low if interval else None,
        "speedup_high": interval.high if interval else None,
        "work_ratio": found.work_ratio if found else None,
        "outcome": found.outcome if found else None,
    }


def _cold_start(row: Row) -> dict[str, object]:
    found = row.measured.cold_start
    names = ("process_ms", "import_ms", "load_ms", "first_ms", "total_ms")
    return {f"cold_{name}": getattr(found, name) if found else None for name in names}


def _fidelity(row: Row) -> dict[str, object]:
    found = row.facts.fidelity
    names = ("data", "data_sha256", "images", "agreement", "kl", "cosine", "top1", "dense_top1")
    figures = {f"fidelity_{name}": getattr(found, name) if found else None for name in names}
    low, high = (found.change if found else None) or (None, None)
    return {**figures, "fidelity_change_low": low, "fidelity_change_high": high}
