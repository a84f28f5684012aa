"""One weights file for all graphs of a bundle: safetensors layout, which ONNX addresses as external data.

Equal tensors are stored once, so four keep-ratio variants and their optimised graphs take the disk space of one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from itertools import count
from pathlib import Path

import numpy as np
import onnx_ir as ir

from ztdeploy.core.errors import ModelError
from ztdeploy.core.files import write, writing
from ztdeploy.host.graph.rewriting import numbers

#: Smaller tensors stay inside the graphs.
THRESHOLD_BYTES = 4096
_DTYPES = {ir.DataType.FLOAT: "F32", ir.DataType.FLOAT16: "F16", ir.DataType.BFLOAT16: "BF16", ir.DataType.INT8: "I8"}
_DTYPES |= {ir.DataType.UINT8: "U8", ir.DataType.INT32: "I32", ir.DataType.INT64: "I64", ir.DataType.BOOL: "BOOL"}


class SharedWeights:
    """Collects the large initialisers of several graphs, then writes them once and the graphs against them."""

    def __init__(self) -> None:
        self._graphs: list[tuple[Path, ir.Model]] = []
        self._tensors: dict[str, ir.TensorProtocol] = {}
        self._names: dict[str, str] = {}
        self._offsets: dict[str, int] = {}
        self._digests: dict[int, tuple[ir.TensorProtocol, str]] = {}  #: by identity: graphs share their tensors

    def add(self, path: Path, model: ir.Model) -> None:
        """Take a graph whose file will be `path`, which must lie beside the weights file.

        Its large initialisers get the names that they have in the weights file.
        """
        _rename_initializers(model, {value: self._intern(value) for value in _large_initializers(model)})
        self._graphs.append((path, model))

    def write(self, weights: Path) -> None:
        """Write the weights file and all added graphs. The same graphs give the same bytes."""
        self._offsets = self._write_tensors(weights)
        for path, model in self._graphs:
            self._write_graph(path, model, weights)
        self._weights = weights
        self._graphs.clear()
        self._digests.clear()

    def attach(self, path: Path, model: ir.Model) -> None:
        """Write another graph that uses the weights file; tensors that are not in it stay inside the graph.

        A runtime may keep the name of a tensor that it transposes, so those get names that the weights file lacks.
        """
        names = {value: self._names.get(self._digest(value)) for value in _large_initializers(model)}
        own = {value: f"{value.name}.own" for value in model.graph.initializers.values() if value.name in self._tensors}
        _rename_initializers(model, own | {value: name for value, name in names.items() if name is not None})
        self._write_graph(path, model, self._weights)
        self._digests.clear()

    def _write_graph(self, path: Path, model: ir.Model, weights: Path) -> None:
        assert path.parent == weights.parent, "external data must lie beside the graph"
        for value in _large_initializers(model):
            name = value.name or ""
            if self._names.get(self._digest(value)) == name:
                value.const_value = self._external(weights, name)
            else:
                value.const_value = ir.Tensor(numbers(value), name=name)
        write(path, ir.serde.serialize_model(model).SerializeToString(deterministic=True))

    def _intern(self, value: ir.Value) -> str:
        key, name = self._digest(value), value.name or "weight"
        if key not in self._names:
            names = (name if number == 1 else f"{name}.{number}" for number in count(1))
            self._names[key] = next(name for name in names if name not in self._tensors)
            assert value.const_value is not None
            self._tensors[self._names[key]] = value.const_value
        return self._names[key]

    def _digest(self, value: ir.Value) -> str:
        tensor = value.const_value
        assert tensor is not None
        if id(tensor) not in self._digests:
            digest = hashlib.sha256(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
            digest.update(_raw(tensor))
            self._digests[id(tensor)] = tensor, digest.hexdigest()
        return self._digests[id(tensor)][1]

    def _write_tensors(self, weights: Path) -> dict[str, int]:
        """Largest first, as the safetensors library does, so that the big ones are well aligned."""
        order = sorted(self._tensors, key=lambda name: (-self._tensors[name].nbytes, name))
        header, starts, begin = {}, {}, 0
        for name in order:
            tensor = self._tensors[name]
            if tensor.dtype not in _DTYPES:
                raise ModelError(
                    f"tensor '{name}' of type {tensor.dtype}", f"one of {sorted(_DTYPES.values())}", "cast it"
                )
            starts[name], end = begin, begin + tensor.nbytes
            shape = [int(dim) for dim in tensor.numpy().shape]
            header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": shape, "data_offsets": [begin, end]}
            begin = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-(8 + len(text)) % 64)
        with writing(weights) as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for name in order:
                file.write(_raw(self._tensors[name]))
        return {name: 8 + len(text) + start for name, start in starts.items()}

    def _external(self, weights: Path, name: str) -> ir.ExternalTensor:
        tensor = self._tensors[name]
        return ir.ExternalTensor(
            location=weights.name,
            offset=self._offsets[name],
            length=tensor.nbytes,
            dtype=tensor.dtype,
            shape=ir.Shape(tensor.numpy().shape),
            name=name,
            base_dir=weights.parent,
        )


def _large_initializers(model: ir.Model) -> list[ir.Value]:
    values = list(model.graph.initializers.values())
    return [value for value in values if value.const_value is not None and value.const_value.nbytes >= THRESHOLD_BYTES]


def _rename_initializers(model: ir.Model, names: Mapping[ir.Value, str]) -> None:
    """Rename all at once, as they may swap names; another value that has one of the new names gets a new one."""
    graph, targets = model.graph, set(names.values())
    for value in names:
        graph.initializers.pop(value.name or "")
    others = [*graph.initializers.values(), *(output for node in graph for output in node.outputs)]
    taken = targets | {value.name for value in (*graph.inputs, *others) if value.name}
    for value in others:
        if value.name in targets:
            constant = graph.initializers.pop(value.name, None) is value
            value.name = next(name for number in count(2) if (name := f"{value.name}.own{number}") not in taken)
            taken.add(value.name)
            if constant:
                graph.register_initializer(value)
    for value, name in names.items():
        if name in graph.initializers:  # the graph holds the tensor twice
            ir.convenience.replace_all_uses_with(value, graph.initializers[name])
        else:
            value.name = name
            graph.register_initializer(value)


def _raw(tensor: ir.TensorProtocol) -> memoryview:
    """The bytes of a tensor, also of types that NumPy lacks."""
    return np.ascontiguousarray(tensor.numpy()).reshape(-1).view(np.uint8).data
