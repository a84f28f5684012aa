"""A graph pass is one file and one line: here one is added, and the shipped model built, proved and run with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

pytest.importorskip("torch")

import ztdeploy
from ztdeploy.core.model_source import ModelSource
from ztdeploy.host import graph
from ztdeploy.jobs.build import BuildRequest, build

#: The file: in graphs of one precision, `x + y` becomes `y + x`.
SWAP = '''
import onnx_ir as ir

from ztdeploy.host.graph import GraphSpec


def swap_sums(model: ir.Model, spec: GraphSpec) -> None:
    """Swap the operands of every sum inside a block. Ensures that its name says so."""
    for node in model.graph:
        if node.op_type == "Add" and node.name.startswith("blocks."):
            one, other = node.inputs
            node.replace_input_with(0, other)
            node.replace_input_with(1, one)
            node.name += "/swapped"
'''


def test_one_file_and_one_line_add_a_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "swap_sums.py").write_text(SWAP)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(graph.PASSES, "swap-sums", graph.Pass("swap_sums:swap_sums", lambda spec: spec.opset >= 20))
    request = BuildRequest(
        model=ModelSource(name="vit_digits"), profiles=("cpu",), keep_ratios=(0.7,), out=tmp_path / "bundle"
    )
    bundle = build(request)
    variant = bundle.variant(keep_ratio=0.7)
    assert variant.engines["cpu"].parity is not None
    nodes = onnx.load(bundle.path(variant.graphs["cpu"].file), load_external_data=False).graph.node
    sums = [node.name for node in nodes if node.op_type == "Add" and node.name.startswith("blocks.")]
    assert sums
    assert all(name.endswith("/swapped") for name in sums)
    with ztdeploy.load(bundle, keep_ratio=0.7) as runner:
        assert np.isfinite(runner.infer(np.zeros((1, *bundle.manifest.preprocess.shape), np.uint8)).logits).all()
