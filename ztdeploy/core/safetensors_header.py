"""The header of a file in safetensors layout: a table of tensors, checked before anything is done with it."""

from __future__ import annotations

import math
import os
from typing import BinaryIO, NamedTuple

from ztdeploy.core.data import parse_json

#: Bytes of one number, by the format's types.
ITEM_SIZES = {
    **{"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "BOOL": 1},
    **{f"{letter}{bits}": bits // 8 for letter in "IU" for bits in (8, 16, 32, 64)},
}
#: Bytes of a header; each tensor takes a hundred.
_LONGEST = 16 * 2**20
#: Dimensions of a tensor, and numbers along one or altogether: beyond what any network has.
MOST_DIMENSIONS, MOST_ELEMENTS = 16, 2**40


class Entry(NamedTuple):
    """One tensor; where its type is in `ITEM_SIZES`, its bytes are as many as its shape says."""

    dtype: str
    shape: tuple[int, ...]
    begin: int  #: of its bytes, from the start of the file
    end: int


def read_header(file: BinaryIO) -> dict[str, Entry]:
    """The tensors of a file by their names, all of them inside the file.

    Raises:
        ValueError: it is not of that format, or damaged.
    """
    size, length = os.fstat(file.fileno()).st_size, int.from_bytes(file.read(8), "little")
    if not 2 <= length <= min(_LONGEST, size - 8):
        raise ValueError("its header is longer than the file, or than any network's")
    entries, start = {}, 8 + length
    try:
        for name, said in parse_json(file.read(length).decode()).items():
            if name != "__metadata__":
                begin, end = said["data_offsets"]
                if not (type(begin) is type(end) is int and 0 <= begin <= end <= size - start):
                    raise ValueError("a tensor lies outside the file")
                entry = Entry(str(said["dtype"]), tuple(said["shape"]), start + begin, start + end)
                entries[name] = _with_known_shape(entry)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError("its header is not a table of tensors") from error
    return entries


def _with_known_shape(entry: Entry) -> Entry:
    counts = entry.shape if len(entry.shape) <= MOST_DIMENSIONS else (-1,)
    if not all(type(count) is int and 0 <= count <= MOST_ELEMENTS for count in counts):
        raise ValueError("a tensor has an impossible shape")
    item = ITEM_SIZES.get(entry.dtype)
    if item is not None and math.prod(entry.shape) * item != entry.end - entry.begin:
        raise ValueError("a tensor's shape does not match its size")
    return entry
