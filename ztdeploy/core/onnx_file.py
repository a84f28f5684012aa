"""Which files an ONNX graph makes a runtime read, and whether it is a plain graph, found out before a runtime opens it.

A graph from outside may name any file as the place of its weights, loop forever, or ask for terabytes. Some runtimes
refuse that, others hang or crash. The protobuf is read here because the target half has no package `onnx`.

Requires: nothing; any bytes. Ensures: no control flow, no functions, no sparse tensors, no tensor that is larger than
the bytes it comes from, and no constant size beyond `MOST_VALUES`. Sizes that a graph computes are not checked.
"""

from __future__ import annotations

import math
import struct
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from ztdeploy.core.errors import BundleError
from ztdeploy.core.files import read_bytes

#: Weights lie in other files: real graphs have some hundred kilobytes and ten thousands of fields.
LIMIT = 64 * 2**20
MOST_FIELDS = 2_000_000
#: Most values in one tensor.
MOST_VALUES = 2**28
#: By operator: the inputs that decide how large its outputs are.
_SIZES = {
    "ConstantOfShape": (0,),
    "Expand": (1,),
    "OneHot": (1,),
    "Pad": (1,),
    "Range": (0, 1, 2),
    "Resize": (2, 3),
    "Tile": (1,),
    "Upsample": (1,),
}
_FORMATS = {1: "f", 6: "i", 7: "q", 11: "d"}  #: of raw data, by ONNX's number of a type
_DTYPES = {1: "float32", 2: "uint8", 3: "int8", 6: "int32", 7: "int64", 9: "bool", 10: "float16"}
#: Longer constants are no shapes, and their numbers are not read.
_FEW_BYTES = 512
_Value = int | slice


@dataclass
class GraphFile:
    """The files and constants of a graph."""

    reads: dict[str, int] = field(default_factory=dict)  #: files beside it -> the least size that they must have, bytes
    #: Constants by name: NumPy's name of their type (or ONNX's number of it), and their shape.
    tensors: dict[str, tuple[str, tuple[int, ...]]] = field(default_factory=dict)
    #: Those that lie in files beside it: the file, and where in it they begin.
    outside: dict[str, tuple[str, int]] = field(default_factory=dict)


def read_graph(path: Path) -> GraphFile:
    """
    Raises:
        BundleError: it cannot be read, is no ONNX file, or is not a plain graph.
    """
    fix = "copy or build the bundle again"
    content = read_bytes(path, LIMIT, what="graph", error=BundleError, fix=fix)
    try:
        return _Reader(content).graph()
    except (ValueError, TypeError, struct.error, IndexError, OverflowError) as error:
        reason = "it is cut off" if isinstance(error, IndexError) else error
        raise BundleError(f"'{path}' cannot be run: {reason}", "a plain graph as built", fix) from error


