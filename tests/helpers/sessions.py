"""Graphs of tests as bytes, and run in ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from ztdeploy.target.backends.onnxruntime import session_options


def serialised(model: ir.Model) -> bytes:
    return ir.serde.serialize_model(model).SerializeToString(deterministic=True)


def run_graph(model: ir.Model | bytes, **feeds: np.ndarray) -> dict[str, Any]:
    """Outputs by name."""
    options = session_options(1)  # whose kernels are exact on every processor
    content = model if isinstance(model, bytes) else serialised(model)
    session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))
