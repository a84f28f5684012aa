"""Rewrite a graph with known shapes for OpenVINO: the same answers in less time.

OpenVINO's kernels of integer products divide rows into blocks of equal size, the largest divisor up to 64, and
distribute blocks over threads. 197 tokens are a prime number: blocks of 64, 64, 64 and 5, so that two threads get 128
and 69 rows. With a 198th row there are six blocks of 33, and a product takes a sixth less time.

Queries, keys and values are transposed together in fp32 and rounded to bf16 afterwards; rounding them first moves half
as many bytes. The power of two that scales queries becomes part of the product that computes them. A processor without
bf16 computes in fp32 instead, which takes a quarter of the time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

#: The largest block of rows, and one that is large enough.
LARGEST, LARGE = 64, 32
#: By no more than one in so many are rows made more.
SHARE = 16
_BY_ROW = frozenset(("Add", "Subtract", "Multiply", "Gelu", "FakeQuantize", "Convert", "MatMul"))
_MOVES = frozenset(("Reshape", "Transpose", "Gather", "Squeeze", "Unsqueeze"))


def even_number(rows: int) -> int:
    """The first number from `rows` on with large blocks; `rows` itself if its blocks suffice or none is near."""
    if rows <= LARGEST or block(rows) >= LARGE // 2:
        return rows
    return next((more for more in range(rows, rows + rows // SHARE + 1) if block(more) >= LARGE), rows)


def block(rows: int) -> int:
    """The largest divisor of `rows` up to `LARGEST`."""
    return max(size for size in range(1, LARGEST + 1) if rows % size == 0)


def even_rows(model: Any, opset: Any, *, by_row: bool = False) -> int:
    """Let integer products that widen their rows, and the nodes behind them, work on a few more rows.

    The narrower rows ahead of such a product are cheap to copy. The nodes treat every row by itself, so the image's
    rows are computed as before; the added rows are cut off ahead of the next operator that combines rows.

    Args:
        model: with known shapes, of one image. It is changed.
        opset: OpenVINO's operators.
        by_row: products with 8-bit weights are integer products whatever they read, since OpenVINO rounds it.

    Returns:
        How many chains of products were changed.
    """
    changed = 0
    for product in [node for node in model.get_ordered_ops() if node.get_type_name() == "MatMul"]:
        ahead = [] if by_row and _has_integer_weight(product) else _from_integers(product)
        if ahead is None or not _is_of_one_image(product.input_value(0)):
            continue
        _, rows, width = product.get_input_shape(0)
        more = even_number(rows) - rows
        if more and product.get_output_shape(0)[-1] > width:
            _lengthen([*ahead, product, *_works_row_by_row(product)], more, opset)
            changed += 1
    model.validate_nodes_and_infer_types()
    return changed


def _from_integers(product: Any) -> list[Any] | None:
    """The nodes that turn 8-bit integers `[1, N, K]` into what a product with a constant matrix reads, and only it."""
    found, node = list[Any](), product.input_value(0).get_node()
    while node.get_type_name() in ("Multiply", "Subtract"):
        found.insert(0, node)
        node = node.input_value(0).get_node()
    if node.get_type_name() != "Convert" or node.get_input_element_type(0).get_type_name() not in ("u8", "i8"):
        return None
    found.insert(0, node)
    if not _is_constant(product.input_value(1)) or any(_reader(one) is None for one in found):
        return None
    return found


def _is_of_one_image(value: Any) -> bool:
    shape = value.get_partial_shape()
    return bool(shape.is_static and len(shape) == 3 and shape[0].get_length() == 1)


def _has_integer_weight(product: Any) -> bool:
    """Whether a product reads a constant matrix of 8-bit integers, scaled."""
    node = product.input_value(1).get_node()
    while node.get_type_name() in ("Multiply", "Convert"):
        node = node.input_value(0).get_node()
    return bool(node.get_type_name() == "Constant" and node.get_output_element_type(0).get_type_name() == "i8")


def _works_row_by_row(product: Any) -> Iterator[Any]:
    """The nodes behind a product, one after the other, as long as each row of theirs comes from one row."""
    node = _reader(product)
    while node is not None and node.get_type_name() in _BY_ROW and node.get_output_size() == 1:
        if sum(not _is_the_same_for_all_rows(node, value) for value in node.input_values()) != 1:
            return
        yield node
        node = _reader(node)


def _is_the_same_for_all_rows(node: Any, value: Any) -> bool:
    if not _is_constant(value):
        return False
    shape = list(value.get_shape())
    return node.get_type_name() == "MatMul" or len(shape) < 2 or shape[-2] == 1


def _is_constant(value: Any) -> bool:
    """Whether a value is a constant, or comes from constants alone."""
    node = value.get_node()
    if node.get_type_name() in ("Convert", "Subtract", "Multiply", "Reshape"):
        return all(_is_constant(one) for one in node.input_values())
    return bool(node.get_type_name() == "Constant")


def _reader(node: Any) -> Any:
    """Who reads a node's output, where that is one alone."""
    readers = node.output(0).get_target_inputs()
    return next(iter(readers)).get_node() if len(readers) == 1 else None