class _Reader:
    def __init__(self, content: bytes) -> None:
        self._content, self._left = content, MOST_FIELDS
        self._found = GraphFile()
        self._constants: dict[str, tuple[float, ...]] = {}
        self._sized: list[tuple[str, list[str]]] = []

    def graph(self) -> GraphFile:
        graphs = 0
        for number, value in self._fields(slice(0, len(self._content))):
            if number == 7:
                graphs += 1
                self._graph(_part(value))
            elif number == 25:
                raise ValueError("it has functions of its own")
        if not graphs:
            raise ValueError("it holds no graph")
        for operator, inputs in self._sized:
            self._check_sizes(operator, inputs)
        return self._found

    def _graph(self, part: slice) -> None:
        for number, value in self._fields(part):
            if number == 1:
                self._node(_part(value))
            elif number == 5:
                self._tensor(_part(value), constant=True)
            elif number == 15:
                raise ValueError("it has sparse tensors")

    def _node(self, part: slice) -> None:
        found = self._group(part)
        inputs, outputs = ([self._text(value) for value in found[number]] for number in (1, 2))
        operator = self._last_text(found[4])
        values = tuple(chain.from_iterable(self._attribute(_part(value)) for value in found[5]))
        if operator in _SIZES:
            self._sized.append((operator, inputs))
        if operator == "Constant" and outputs:
            self._constants[outputs[0]] = values

    def _attribute(self, part: slice) -> tuple[float, ...]:
        """The numbers of an attribute; none if it holds many."""
        found = self._group(part)
        if found[6] or found[11]:
            raise ValueError("it has a graph inside a node, such as a loop")
        if found[22] or found[23]:
            raise ValueError("it has sparse tensors")
        tensors = [self._tensor(_part(value)) for value in (*found[5], *found[10])]
        floats = [self._unpacked(value, "f") for value in (*found[2], *found[7])]
        return tuple(chain(*tensors, *floats, *(self._integers(value) for value in (*found[3], *found[8]))))

    def _tensor(self, part: slice, *, constant: bool = False) -> tuple[float, ...]:
        """Record what a tensor reads. Returns its numbers; none if it has many."""
        found, held, outside = self._group(part), part.stop - part.start, dict[str, str]()
        name, dims = self._last_text(found[8]), [length for value in found[1] for length in self._dims(value)]
        kind = next((value for value in reversed(found[2]) if isinstance(value, int)), 0)
        formats = {4: "f", 10: "d", **({9: _FORMATS[kind]} if kind in _FORMATS else {})}
        packed = [self._unpacked(value, form) for number, form in formats.items() for value in found[number]]
        values = tuple(chain(*packed, *(self._integers(value) for value in (*found[5], *found[7]))))
        for value in found[13]:
            outside |= self._entry(_part(value))
        count = math.prod(dims)
        if any(length < 0 for length in dims) or count > (MOST_VALUES if outside else 4 * held):  # of 2 bits or more
            raise ValueError(f"the tensor '{name[:80]}' of shape {dims[:8]} is larger than what it is made of")
        if outside:
            self._reads(name, count, outside)
        if constant:
            self._constants[name] = values
            self._found.tensors[name] = (_DTYPES.get(kind, str(kind)), tuple(dims))
        return values

    def _dims(self, value: _Value) -> list[int]:
        if isinstance(value, slice) and value.stop - value.start > _FEW_BYTES:
            raise ValueError("it has a tensor of too many dimensions")
        return [int(length) for length in self._integers(value)]

    def _reads(self, name: str, count: int, outside: dict[str, str]) -> None:
        location, offset = outside.get("location", ""), int(outside.get("offset", "0")[:20])
        length = int(outside.get("length", "0")[:20])
        if offset < 0 or length < 0:
            raise ValueError(f"the tensor '{name[:80]}' begins before its file")
        self._found.outside[name] = (location, offset)
        self._found.reads[location] = max(self._found.reads.get(location, 0), offset + max(length, count // 4))

    def _entry(self, part: slice) -> dict[str, str]:
        texts = {number: self._text(value) for number, value in self._fields(part)}
        return {texts.get(1, ""): texts.get(2, "")}

    def _check_sizes(self, operator: str, inputs: list[str]) -> None:
        places = (inputs[place] for place in _SIZES[operator] if place < len(inputs))
        values = [self._constants.get(name, ()) for name in places]
        sizes = [max(1.0, abs(one)) for some in values for one in some]
        if operator == "Range" and all(values):
            begin, end, step = (some[0] for some in values)
            sizes = [abs(end - begin) / abs(step) if step else math.inf]
        most = max(sizes, default=0) if operator == "Pad" else math.prod(sizes)
        if not most <= MOST_VALUES:
            raise ValueError(f"its operator {operator} makes a tensor of more than {MOST_VALUES} values")

    def _fields(self, part: slice) -> Iterator[tuple[int, _Value]]:
        """The fields of a message: numbers as themselves, everything else as its place in the file."""
        content, at, stop = self._content, part.start, part.stop
        while at < stop:
            self._left -= 1
            if self._left < 0:
                raise ValueError(f"it has more than {MOST_FIELDS} fields")
            key, at = _varint(content, at)
            wire = key & 7
            if wire == 0:
                value, at = _varint(content, at)
                yield key >> 3, value
                continue
            if wire == 2:
                size, at = _varint(content, at)
            elif wire in (1, 5):
                size = 8 if wire == 1 else 4
            else:
                raise ValueError("it is no ONNX file")
            if at + size > stop:
                raise ValueError("it is cut off")
            yield key >> 3, slice(at, at + size)
            at += size

    def _group(self, part: slice) -> defaultdict[int, list[_Value]]:
        """The fields of a message by their number."""
        found = defaultdict[int, list[_Value]](list)
        for number, value in self._fields(part):
            found[number].append(value)
        return found

    def _text(self, value: _Value) -> str:
        return self._content[_part(value)].decode("utf-8", "replace")

    def _last_text(self, values: list[_Value]) -> str:
        """Of a field that occurs once; of several, protobuf takes the last."""
        return self._text(values[-1]) if values else ""

    def _integers(self, value: _Value) -> tuple[float, ...]:
        """The integers of a field, signed, of 64 bits; none if it packs many."""
        if isinstance(value, int):
            return (_signed(value),)
        if value.stop - value.start > _FEW_BYTES:
            return ()
        found, at = list[int](), value.start
        while at < value.stop:
            number, at = _varint(self._content, at)
            found.append(_signed(number))
        return tuple(found)

    def _unpacked(self, value: _Value, kind: str) -> tuple[float, ...]:
        """The numbers of a packed field or of raw data; none if they are many."""
        part, size = _part(value), struct.calcsize(kind)
        if part.stop - part.start > _FEW_BYTES:
            return ()
        return struct.unpack(f"<{(part.stop - part.start) // size}{kind}", self._content[part])


def _part(value: _Value) -> slice:
    if isinstance(value, int):
        raise TypeError("it is no ONNX file")
    return value


def _varint(content: bytes, at: int) -> tuple[int, int]:
    byte = content[at]
    if byte < 0x80:
        return byte, at + 1
    value, shift = byte & 0x7F, 7
    while True:
        at += 1
        byte = content[at]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at + 1
        shift += 7
        if shift > 63:
            raise ValueError("it is no ONNX file")


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value
