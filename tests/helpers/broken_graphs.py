"""ONNX files as a runtime's hash check lets them through: of other inputs, outputs, sizes or values than built."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

FLOAT, UINT8 = TensorProto.FLOAT, TensorProto.UINT8
IMAGE = ("image", UINT8, ("batch", 32, 32, 3))
LOGITS = ("logits", FLOAT, ("batch", 10))
#: From pixels to `u [batch, 1]`.
HEAD = [
    helper.make_node("Cast", ["image"], ["f"], to=FLOAT),
    helper.make_node("ReduceSum", ["f", "axes"], ["u"], keepdims=0),
    helper.make_node("Unsqueeze", ["u", "one"], ["column"]),
]
CONSTANTS = [
    helper.make_tensor("axes", TensorProto.INT64, [3], [1, 2, 3]),
    helper.make_tensor("one", TensorProto.INT64, [1], [1]),
    helper.make_tensor("zero", TensorProto.INT64, [1], [0]),
    helper.make_tensor("ten", TensorProto.INT64, [2], [1, 10]),
    helper.make_tensor("row", FLOAT, [10], np.arange(10.0)),
]


def graph(
    nodes: Sequence[Any] = (),
    *,
    inputs: Sequence[Any] = (IMAGE,),
    outputs: Sequence[Any] = (LOGITS,),
    constants: Sequence[Any] = (),
    head: bool = True,
    **model: Any,
) -> bytes:
    """A graph of these nodes behind `HEAD`; without any it is sound, its logits are the sum of the pixels and `row`."""
    body = [*(HEAD if head else ()), *(nodes or [helper.make_node("Add", ["column", "row"], ["logits"])])]
    values = [
        [helper.make_tensor_value_info(*one) if isinstance(one, tuple) else one for one in side]
        for side in (inputs, outputs)
    ]
    made = helper.make_model(
        helper.make_graph(body, "g", *values, initializer=[*CONSTANTS, *constants]),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
        **model,
    )
    return bytes(made.SerializeToString())


def constant(values: Any, kind: int = FLOAT) -> bytes:
    """Logits that do not depend on the image, not even on how many there are."""
    array = np.asarray(values)
    tensor = helper.make_tensor("x", kind, array.shape, array.ravel())
    node = helper.make_node("Constant", [], ["logits"], value=tensor)
    return graph([node], outputs=[("logits", kind, array.shape)])


def plus(value: float) -> bytes:
    """Sound but for a value, which each image's first logit gets."""
    added = helper.make_tensor("added", FLOAT, [10], [value, *[0.0] * 9])
    return graph([helper.make_node("Add", ["column", "added"], ["logits"])], constants=[added])


def integers(name: str, *values: int) -> Any:
    return helper.make_tensor(name, TensorProto.INT64, [len(values)], values)


def sized(operator: str, *inputs: str, constants: Sequence[Any] = (), **attributes: Any) -> bytes:
    """Logits plus the sum of what an operator makes, whatever it makes."""
    nodes = [
        helper.make_node(operator, list(inputs), ["made"], **attributes),
        helper.make_node("ReduceSum", ["made"], ["sum"], keepdims=0),
        helper.make_node("Add", ["column", "row"], ["sound"]),
        helper.make_node("Add", ["sound", "sum"], ["logits"]),
    ]
    return graph(nodes, constants=constants)


def outside(location: str, *, dims: Sequence[int] = (10,), offset: int | None = 0, length: int | None = 40) -> bytes:
    """A graph that reads `w` from a file."""
    tensor = TensorProto(name="w", data_type=FLOAT, dims=dims, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        if value is not None:
            tensor.external_data.add(key=key, value=str(value))
    return graph([helper.make_node("Add", ["column", "w"], ["logits"])], constants=[tensor])


def inside(kind: str) -> bytes:
    """A graph with control flow, which would never end."""
    one = helper.make_tensor_value_info("b", FLOAT, None)
    end = helper.make_tensor_value_info("c2", TensorProto.BOOL, None)
    body = helper.make_graph([helper.make_node("Identity", ["row"], ["b"])], "branch", [], [one])
    constants = [integers("most", 2**62), helper.make_tensor("yes", TensorProto.BOOL, [], [True])]
    if kind == "If":
        node = helper.make_node("If", ["yes"], ["x"], then_branch=body, else_branch=body)
    elif kind == "Loop":
        given = [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
            helper.make_tensor_value_info("a", FLOAT, None),
        ]
        nodes = [helper.make_node("Identity", ["c"], ["c2"]), helper.make_node("Add", ["a", "a"], ["b"])]
        loop = helper.make_graph(nodes, "body", given, [end, one])
        node = helper.make_node("Loop", ["most", "yes", "row"], ["x"], body=loop)
    else:
        given = [helper.make_tensor_value_info("s", FLOAT, None)]
        scan = helper.make_graph([helper.make_node("Identity", ["s"], ["b"])], "body", given, [one])
        node = helper.make_node("Scan", ["row"], ["x"], body=scan, num_scan_inputs=1)
    return graph([node, helper.make_node("Add", ["column", "x"], ["logits"])], constants=constants)


def function() -> bytes:
    """A graph whose operator is defined in the file."""
    body = [helper.make_node("Add", ["a", "a"], ["b"])]
    own = helper.make_function("own", "Twice", ["a"], ["b"], body, [helper.make_opsetid("", 20)])
    nodes = [
        helper.make_node("Twice", ["row"], ["x"], domain="own"),
        helper.make_node("Add", ["column", "x"], ["logits"]),
    ]
    return graph(nodes, functions=[own])


def sparse() -> bytes:
    """A graph with a sparse constant of terabytes."""
    model = onnx.load_from_string(graph([helper.make_node("Add", ["column", "s"], ["logits"])]))
    values = helper.make_tensor("s", FLOAT, [1], [1.0])
    tensor = helper.make_sparse_tensor(values, helper.make_tensor("i", TensorProto.INT64, [1], [5]), [10**12, 10])
    model.graph.sparse_initializer.append(tensor)
    return bytes(model.SerializeToString())


def changed_output(
    content: bytes, name: str, nodes: Sequence[Any], *, kind: int | None = None, width: int = -1
) -> bytes:
    """An engine one of whose outputs goes through further nodes, from `right` to its name."""
    model = onnx.load_from_string(content)
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = ["right" if one == name else one for one in names]
    model.graph.node.extend(nodes)
    (output,) = (one for one in model.graph.output if one.name == name)
    if kind is not None:
        output.type.tensor_type.elem_type = kind
    if width >= 0:
        output.type.tensor_type.shape.dim[1].dim_value = width
    return bytes(model.SerializeToString())
