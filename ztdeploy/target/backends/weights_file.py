"""Reading the bundle's weights file (safetensors layout) in place, without a copy and without trust."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ztdeploy.core.errors import BundleError
from ztdeploy.core.safetensors_header import read_header
from ztdeploy.target.backends.base import Array

_DTYPES = {"F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I8": "|i1", "U8": "|u1", "BOOL": "|b1"}
#: NumPy has no type for it: only engines that are not run through NumPy read such tensors.
_SKIPPED = "BF16"


def map_weights(path: Path) -> dict[str, Array]:
    """Memory-mapped, read-only tensors by name; bf16 ones are left out.

    Raises:
        BundleError: the header is damaged, or a tensor lies outside the file.
    """
    try:
        with path.open("rb") as file:
            entries = read_header(file)
        unknown = next((one.dtype for one in entries.values() if one.dtype not in {*_DTYPES, _SKIPPED}), None)
        if unknown is not None:
            raise ValueError(f"a tensor is of the unknown type '{unknown[:20]}'")
    except ValueError as error:
        fix = "copy or build the bundle again"
        raise BundleError(f"'{path}' is damaged: {error}", "a safetensors file", fix) from error
    data = np.memmap(path, dtype=np.uint8, mode="r")
    return {
        name: data[one.begin : one.end].view(_DTYPES[one.dtype]).reshape(one.shape)
        for name, one in entries.items()
        if one.dtype != _SKIPPED
    }
