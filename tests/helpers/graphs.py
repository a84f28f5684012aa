"""Graphs of tiny models, each exported once a run: an export takes seconds, and many files want the same."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import onnx_ir as ir

from helpers.models import PREPROCESS, pruned, variant
from ztdeploy.core.locks import only_one
from ztdeploy.host.export import export_onnx
from ztdeploy.host.graph import GraphSpec

SPEC = GraphSpec(20, "uint8", None)


class Store:
    """Where all processes of the run keep the graphs; `tests/host/graph/conftest.py` says it."""

    folder: Path


@cache
def trace_of(name: str, method: str = "zero-tprune") -> ir.Model:
    """A line of `VARIANTS`: four blocks, pruning layers behind the second and the third. Nobody may change it."""
    file = Store.folder / f"{name}.{method}.onnx"
    with only_one(file.with_suffix(".lock")):
        if not file.exists():
            ir.save(export_onnx(pruned(variant(name), method), PREPROCESS, SPEC), file.with_suffix(".partial"))
            file.with_suffix(".partial").replace(file)
    return ir.load(file)
