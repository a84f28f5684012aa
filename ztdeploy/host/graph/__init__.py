"""ONNX graph passes: one rewrite per function, applied in the order of one table.

A pass changes a model in place, and raises an error where it cannot keep its promise. Its docstring says what it
requires, what it does and what it ensures. To add one, write a file here with a function, and add a line to `PASSES`
at the place where it shall run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pkgutil import resolve_name
from typing import TYPE_CHECKING

from ztdeploy.core.preprocess_spec import ImageInput
from ztdeploy.core.profile import Int8Options, Precision

if TYPE_CHECKING:
    import onnx_ir as ir

#: The smallest and the largest number of each value, by the name of the value.
Ranges = Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class GraphSpec:
    """What distinguishes two graphs of the same pruned model. Profiles that agree on it share one graph."""

    opset: int
    image_input: ImageInput
    batch: int | None  #: None is a dynamic batch axis
    precision: Precision = "fp32"
    turing: bool = False  #: must compile for compute capability 7.5
    board: bool = False  #: must be read by the oldest TensorRT that boards have
    rows: bool = False  #: linear layers take the rows of all images at once
    fused_attention_from: int | None = None  #: number of tokens, see `HardwareProfile`
    int8: Int8Options | None = None  #: for precision int8
    #: Input ranges of linear layers, for int8 activations with static ranges. They follow from the other fields.
    ranges: Ranges | None = field(default=None, compare=False, repr=False)

    @property
    def traced(self) -> GraphSpec:
        """The spec of the trace that the graph is made from."""
        return GraphSpec(self.opset, self.image_input, self.batch)

    @property
    def low(self) -> Precision:
        """The precision of all nodes that are neither int8 nor always fp32."""
        return (self.int8 or Int8Options()).rest if self.precision == "int8" else self.precision

    def label(self, others: Iterable[GraphSpec]) -> str:
        """What distinguishes the graph from others of its variant, such as `fp16` or `opset20-uint8`; may be empty."""
        others = list(others)
        parts = {
            "opset": f"opset{self.opset}",
            "image_input": self.image_input,
            "batch": f"batch-{'any' if self.batch is None else self.batch}",
            "precision": self.precision,
            "turing": "turing" if self.turing else "",
            "board": "board" if self.board else "",
            "rows": "rows" if self.rows and replace(self, rows=False) in others else "",
            "int8": self.int8.label if self.int8 else "",
            "fused_attention_from": f"fused-{self.fused_attention_from}" if self.fused_attention_from else "",
        }
        differing = [name for name in parts if len({getattr(spec, name) for spec in others}) > 1]
        return "-".join(parts[name] for name in differing if parts[name])


@dataclass(frozen=True)
class Pass:
    """One line of the table."""

    function: str  #: "module:function"; the function takes the model, and also the `GraphSpec` if `when` is given
    when: Callable[[GraphSpec], bool] | None = None  #: None: the pass runs on every trace


#: Applied in this order: first to every trace, then, where the condition holds, to the copy that becomes a graph.
PASSES: dict[str, Pass] = {
    "gather-rows": Pass("ztdeploy.host.graph.tidying:gather_rows"),
    "clean": Pass("ztdeploy.host.graph.tidying:clean"),
    "stable-names": Pass("ztdeploy.host.graph.stable_names:stable_names"),
    "live-rows": Pass("ztdeploy.host.graph.live_rows:live_rows"),
    "static-shapes": Pass("ztdeploy.host.graph.tidying:check_static_shapes"),
    "separate-projections": Pass(
        "ztdeploy.host.graph.fused_attention:separate_projections", lambda spec: spec.fused_attention_from is not None
    ),
    "int8": Pass("ztdeploy.host.graph.int8:to_int8", lambda spec: spec.precision == "int8"),
    "precision": Pass("ztdeploy.host.graph.precision:to_precision", lambda spec: spec.low != "fp32"),
    "turing": Pass("ztdeploy.host.graph.old_runtimes:without_fp32_products", lambda spec: spec.turing),
    "board": Pass("ztdeploy.host.graph.old_runtimes:for_old_parsers", lambda spec: spec.board),
    "fused-attention": Pass(
        "ztdeploy.host.graph.fused_attention:fuse_attention", lambda spec: spec.fused_attention_from is not None
    ),
    "linear-rows": Pass("ztdeploy.host.graph.linear_rows:linear_rows", lambda spec: spec.rows),
}


def apply_passes(traced: ir.Model) -> None:
    """Run the passes for every trace on the model, in place."""
    for one in PASSES.values():
        if one.when is None:
            resolve_name(one.function)(traced)


def specialise(traced: ir.Model, spec: GraphSpec, ranges: Ranges | None = None) -> ir.Model:
    """Make the graph that a spec asks for from the fp32 trace, which is not changed.

    Args:
        ranges: the spec's ranges, where its int8 activations have static ones.

    Raises:
        ModelError: a weight is out of the precision's range, or a pass cannot do what the spec asks.
    """
    wanted = [one for one in PASSES.values() if one.when is not None and one.when(spec)]
    if not wanted:
        return traced
    model, spec = traced.clone(), replace(spec, ranges=ranges)
    for one in wanted:
        resolve_name(one.function)(model, spec)
    resolve_name(PASSES["static-shapes"].function)(model)  # new values have no shapes yet
    return model
