"""Traces on disk: the fp32 graph of one variant, and what PyTorch makes of the golden input.

A folder of files that are named after the sha256 of their content, and a record per trace that names two of them: the
graph and the arrays. A graph refers to its large initialisers as ONNX external data, by the same kind of name, so ten
variants cost the disk of one. What is read is hashed first: a trace with a file that is missing, or that does not hold
what its name says, counts as none. The record is written last, so there is no half a trace. Ranges of int8 activations
lie beside it, by what they were measured on.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from pydantic import Field, FiniteFloat, TypeAdapter, ValidationError

from ztdeploy.core.cache import cache_errors
from ztdeploy.core.files import make_folder, open_regular, remove_leftovers, write
from ztdeploy.core.records import Record, from_json, to_json
from ztdeploy.host.graph import Ranges
from ztdeploy.host.graph.shared_weights import THRESHOLD_BYTES

_SHA256 = r"^[0-9a-f]{64}$"


@dataclass(frozen=True)
class Trace:
    """What is made of one variant before any engine is."""

    graph: ir.Model
    reference: dict[str, NDArray[np.generic]]  #: as in the golden `.npz` of a bundle


class _Record(Record):
    graph: str = Field(pattern=_SHA256)
    reference: str = Field(pattern=_SHA256)


#: By the name of a value, its lowest and highest.
_RANGES = TypeAdapter(dict[str, tuple[FiniteFloat, FiniteFloat]])


class _DamagedError(Exception):
    """Something that the store holds is not what it is named after."""


class TraceStore:
    """A folder of traces. Several processes may use it at once."""

    def __init__(self, folder: Path) -> None:
        """
        Raises:
            OutputError: the folder cannot be made.
        """
        self.folder = folder
        self._held: dict[str, bytes] = {}  #: weights that were read; variants share them
        self._sound = set[str]()  #: what is known to be on disk
        with cache_errors(folder):
            make_folder(folder)
            remove_leftovers(folder)

    def read(self, key: str) -> Trace | None:
        """The trace of that name, its weights in memory; None where there is none that is sound.

        Raises:
            OutputError: it is there and cannot be read.
        """
        with cache_errors(self.folder):
            try:
                record = from_json(_Record, self._read(self._record(key)))
                graph = self._graph(record.graph)
                with np.load(io.BytesIO(self._blob(record.reference)), allow_pickle=False) as arrays:
                    return Trace(graph, dict(arrays))
            except (FileNotFoundError, ValidationError, _DamagedError, ValueError, BadZipFile):
                return None

    def write(self, key: str, trace: Trace) -> None:
        """Keep a trace, which stays as it is.

        Raises:
            OutputError: the disk is full or cannot be written.
        """
        arrays = io.BytesIO()
        np.savez(arrays, allow_pickle=False, **trace.reference)
        with cache_errors(self.folder):
            graph = self._put(self._emptied(trace.graph))
            record = _Record(graph=graph, reference=self._put(arrays.getbuffer()))
            write(self._record(key), to_json(record))

    def ranges(self, key: str, measure: Callable[[], Ranges]) -> Ranges:
        """The int8 ranges of that name; measured and kept where there are none that are sound.

        Raises:
            OutputError: the disk is full or cannot be written.
        """
        file = self.folder / f"{key}.ranges.json"
        with cache_errors(self.folder):
            try:
                return _RANGES.validate_json(self._read(file))
            except (FileNotFoundError, ValidationError):
                pass
        found = measure()
        with cache_errors(self.folder):
            write(file, _RANGES.dump_json(dict(found)))
        return found

    def _record(self, key: str) -> Path:
        return self.folder / f"{key}.json"

    def _read(self, path: Path) -> bytes:
        with open_regular(path) as file:
            return file.read()

    def _blob(self, name: str) -> bytes:
        """The bytes whose sha256 is the name."""
        content = self._read(self.folder / name)
        if hashlib.sha256(content).hexdigest() != name:
            raise _DamagedError(name)
        return content

    def _put(self, content: bytes | memoryview) -> str:
        """Write a blob unless it is there and sound."""
        name = hashlib.sha256(content).hexdigest()
        if name not in self._sound:  # another variant has brought the weights, as a rule
            try:
                self._blob(name)
            except (FileNotFoundError, _DamagedError):
                write(self.folder / name, content)
            self._sound.add(name)
        return name

    def _emptied(self, model: ir.Model) -> bytes:
        """The graph as bytes, its large initialisers in files of their own."""
        graph = model.clone()
        for value in graph.graph.initializers.values():
            tensor = value.const_value
            if tensor is not None and tensor.nbytes >= THRESHOLD_BYTES:
                weights = np.ascontiguousarray(tensor.numpy()).reshape(-1).view(np.uint8).data
                value.const_value = ir.ExternalTensor(
                    location=self._put(weights),
                    offset=0,
                    length=tensor.nbytes,
                    dtype=tensor.dtype,
                    shape=ir.Shape(tensor.numpy().shape),
                    name=value.name or "",
                )
        content: bytes = ir.serde.serialize_model(graph).SerializeToString(deterministic=True)
        return content

    def _graph(self, name: str) -> ir.Model:
        """A graph with its weights in it, all of it from bytes that were hashed."""
        content = self._blob(name)
        try:
            model = ir.serde.deserialize_model(onnx.ModelProto.FromString(content))
        except Exception as error:  # protobuf's own errors have no base that is public
            raise _DamagedError(name) from error
        for value in model.graph.initializers.values():
            tensor = value.const_value
            if isinstance(tensor, ir.ExternalTensor):
                content = self._weights(str(tensor.location))
                array = np.frombuffer(content, tensor.dtype.numpy()).reshape(tensor.shape.numpy())
                value.const_value = ir.Tensor(array, tensor.dtype, name=value.name)
        return model

    def _weights(self, name: str) -> bytes:
        if not re.fullmatch(_SHA256, name):  # before it is made a path
            raise _DamagedError(name)
        if name not in self._held:
            self._held[name] = self._blob(name)
        return self._held[name]
