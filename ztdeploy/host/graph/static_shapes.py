"""The product is static shapes: every value's rank and every axis but the batch must be known."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from ztdeploy.core.errors import ModelError


def check_static_shapes(model: ir.Model) -> None:
    """Raises ModelError naming the first node whose output has an unknown rank or an unknown axis but the first."""
    ShapeInferencePass(data_prop=True)(model)
    leading = [value.shape[0] for value in model.graph.inputs if value.shape is not None and value.shape.rank()]
    batch = {str(dim) for dim in leading if not isinstance(dim, int)}
    for node in model.graph:
        for value in node.outputs:
            if not value.name:
                continue  # an optional output that nobody asked for
            if value.shape is None:
                raise _not_static(node, "an unknown shape")
            symbols = [dim for dim in value.shape if not isinstance(dim, int)]
            behind = any(not isinstance(dim, int) for dim in value.shape[1:])
            if any(str(dim) not in batch for dim in symbols) or (behind and not _is_leading_part(value.shape)):
                raise _not_static(node, f"the shape {value.shape}")


def _is_leading_part(shape: ir.Shape) -> bool:
    """q, k and v are stacked in front of the batch for a moment: `[3, batch, H, N, d]`."""
    return isinstance(shape[0], int) and all(isinstance(dim, int) for dim in shape[2:])


def _not_static(node: ir.Node, found: str) -> ModelError:
    return ModelError(
        f"node '{node.name}' of the exported graph has {found}",
        "static shapes behind the batch axis",
        "choose a model whose token count does not depend on the image, or report it as a bug",
    )
