"""One row per configuration, for spreadsheets and data frames: every figure as it is in the JSON, nothing rounded."""

from __future__ import annotations

import csv
import io

from ztdeploy.core.text import csv_cell
from ztdeploy.report.sweep.columns import attribute
from ztdeploy.target.measure.sweep_report import Row, SweepReport, rows

_LATENCY = ("samples", "min_ms", "mean_ms", "p50_ms", "p90_ms", "p95_ms", "p99_ms", "max_ms", "mad_ms")
_COLD_START = ("process_ms", "import_ms", "load_ms", "first_ms", "total_ms")
_FIDELITY = ("data", "data_sha256", "images", "agreement", "kl", "cosine", "top1", "dense_top1", "error", "iou")
#: Columns, and where their values are: of the run, and of the row.
_OF_RUN = {
    **{name: f"bundle.{name}" for name in ("model", "timm_name", "weights", "profile", "backend", "runtime")},
    "processor": "machine.processor",
    "board": "machine.board",
    "measured_at": "before.at",
}
_OF_ROW = {
    "image_size": "facts.image_size.plain",
    "batch": "measured.batch",
    "threads": "measured.threads",
    "variant": "facts.name",
    "method": "facts.method",
    "keep_ratio": "facts.keep_ratio",
    "dense": "dense",
    "gmacs": "facts.gmacs",
    "pruning_gmacs": "facts.pruning_gmacs",
    "tokens_per_block": "facts.tokens_per_block",
    "rounds": "measured.turns",
    **{name: f"measured.latency.{name}" for name in _LATENCY},
    "images_per_s": "measured.images_per_s",
    "speedup": "comparison.speedup",
    "speedup_low": "comparison.interval.low",
    "speedup_high": "comparison.interval.high",
    "work_ratio": "comparison.work_ratio",
    "outcome": "comparison.outcome",
    **{name: f"measured.{name}" for name in ("peak_rss_mb", "model_mb", "engine_mb", "shared_weights_mb")},
    **{f"cold_{name}": f"measured.cold_start.{name}" for name in _COLD_START},
    **{f"fidelity_{name}": f"facts.fidelity.{name}" for name in _FIDELITY},
    "fidelity_change": "facts.fidelity.change",
    "failure": "measured.failure.message",
}


def csv_text(report: SweepReport) -> str:
    """The table with its heading; the heading alone where nothing was measured."""
    lines = [_cells(report, row) for row in rows(report)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(lines[0] if lines else ["variant"])
    writer.writerows(map(csv_cell, cells.values()) for cells in lines)
    return text.getvalue()


def _cells(report: SweepReport, row: Row) -> dict[str, object]:
    run = next(run for run in report.runs if run.bundle.image_size == row.facts.image_size)
    cells = {name: attribute(run, path) for name, path in _OF_RUN.items()}
    for name, path in _OF_ROW.items():
        value = attribute(row, path)
        if name == "fidelity_change":
            low, high = (row.facts.fidelity.change if row.facts.fidelity else None) or (None, None)
            cells |= {"fidelity_change_low": low, "fidelity_change_high": high}
        elif name == "tokens_per_block":
            cells[name] = " ".join(map(str, row.facts.tokens_per_block))
        elif name == "rounds":
            cells[name] = len(row.measured.turns)
        else:
            cells[name] = value
    return cells
