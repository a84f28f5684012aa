"""Read files of `torch.save` in both formats, without trust and without running anything.

The present format is a zip archive of uncompressed records: a pickle `data.pkl`, and one record of bytes per storage.
The older format is a sequence of pickles followed by the storages. `inert_pickle` reads the pickles.
"""

from __future__ import annotations

import io
import os
import struct
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from ztdeploy.host.models.inert_pickle import Made, Named, OutsideReference, read_pickle
from ztdeploy.host.models.stored_tensors import DTYPES, StoredTensor

#: Most bytes of the pickles in a file, which take many times as much memory while they are read.
_MOST_PICKLED = 64 * 2**20
#: Most bytes of a zip directory; enough for a hundred thousand records.
_MOST_DIRECTORY = 16 * 2**20
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  #: first bytes of the older format
_ENCRYPTED = 0x1
_STORAGES = {
    **{"DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16", "BFloat16Storage": "bfloat16"},
    **{"LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8"},
    **{"ByteStorage": "uint8", "BoolStorage": "bool"},
    "UntypedStorage": "uint8",  # counted in bytes
}
#: Item sizes of storages that are skipped in the older format.
_OTHER_ITEM_SIZES = {"ComplexFloatStorage": 8, "ComplexDoubleStorage": 16, "QInt32Storage": 4}
_OTHER_ITEM_SIZES |= {"QInt8Storage": 1, "QUInt8Storage": 1}
_MOST_WRAPPERS = 4
#: Functions of torch for tensors without plain values, and the position of the sizes in their arguments.
_WITHOUT_PLAIN_VALUES: dict[str, Callable[[Any], Any]] = {
    "_rebuild_sparse_tensor": lambda arguments: next(filter(_is_size, arguments[1]), ()),
    "_rebuild_qtensor": lambda arguments: arguments[2],
    "_rebuild_meta_tensor_no_storage": lambda arguments: arguments[1],
}

#: Offset and size of each storage, by its key.
_Places = Callable[[str], tuple[int, int]]


@dataclass(frozen=True)
class Saved:
    """The saved object: dictionaries, lists and plain values; `tensor_of` recognises tensors."""

    root: Any
    names: frozenset[Named]  #: of all functions that the file asks to call
    _places: _Places

    def tensor_of(self, value: Any) -> StoredTensor | None:
        """
        Raises:
            ValueError: the tensor lies outside of the file, or has impossible sizes.
        """
        for _ in range(_MOST_WRAPPERS):
            if not (isinstance(value, Made) and isinstance(value.of, Named) and isinstance(value.arguments, tuple)):
                return None
            module, name, arguments = *value.of, value.arguments
            if (module, name) == ("torch._tensor", "_rebuild_from_type_v2") and len(arguments) >= 3:
                value = Made(arguments[0], arguments[2])
            elif module == "torch._utils" and name in ("_rebuild_parameter", "_rebuild_parameter_with_state"):
                value = arguments[0] if arguments else None
            elif module == "torch._utils" and name.startswith("_rebuild_"):
                return self._checked(name, arguments)
            else:
                return None
        return None

    def _checked(self, name: str, arguments: tuple[Any, ...]) -> StoredTensor:
        try:
            if name in _WITHOUT_PLAIN_VALUES:
                return StoredTensor(_sizes(_WITHOUT_PLAIN_VALUES[name](arguments)))
            return self._plain(name, arguments) if name.startswith("_rebuild_tensor") else StoredTensor(())
        except (AttributeError, IndexError, TypeError) as error:
            raise ValueError("a tensor that torch.save did not write") from error

    def _plain(self, name: str, arguments: tuple[Any, ...]) -> StoredTensor:
        """A tensor from `(storage, offset, size, stride, ...)`; version 3 has the type at position 6."""
        reference, offset, shape, stride = arguments[:4]
        tag, storage, key, _device, count = reference.to[:5]
        if tag != "storage" or not isinstance(key, str) or any(reference.to[5:]):
            raise ValueError("a storage of another kind")
        typed = name.endswith("_v3")
        dtype = DTYPES.get(arguments[6].name if typed else _STORAGES.get(storage.name, ""))
        if dtype is None or any(arguments[7 if typed else 6 :]):  # such as conjugation
            return StoredTensor(_sizes(shape))
        if not (type(count) is type(offset) is int and count >= 0 and offset >= 0):
            raise TypeError
        place, size = self._places(key)
        held = count * (1 if storage.name == "UntypedStorage" else dtype.itemsize)
        if held > size:
            raise ValueError("a storage that is larger than its record")
        stored = StoredTensor(_sizes(shape), dtype, stride=_sizes(stride), offset=place + offset * dtype.itemsize)
        if len(stored.stride) != len(stored.shape) or stored.offset + stored.span > place + held:
            raise ValueError("a tensor that leaves its storage")
        return stored


