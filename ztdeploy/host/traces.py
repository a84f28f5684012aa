"""Traces on disk: the fp32 graph of one variant, and PyTorch's outputs for the golden input.

The store is a folder of files named after the sha256 of their content, with one record per trace that names the graph
and the arrays. Graphs refer to their large initialisers as ONNX external data by names of the same kind, so ten
variants take the disk space of one. Files are hashed before they are used: a trace with a missing or damaged file
counts as missing. The record is written last, so a trace is never incomplete. Ranges of int8 activations are stored
beside it, under a key of the images.
"""

from __future__ import annotations

import hashlib
import io
import logging
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

_log = logging.getLogger(__name__)

_SHA256 = r"^[0-9a-f]{64}$"


@dataclass(frozen=True)
class Trace:
    """The trace of one variant, which all its graphs and engines are made from."""

    graph: ir.Model
    reference: dict[str, NDArray[np.generic]]  #: as in the golden `.npz` of a bundle


class _Record(Record):
    graph: str = Field(pattern=_SHA256)
    reference: str = Field(pattern=_SHA256)


#: The lowest and highest number of each value, by its name.
_RANGES = TypeAdapter(dict[str, tuple[FiniteFloat, FiniteFloat]])


class _DamagedError(Exception):
    """A file of the store does not match its name."""


class TraceStore:
    """A folder of traces. Several processes may use it at once."""

    def __init__(self, folder: Path) -> None:
        """
        Raises:
            OutputError: the folder cannot be made.
        """
        self.folder = folder
        self._held: dict[str, bytes] = {}  #: weights that were read, which variants share
        self._sound = set[str]()  #: names that are known to be on disk
        with cache_errors(folder):
            make_folder(folder)
            remove_leftovers(folder)

    def read(self, key: str) -> Trace | None:
        """The trace of that name, with its weights in memory; None where it is missing or damaged.

        Raises:
            OutputError: it is there and cannot be read.
        """
        with cache_errors(self.folder):
            try:
                record = from_json(_Record, self._read(self._record(key)))
                graph = self._graph(record.graph)
                with np.load(io.BytesIO(self._blob(record.reference)), allow_pickle=False) as arrays:
                    _log.debug("the cache has the trace %s", self._record(key))
                    return Trace(graph, dict(arrays))
            except (FileNotFoundError, ValidationError, _DamagedError, ValueError, BadZipFile):
                return None

    def write(self, key: str, trace: Trace) -> None:
        """Store a trace, which is not changed.

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
        """The int8 ranges of that name; measured and stored where they are missing or damaged.

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
        """Write a blob unless it is there and undamaged."""
        name = hashlib.sha256(content).hexdigest()
        if name not in self._sound:  # usually another variant has stored the weights already
            try:
                self._blob(name)
            except (FileNotFoundError, _DamagedError):
                write(self.folder / name, content)
            self._sound.add(name)
        return name

    def _emptied(self, model: ir.Model) -> bytes:
        """The graph as bytes, with its large initialisers in separate files."""
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
        """A graph with its weights; all bytes were hashed."""
        content = self._blob(name)
        try:
            model = ir.serde.deserialize_model(onnx.ModelProto.FromString(content))
        except Exception as error:  # protobuf's errors have no public base class
            raise _DamagedError(name) from error
        for value in model.graph.initializers.values():
            tensor = value.const_value
            if isinstance(tensor, ir.ExternalTensor):
                content = self._weights(str(tensor.location))
                array = np.frombuffer(content, tensor.dtype.numpy()).reshape(tensor.shape.numpy())
                value.const_value = ir.Tensor(array, tensor.dtype, name=value.name)
        return model

    def _weights(self, name: str) -> bytes:
        if not re.fullmatch(_SHA256, name):  # checked before it becomes a path
            raise _DamagedError(name)
        if name not in self._held:
            self._held[name] = self._blob(name)
        return self._held[name]
