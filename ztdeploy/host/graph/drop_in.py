"""Make a bundle's graph one that a service expects: one input and one output, under the names that it knows."""

from __future__ import annotations

from typing import Literal

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass, RemoveUnusedOpsetsPass

from ztdeploy.core.errors import InputError
from ztdeploy.core.names import LOGITS
from ztdeploy.core.preprocess_spec import PreprocessSpec
from ztdeploy.host.graph.rewriting import Replacement, shape_of

Layout = Literal["nchw", "nhwc"]
#: From uint8 `[B, H, W, C]` to what the first layer takes, as `export.Deployable` has it.
_NORMALISING = ("Cast", "Transpose", "Mul", "Add")
_TURNS = {"nchw": (0, 3, 1, 2), "nhwc": (0, 2, 3, 1)}
_SINGLE, _UINT8 = ir.DataType.FLOAT, ir.DataType.UINT8


def drop_in(
    model: ir.Model, preprocess: PreprocessSpec, *, taken: str, given: str, layout: Layout, pixels: bool
) -> None:
    """Leave one input `taken` and one output `given`, in place.

    Requires a graph that `export` made, with its weights in memory. Outputs for pruning layers go.

    Args:
        layout: of the input.
        pixels: the input stays uint8; otherwise it is fp32, and normalised as `preprocess` says. Where normalisation is
            part of the graph's weights, pixels are restored of it, rounded to whole numbers.

    Raises:
        InputError: the graph has a value of such a name, or takes another type of input than can be had from it.
    """
    graph, image = model.graph, model.graph.inputs[0]
    for position in reversed(range(len(graph.outputs))):
        if graph.outputs[position].name != LOGITS:
            graph.outputs.pop(position)
    if image.dtype == _UINT8:
        value, native = (
            (image, "nhwc") if pixels else (_normalised(image) or _restored(graph, image, preprocess), "nchw")
        )
    elif pixels:
        raise InputError("--pixels for a graph whose input is float32", "a graph of uint8 input", "leave --pixels out")
    else:
        value, native = image, "nchw"
    sizes = list(shape_of(value))
    shape = sizes if layout == native else [sizes[place] for place in _TURNS[layout]]
    new = ir.Value(name=taken, shape=ir.Shape(shape), type=value.type)
    held = new
    if layout != native:
        turn = ir.Node(
            "", "Transpose", [new], [ir.AttrInt64s("perm", _TURNS[native])], num_outputs=1, name=f"{taken}/turned"
        )
        held = turn.outputs[0]
        held.name, held.shape, held.type = turn.name, ir.Shape(sizes), value.type
        graph.insert_before(graph[0], turn)
    for old in dict.fromkeys((image, value)):  # the image itself tells only how many there are, then
        ir.convenience.replace_all_uses_with(old, held)
    graph.inputs[:] = [new]
    graph.outputs[0].name = given
    RemoveUnusedNodesPass()(model)
    RemoveUnusedOpsetsPass()(model)
    names = [
        *graph.initializers,
        *(output.name for node in graph for output in node.outputs if output is not graph.outputs[0]),
    ]
    for name in (taken, given):
        if name in names:
            raise InputError(f"the name '{name}', which a value inside the graph has", "another name", "choose one")


def _normalised(image: ir.Value) -> ir.Value | None:
    """The normalised image; None where normalisation is part of the graph's weights."""
    value = image
    for operator in _NORMALISING:
        readers = [node for node, _ in value.uses() if node.op_type != "Shape"]
        if [node.op_type for node in readers] != [operator]:
            return None
        value = readers[0].outputs[0]
    return value


def _restored(graph: ir.Graph, image: ir.Value, preprocess: PreprocessSpec) -> ir.Value:
    """Let the image be computed from a normalised one, `[B, C, H, W]`, which is returned."""
    batch, height, width, channels = shape_of(image)
    shape = ir.Shape([batch, channels, height, width])
    normalised = ir.Value(name="normalised", shape=shape, type=ir.TensorType(_SINGLE))
    new = Replacement(graph[0], "pixels")
    std, mean = (255 * np.reshape(one, (1, -1, 1, 1)) for one in (preprocess.std, preprocess.mean))
    steps = new.add("Mul", "steps", normalised, new.constant("std", std, _SINGLE), like=normalised)
    values = new.add("Add", "values", steps, new.constant("mean", mean, _SINGLE), like=normalised)
    ends = (new.constant(name, end, _SINGLE) for name, end in (("low", 0), ("high", 255)))
    whole = new.add("Clip", "clipped", new.add("Round", "whole", values, like=normalised), *ends, like=normalised)
    rows = new.add("Transpose", "rows", new.cast("uint8", whole, _UINT8), like=image, perm=_TURNS["nhwc"])
    new.insert_before()
    ir.convenience.replace_all_uses_with(image, rows)
    return normalised