def _is_size(value: Any) -> bool:
    return isinstance(value, Made) and value.of == ("torch", "Size")


def _sizes(values: Any) -> tuple[int, ...]:
    """A tuple, or `torch.Size` of one."""
    if _is_size(values):
        (values,) = values.arguments
    if not isinstance(values, (tuple, list)):
        raise TypeError
    return tuple(values)


def read_torch_file(file: BinaryIO) -> Saved:
    """
    Raises:
        ValueError: the file has neither format, is damaged, or exceeds the bounds of this module.
    """
    head, size = file.read(2), os.fstat(file.fileno()).st_size
    file.seek(0)
    return _read_archive(file, size) if head == b"PK" else _read_row(file, size)


def _read_archive(file: BinaryIO, size: int) -> Saved:
    try:
        with zipfile.ZipFile(_Bounded(file)) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, struct.error, OSError, NotImplementedError) as error:
        raise ValueError("a damaged archive") from error
    records = {entry.filename: entry for entry in entries}
    pickles = [name for name in records if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(records) != len(entries) or len(pickles) != 1:
        raise ValueError("an archive that torch.save did not write")
    prefix = pickles[0].removesuffix("data.pkl")

    def place_of(record: str) -> tuple[int, int]:
        if record not in records:
            raise ValueError("a storage without a record")
        return _place(file, records[record], size)

    def content(record: str, most: int) -> bytes:
        place, length = place_of(record)
        if length > most:
            raise ValueError(f"a record of {length:,} bytes where {most:,} are plenty")
        file.seek(place)
        return file.read(length)

    if f"{prefix}byteorder" in records and content(f"{prefix}byteorder", 16) != b"little":
        raise ValueError("numbers in another byte order")
    names: set[Named] = set()
    root = read_pickle(io.BytesIO(content(pickles[0], _MOST_PICKLED)), names)
    return Saved(root, frozenset(names), lambda key: place_of(f"{prefix}data/{key}"))


def _place(file: BinaryIO, entry: zipfile.ZipInfo, size: int) -> tuple[int, int]:
    """Offset and size of a record. Compressed records are refused, as they may unpack to any size."""
    if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
        raise ValueError("compressed records, which torch.save does not write")
    file.seek(entry.header_offset)
    header = file.read(30)
    if len(header) < 30 or header[:4] != b"PK\x03\x04" or entry.flag_bits & _ENCRYPTED:
        raise ValueError("a damaged archive")
    place = entry.header_offset + 30 + sum(struct.unpack("<HH", header[26:]))
    if place + entry.file_size > size:
        raise ValueError("a record that is longer than the file")
    return place, entry.file_size


class _Bounded:
    """A file whose reads are bounded by the largest allowed zip directory."""

    def __init__(self, file: BinaryIO) -> None:
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable
        self._file = file

    def read(self, count: int = -1) -> bytes:
        if count > _MOST_DIRECTORY:
            raise ValueError(f"a directory of {count:,} bytes where {_MOST_DIRECTORY:,} are plenty")
        return self._file.read(_MOST_DIRECTORY if count < 0 else count)

    def close(self) -> None:
        """Does nothing: the caller that opened the file closes it."""


def _read_row(file: BinaryIO, size: int) -> Saved:
    """Read the older format: magic number, version, facts about the machine, the object, keys of storages; storages."""
    head = io.BytesIO(file.read(_MOST_PICKLED))
    names: set[Named] = set()
    first = read_pickle(head, names)
    if first != _MAGIC:
        return Saved(first, frozenset(names), _nowhere)
    if read_pickle(head, names) != _PROTOCOL:
        raise ValueError("another version of the format")
    facts = read_pickle(head, names)
    if not isinstance(facts, dict) or facts.get("little_endian") is not True:
        raise ValueError("numbers in another byte order")
    references: list[OutsideReference] = []
    root, keys = read_pickle(head, names, references), read_pickle(head, names)
    try:
        places = dict(_row_of_storages(file, size, head.tell(), keys, references))
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise ValueError("storages that nothing refers to") from error
    return Saved(root, frozenset(names), places.__getitem__)


def _row_of_storages(
    file: BinaryIO, size: int, place: int, keys: list[str], references: list[OutsideReference]
) -> Iterator[tuple[str, tuple[int, int]]]:
    """Read storages: the number of elements as a 64-bit integer, followed by the elements."""
    kinds = {reference.to[2]: reference.to[1].name for reference in references}
    for key in keys:
        kind = kinds[key]
        item = DTYPES[_STORAGES[kind]].itemsize if kind in _STORAGES else _OTHER_ITEM_SIZES[kind]
        file.seek(place)
        length = int.from_bytes(file.read(8), "little") * item
        yield key, (place + 8, length)
        place += 8 + length
        if place > size:
            raise ValueError("a storage that is longer than the file")


def _nowhere(_key: str) -> tuple[int, int]:
    raise ValueError("a pickle that torch.save did not write")
