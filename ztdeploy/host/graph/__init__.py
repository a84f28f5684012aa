"""ONNX graph passes, one rewrite per file, applied in the order of this table.

A pass is a function `(ir.Model) -> None` that changes the model in place and fails loudly where what it
promises does not hold afterwards.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

#: Applied to every exported graph.
PASSES: dict[str, str] = {
    "gather-rows": "ztdeploy.host.graph.gather_rows:gather_rows",
    "clean": "ztdeploy.host.graph.clean:clean",
    "stable-names": "ztdeploy.host.graph.stable_names:stable_names",
    "early-rows": "ztdeploy.host.graph.early_rows:early_rows",
    "static-shapes": "ztdeploy.host.graph.static_shapes:check_static_shapes",
}


def apply_passes(model: ir.Model) -> None:
    """Run every pass of the table on the model, in place."""
    for target in PASSES.values():
        module, _, name = target.partition(":")
        getattr(import_module(module), name)(model)
