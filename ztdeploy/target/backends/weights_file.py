"""Reading the bundle's weights file (safetensors layout) in place, without a copy and without trust."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from ztdeploy.core.data import parse_json
from ztdeploy.core.errors import BundleError
from ztdeploy.target.backends.base import Array

_DTYPES = {"F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I8": "|i1", "U8": "|u1", "BOOL": "|b1"}
#: Tensors that NumPy has no type for: only engines that are not run through NumPy read them.
_SKIPPED = {"BF16": 2}
_HEADER_LIMIT = 100 * 2**20


def map_weights(path: Path) -> dict[str, Array]:
    """Memory-mapped, read-only tensors by name; bf16 ones are left out.

    Raises:
        BundleError: the header is damaged, or a tensor lies outside the file.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        header_size = int.from_bytes(file.read(8), "little")
        if not 2 <= header_size <= min(_HEADER_LIMIT, size - 8):
            raise _damaged(path, "its header is longer than the file")
        raw = file.read(header_size)
    try:
        header = parse_json(raw.decode())
        header.pop("__metadata__", None)
        entries = {name: _layout(entry) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise _damaged(path, "its header is not a table of tensors") from error
    base, tensors = 8 + header_size, {}
    data = np.memmap(path, dtype=np.uint8, mode="r")
    for name, (dtype, shape, begin, end) in entries.items():
        if dtype not in {*_DTYPES, *_SKIPPED}:
            raise _damaged(path, f"a tensor is of the unknown type '{dtype[:20]}'")
        if not 0 <= begin <= end <= size - base:
            raise _damaged(path, "a tensor lies outside the file")
        item = _SKIPPED.get(dtype) or np.dtype(_DTYPES[dtype]).itemsize
        if math.prod(shape) * item != end - begin:
            raise _damaged(path, "a tensor's shape does not match its size")
        if dtype in _SKIPPED:
            continue
        tensors[name] = data[base + begin : base + end].view(_DTYPES[dtype]).reshape(shape)
    return tensors


def _layout(entry: Any) -> tuple[str, tuple[int, ...], int, int]:
    """Type, shape, begin and end of one tensor; any of the usual errors where the header's entry is not that."""
    shape, (begin, end) = tuple(map(int, entry["shape"])), map(int, entry["data_offsets"])
    np.empty(0).reshape(0, *shape)  # NumPy's own limits: how many dimensions, how large, none negative
    return str(entry["dtype"]), shape, begin, end


def _damaged(path: Path, reason: str) -> BundleError:
    return BundleError(f"'{path}' is damaged: {reason}", "a safetensors file", "copy or build the bundle again")
