"""Tensors in a file: the claims about each are checked before anything is read or allocated."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import BinaryIO

import torch
from torch import Tensor

from ztdeploy.core.safetensors_header import MOST_DIMENSIONS, MOST_ELEMENTS, read_header

#: Types of torch whose values are plain numbers, without shared exponents and half bytes.
DTYPES: Mapping[str, torch.dtype] = {
    name: getattr(torch, name)
    for name in (
        *("float16", "bfloat16", "float32", "float64", "float8_e4m3fn", "float8_e5m2"),
        *("int8", "int16", "int32", "int64", "uint8", "bool", "uint16", "uint32", "uint64"),
    )
}
_SAFETENSORS = {
    **{"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "BOOL": "bool"},
    **{"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"},
    **{f"{word[0].upper()}{bits}": f"{word}{bits}" for word in ("int", "uint") for bits in (8, 16, 32, 64)},
}


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a file; its bytes lie inside the file.

    Raises:
        ValueError: on creation, for impossible claims.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype | None = None  #: None: sparse, quantised or of no plain type, so it cannot be read
    stride: tuple[int, ...] = ()  #: in elements, of each dimension
    offset: int = 0  #: of the first element, in bytes from the start of the file

    def __post_init__(self) -> None:
        if len(self.shape) > MOST_DIMENSIONS:
            raise ValueError(f"a tensor of {len(self.shape)} dimensions")
        counts = (*self.shape, *self.stride, math.prod(self.shape), self.offset)
        if not all(type(one) is int and 0 <= one <= MOST_ELEMENTS for one in counts):
            raise ValueError("a tensor of impossible sizes")

    @property
    def span(self) -> int:
        """Bytes from the first element to the end of the last one."""
        if self.dtype is None or 0 in self.shape:
            return 0
        steps = sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))
        return (steps + 1) * self.dtype.itemsize

    @property
    def cost(self) -> int:
        """The larger of the bytes to read and the bytes to hold."""
        return 0 if self.dtype is None else max(self.span, math.prod(self.shape) * self.dtype.itemsize)

    def read(self, file: BinaryIO) -> Tensor:
        """Read the tensor, contiguous in its own memory; on the device "meta" where it cannot be read.

        Raises:
            ValueError: the file ends too early.
        """
        if self.dtype is None:
            return torch.empty(self.shape, device="meta")
        if not self.span:
            return torch.empty(self.shape, dtype=self.dtype)
        file.seek(self.offset)
        content = bytearray(self.span)
        if file.readinto(content) != self.span:  # type: ignore[attr-defined]  # every buffered file has it
            raise ValueError("the file is shorter than it says")
        return torch.frombuffer(content, dtype=self.dtype).as_strided(self.shape, self.stride).contiguous()


def safetensors(file: BinaryIO) -> dict[str, StoredTensor]:
    """
    Raises:
        ValueError: the file has another format, is damaged, or has no tensors.
    """
    found = {}
    for name, (kind, shape, begin, _) in read_header(file).items():
        dtype = DTYPES.get(_SAFETENSORS.get(kind, ""))
        stride = tuple(math.prod(shape[place + 1 :]) for place in range(len(shape)))
        found[name] = StoredTensor(shape) if dtype is None else StoredTensor(shape, dtype, stride, begin)
    if not found:
        raise ValueError("it holds no tensor")
    return found
