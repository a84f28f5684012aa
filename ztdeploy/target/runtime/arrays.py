"""NumPy's array files, read with care: plain numbers, of a size that is known before anything is read.

`numpy.load` allocates what a header asks for, follows zip members of any method and size, and gives a member that is
no array as bytes. Here a file has at most so many bytes, and each array exactly as many as its header says.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from ztdeploy.core.errors import BundleError, OutputError
from ztdeploy.core.files import read_bytes, write
from ztdeploy.core.folders import check_file_writable
from ztdeploy.core.text import one_line

#: How a file of one array is named.
SUFFIX = ".npy"
#: Bytes of an array or of an archive beyond the numbers themselves.
_OVERHEAD = 4096
_PLAIN = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def read_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether columns come first, and type of the `.npy` array that a file begins with; its numbers come next.

    Raises:
        ValueError: it is no such file, of a version above 2.0, or without a shape.
    """
    version = npy.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"a .npy file of version {version[0]}.{version[1]}, not 1.0 or 2.0")
    shape, fortran, dtype = (npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0)(file)
    if not all(type(side) is int and side >= 0 for side in shape):
        raise ValueError("its header has no shape")
    return shape, fortran, dtype


def read_arrays(path: Path, most_bytes: int) -> dict[str, NDArray[Any]]:
    """The arrays of an `.npz` archive by name, or that of a `.npy` file under no name; read-only.

    Args:
        most_bytes: how many bytes all numbers together may take.

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
        return _members(content, most_bytes) if content[:2] == b"PK" else {"": array_in(content)}
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
                arrays[name] = array_in(file.read(member.file_size + 1))  # it may hold more than it says
    return arrays


def array_in(raw: bytes) -> NDArray[Any]:
    """The array that a `.npy` file's content is; read-only.

    Raises:
        ValueError: it is anything but an array of numbers.
    """
    file = io.BytesIO(raw)
    shape, fortran, dtype = read_header(file)
    if dtype.kind not in "biuf" or math.prod(shape) * dtype.itemsize != len(raw) - file.tell():
        raise ValueError("it holds no numbers, or not as many as its header says")
    return np.frombuffer(raw, dtype, offset=file.tell()).reshape(shape, order="F" if fortran else "C")


def check_array_path(out: Path) -> None:
    """Fail early where an array could not be written in the end.

    Raises:
        OutputError: another name than that of an array's file, or it cannot be written.
    """
    if out.suffix.lower() != SUFFIX:
        raise OutputError(f"--out '{out}'", f"the path of a {SUFFIX} file", f"give --out FILE{SUFFIX}")
    check_file_writable(out)


def write_array(out: Path, rows: Sequence[NDArray[Any]]) -> None:
    """Write arrays of one shape as one `[rows, ...]`.

    Raises:
        OutputError: it cannot be written.
    """
    file = io.BytesIO()
    np.save(file, np.stack(rows))
    write(out, file.getbuffer())
