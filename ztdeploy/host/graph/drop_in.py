"""Make a bundle's graph one that a service expects: one input and one output, under the names that it knows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass, RemoveUnusedOpsetsPass

from ztdeploy.core.errors import InputError
from ztdeploy.core.names import LOGITS
from ztdeploy.core.preprocess_spec import Activation, PreprocessSpec
from ztdeploy.host.graph.rewriting import Replacement, shape_of

Layout = Literal["nchw", "nhwc"]
#: What goes in: pixels as uint8, or as fp32 from 0 to 255, which the graph normalises; or fp32 that is normalised.
InputForm = Literal["pixels", "floats", "normalised"]
#: From uint8 `[B, H, W, C]` to what the first layer takes, as `export.Deployable` has it.
_NORMALISING = ("Cast", "Transpose", "Mul", "Add")
_TURNS = {"nchw": (0, 3, 1, 2), "nhwc": (0, 2, 3, 1)}
_SINGLE, _UINT8 = ir.DataType.FLOAT, ir.DataType.UINT8


def drop_in(
    model: ir.Model,
    preprocess: PreprocessSpec,
    *,
    taken: str,
    given: str,
    layout: Layout,
    form: InputForm,
    activation: Activation = "none",
) -> None:
    """Leave one input `taken` and one output `given`, in place.

    Requires a graph that `export` made, with its weights in memory. Outputs for pruning layers go.

    Args:
        layout: of the input.
        form: "normalised" is as `preprocess` says. Where normalisation is part of the graph's weights, pixels are
            restored of it, rounded to whole numbers.
        activation: what becomes of the output, along its second axis.

    Raises:
        InputError: the graph has a value of such a name, or takes another type of input than can be had from it.
    """
    graph, image = model.graph, model.graph.inputs[0]
    for position in reversed(range(len(graph.outputs))):
        if graph.outputs[position].name != LOGITS:
            graph.outputs.pop(position)
    if image.dtype == _UINT8:
        value, native = _entered(graph, image, preprocess, form), "nchw" if form == "normalised" else "nhwc"
    elif form != "normalised":
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
    if activation != "none":
        _activate(graph, activation)
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


def _entered(graph: ir.Graph, image: ir.Value, preprocess: PreprocessSpec, form: InputForm) -> ir.Value:
    """The value that the graph's input of uint8 is to give way to.

    Raises:
        InputError: floats are asked for, and the graph makes none of its pixels.
    """
    if form == "pixels":
        return image
    if form == "normalised":
        return _behind(image, _NORMALISING) or _restored(graph, image, preprocess)
    floats = _behind(image, _NORMALISING[:1])
    if floats is None:
        raise InputError("a graph that computes with pixels of uint8", "one that makes floats of them", "export pixels")
    return floats


def _behind(image: ir.Value, steps: Sequence[str]) -> ir.Value | None:
    """The image behind the first steps of its normalisation; None where that is part of the graph's weights."""
    value = image
    for operator in steps:
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


def _activate(graph: ir.Graph, activation: Activation) -> None:
    """Put the operator that makes probabilities of logits behind the graph's output."""
    logits = graph.outputs[0]
    operator, attributes = ("Softmax", [ir.AttrInt64("axis", 1)]) if activation == "softmax" else ("Sigmoid", [])
    node = ir.Node("", operator, [logits], attributes, num_outputs=1, name=f"{LOGITS}/{activation}")
    made = node.outputs[0]
    made.shape, made.type, logits.name = logits.shape, logits.type, f"{LOGITS}/raw"
    graph.append(node)
    graph.outputs[0] = made
