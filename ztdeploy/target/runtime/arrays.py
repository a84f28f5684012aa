"""Reading NumPy's array files from outside: plain numbers, of a size that is known before anything is read.

`numpy.load` allocates what a header asks for, follows zip members of any method and size, and gives a member that is
no array as bytes. Here a file has at most so many bytes, each array exactly as many as its header says, and a header is
what NumPy itself writes.
"""

from __future__ import annotations

import io
import math
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ztdeploy.core.errors import BundleError
from ztdeploy.core.files import read_bytes
from ztdeploy.core.text import one_line

_MAGIC = re.compile(rb"\x93NUMPY(?:\x01\x00(..)|[\x02\x03]\x00(..)\x00\x00)", re.DOTALL)
_HEADER = re.compile(
    rb"\{'descr': '([<|][biuf][0-9]{1,2})', 'fortran_order': (False|True), "
    rb"'shape': \(((?:[0-9]{1,18}, ?)*(?:[0-9]{1,18})?)\), *\} *\n"
)
#: Bytes of an array or of an archive beyond the numbers themselves.
_OVERHEAD = 4096
_PLAIN = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def read_arrays(path: Path, most_bytes: int) -> dict[str, NDArray[Any]]:
    """The arrays of an `.npz` archive by name, or that of a `.npy` file under no name; read-only.

    Args:
        most_bytes: that all numbers together may take.

    Raises:
        BundleError: the file is larger, damaged, or holds anything but arrays of numbers.
    """
    content = read_bytes(
        path,
        2 * most_bytes + 16 * _OVERHEAD,
        what="array file",
        error=BundleError,
        expected=f"arrays of at most {most_bytes} bytes",
        fix="copy or build the bundle again",
    )
    try:
        return _members(content, most_bytes) if content[:2] == b"PK" else {"": _array(content)}
    except Exception as error:  # zipfile and zlib let out anything, from struct.error to NotImplementedError
        raise BundleError(
            f"'{path}' cannot be read ({one_line(error)})", "arrays of numbers as built", "build the bundle again"
        ) from error


def _members(content: bytes, most_bytes: int) -> dict[str, NDArray[Any]]:
    arrays: dict[str, NDArray[Any]] = {}
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = archive.infolist()
        if sum(member.file_size for member in members) > most_bytes + _OVERHEAD * len(members):
            raise ValueError("its members are larger than they may be")
        for member in members:
            name = member.filename.removesuffix(".npy")
            if name == member.filename or name in arrays:
                raise ValueError(f"the member '{member.filename[:80]}' is no array, or there twice")
            if member.flag_bits & 1 or member.compress_type not in _PLAIN:
                raise ValueError(f"the member '{member.filename[:80]}' is encrypted or compressed by an unknown method")
            with archive.open(member) as file:
                raw = file.read(member.file_size + 1)  # a member that holds more than it says
            arrays[name] = _array(raw)
    return arrays


def _array(raw: bytes) -> NDArray[Any]:
    start = _MAGIC.match(raw)
    if start is None:
        raise ValueError("it does not begin as an array does")
    end = start.end() + int.from_bytes(start[1] or start[2], "little")
    header = _HEADER.fullmatch(raw, start.end(), end)
    if header is None:
        raise ValueError("its header is not that of an array of numbers")
    dtype = np.dtype(header[1].decode())
    shape = tuple(int(length) for length in header[3].split(b",") if length.strip())
    if math.prod(shape) * dtype.itemsize != len(raw) - end:
        raise ValueError("its size is not what its header says")
    return np.frombuffer(raw, dtype, offset=end).reshape(shape, order="F" if header[2] == b"True" else "C")