def _lengthen(chain: list[Any], more: int, opset: Any) -> None:
    first, last = chain[0], chain[-1]
    rows = first.get_output_shape(0)[1]
    readers = last.output(0).get_target_inputs()
    ends = (opset.constant(np.array(end, np.int64)) for end in ((0, 0, 0), (0, more, 0)))
    kind = first.get_input_element_type(0).to_dtype()
    # Where OpenVINO takes a row's range, that of nothing but zeros has none.
    filled = opset.constant(np.asarray(0 if np.issubdtype(kind, np.integer) else 1, kind))
    longer = opset.pad(first.input_value(0), *ends, "constant", filled)
    first.input(0).replace_source_output(longer.output(0))
    for node in chain:
        node.validate_and_infer_types()
    parts = (opset.constant(np.array(numbers, np.int64)) for numbers in (1, (rows, more)))
    cut = opset.variadic_split(last.output(0), *parts)
    for reader in readers:
        reader.replace_source_output(cut.output(0))


def early_bf16(model: Any, opset: Any) -> int:
    """Round to bf16 ahead of what only moves data, where all that comes of it is rounded behind it.

    Returns:
        How many values were.
    """
    changed = 0
    for node in [node for node in model.get_ordered_ops() if _rounds(node)]:
        first, mover = None, node.input_value(0).get_node()
        while mover.get_type_name() in _MOVES:
            first, mover = mover, mover.input_value(0).get_node()
        if first is None or not all(_rounds(end) for end in _ends(first)):
            continue
        ends = list(_ends(first))
        early = opset.convert(first.input_value(0), "bf16")
        first.input(0).replace_source_output(early.output(0))
        for end in ends:
            _leave_out(end)
        changed += 1
    model.validate_nodes_and_infer_types()
    return changed


def in_fp32(model: Any, opset: Any) -> int:
    """Compute in fp32 what a graph computes in bf16: for processors without it, where OpenVINO emulates it.

    Returns:
        How many values were rounded to bf16 before.
    """
    constants = [node for node in model.get_ordered_ops() if node.get_type_name() == "Constant"]
    for node in [node for node in constants if node.get_output_element_type(0).get_type_name() == "bf16"]:
        wide = opset.constant(_from_bf16(node).reshape(list(node.get_output_shape(0))))
        for reader in list(node.output(0).get_target_inputs()):
            reader.replace_source_output(wide.output(0))
    rounding = [node for node in model.get_ordered_ops() if _rounds(node)]
    for node in rounding:
        _leave_out(node)
    model.validate_nodes_and_infer_types()
    return len(rounding)


