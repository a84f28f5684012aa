"""Tensors that lie in a file: what a file says about each is checked before anything is read or allocated for it."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import BinaryIO

import torch
from torch import Tensor

#: Dimensions, and elements along one or altogether: beyond what any network has, and within what torch counts in.
_MOST_DIMENSIONS, _MOST_ELEMENTS = 16, 2**40
#: Of the types that torch knows, those whose values are numbers by themselves: no shared exponents, no half bytes.
DTYPES: Mapping[str, torch.dtype] = {
    name: getattr(torch, name)
    for name in (
        *("float16", "bfloat16", "float32", "float64", "float8_e4m3fn", "float8_e5m2"),
        *("int8", "int16", "int32", "int64", "uint8", "bool", "uint16", "uint32", "uint64"),
    )
}


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a file; what is described here lies inside the file.

    Raises:
        ValueError: on creation, for what no tensor can have.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype | None = None  #: None: it cannot be read, being sparse, quantised or of no plain type
    stride: tuple[int, ...] = ()  #: in elements, of each dimension
    offset: int = 0  #: of the first element, in bytes from the start of the file

    def __post_init__(self) -> None:
        if len(self.shape) > _MOST_DIMENSIONS:
            raise ValueError(f"a tensor of {len(self.shape)} dimensions")
        counts = (*self.shape, *self.stride, math.prod(self.shape), self.offset)
        if not all(type(one) is int and 0 <= one <= _MOST_ELEMENTS for one in counts):
            raise ValueError("a tensor of impossible sizes")

    @property
    def span(self) -> int:
        """Bytes from its first element to behind its last."""
        if self.dtype is None or 0 in self.shape:
            return 0
        steps = sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))
        return (steps + 1) * self.dtype.itemsize

    @property
    def cost(self) -> int:
        """Bytes to be read, or to be held, whichever is more."""
        return 0 if self.dtype is None else max(self.span, math.prod(self.shape) * self.dtype.itemsize)


def contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The strides of a tensor that lies in a file row by row."""
    return tuple(math.prod(shape[place + 1 :]) for place in range(len(shape)))


def read_tensor(file: BinaryIO, stored: StoredTensor) -> Tensor:
    """The tensor, contiguous, in a memory of its own; of the device "meta" where it cannot be read.

    Raises:
        ValueError: the file ends too early.
    """
    if stored.dtype is None:
        return torch.empty(stored.shape, device="meta")
    if not stored.span:
        return torch.empty(stored.shape, dtype=stored.dtype)
    file.seek(stored.offset)
    content = bytearray(stored.span)
    if file.readinto(content) != stored.span:  # type: ignore[attr-defined]  # every buffered file has it
        raise ValueError("the file is shorter than it says")
    return torch.frombuffer(content, dtype=stored.dtype).as_strided(stored.shape, stored.stride).contiguous()


def size_of(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size