def early_scales(model: Any, opset: Any) -> int:
    """Multiply the powers of two that queries are scaled by into scales and biases of the products that make them.

    Such a factor changes no digit, whether it comes before a sum or after it.

    Returns:
        How many were.
    """
    changed = 0
    for node in [node for node in model.get_ordered_ops() if node.get_type_name() == "Multiply"]:
        factor = _power_of_two(node.input_value(1))
        made = _queries(node)
        if factor is None or made is None:
            continue
        added, weight = made
        width = added.get_output_shape(0)[-1]
        factors = opset.constant(np.where(np.arange(width) < width // 3, factor, 1).astype(np.float32))
        for one in (added.input(1), weight.input(1)):
            one.replace_source_output(opset.multiply(one.get_source_output(), factors).output(0))
        _leave_out(node)
        changed += 1
    model.validate_nodes_and_infer_types()
    return changed


def _power_of_two(value: Any) -> float | None:
    """The one number of a constant in fp32 or bf16, if it is a power of two."""
    node = value.get_node()
    if node.get_type_name() == "Convert":
        node = node.input_value(0).get_node()
    if node.get_type_name() != "Constant" or np.prod(list(node.get_output_shape(0))) != 1:
        return None
    kind = node.get_output_element_type(0).get_type_name()
    if kind not in ("f32", "bf16"):
        return None
    factor = float((node.get_data().reshape(-1) if kind == "f32" else _from_bf16(node))[0])
    return factor if np.isfinite(factor) and np.frexp(factor)[0] == 0.5 else None


def _from_bf16(constant: Any) -> Any:
    """The numbers of a constant in bf16 as fp32, whose upper half bf16 is."""
    return (constant.get_data().reshape(-1).view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def _queries(scaling: Any) -> tuple[Any, Any] | None:
    """What adds the bias, and what scales the integer weights, of a product whose first third a node alone scales."""
    found = list[Any]()
    node = scaling.input_value(0).get_node()
    for kind in ("Gather", "Transpose", "Reshape", "Add", "MatMul"):
        while node.get_type_name() in ("Convert", "VariadicSplit"):
            node = node.input_value(0).get_node()
        if node.get_type_name() != kind:
            return None
        found.append(node)
        node = node.input_value(0).get_node()
    gather, turn, cut, added, product = found
    weight = product.input_value(1).get_node()
    index, axis, order = (one.get_node() for one in (gather.input_value(1), gather.input_value(2), turn.input_value(1)))
    if any(one.get_type_name() != "Constant" for one in (index, axis, order, added.input_value(1).get_node())):
        return None
    first = [int(one.get_vector()[0]) for one in (index, axis)] == [0, 0] and len(gather.get_output_shape(0)) == 4
    thirds = len(cut.get_output_shape(0)) == 5 and cut.get_output_shape(0)[2] == 3 and order.get_vector()[0] == 2
    alone = all(_reader(one) is not None for one in (gather, turn.input_value(0).get_node(), added, product))
    by_column = weight.get_type_name() == "Multiply" and _is_constant(weight.input_value(1))
    scaled = by_column and list(weight.get_input_shape(1))[-1:] == [added.get_output_shape(0)[-1]]
    return (added, weight) if first and thirds and alone and scaled else None


def _leave_out(node: Any) -> None:
    """Give a node's readers its first input instead."""
    for reader in list(node.output(0).get_target_inputs()):
        reader.replace_source_output(node.input_value(0))


def _rounds(node: Any) -> bool:
    is_bf16 = node.get_type_name() == "Convert" and node.get_output_element_type(0).get_type_name() == "bf16"
    return bool(is_bf16 and node.get_input_element_type(0).get_type_name() == "f32")


def _ends(mover: Any) -> Iterator[Any]:
    """Those behind a node that only moves data, or behind others of that kind, that do more than that."""
    for reader in mover.output(0).get_target_inputs():
        node = reader.get_node()
        if node.get_type_name() in _MOVES:
            yield from _ends(node)
        else:
            yield node
