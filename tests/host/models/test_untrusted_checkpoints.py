"""Files made to do harm, and damaged ones: each is refused in one line, within bounds, and nothing in it is run."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import socket
import struct
import sys
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.errors import refused as refused_as
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from ztdeploy.core.errors import CheckpointError
from ztdeploy.host.models.checkpoint import read_checkpoint, read_tables
from ztdeploy.host.models.inert_pickle import MOST_NAMES, MOST_OPCODES, Named, PickleError, read_pickle

refused = partial(refused_as, kind=CheckpointError)
STATE = {"w": torch.arange(6.0).reshape(2, 3), "b": torch.ones(3)}

# -------------------- pickles


def archive(path: Path, pickled: bytes, storages: dict[str, bytes] | None = None) -> Path:
    """As torch.save lays out an archive, around any pickle."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
        file.writestr("archive/data.pkl", pickled)
        file.writestr("archive/byteorder", "little")
        for key, content in (storages or {}).items():
            file.writestr(f"archive/data/{key}", content)
    return path


def tensor(
    shape: Any, stride: Any, *, offset: Any = 0, count: Any = 4, key: Any = "0", kind: str = "FloatStorage"
) -> Any:
    """What stands in a pickle for a tensor: pickled again, it says so."""
    return Call("torch._utils", "_rebuild_tensor_v2", (Storage(kind, key, count), offset, shape, stride, False, {}))


class Call:
    """Pickles as the call of anything with anything."""

    def __init__(self, module: str, name: str, arguments: tuple[Any, ...]) -> None:
        self.module, self.name, self.arguments = module, name, arguments


class Storage:
    def __init__(self, kind: str, key: Any, count: Any) -> None:
        self.kind, self.id = kind, ("storage", Call("torch", kind, ()), key, "cpu", count)


class _Pickler(pickle._Pickler):  # type: ignore[name-defined,misc]  # the one in Python, which can be told what to write
    def save(self, value: Any, save_persistent_id: bool = True) -> None:
        if isinstance(value, Storage):
            self.save(("storage", Named("torch", value.kind), *value.id[2:]))
            self.write(pickle.BINPERSID)
        elif isinstance(value, Named):
            self.write(f"c{value.module}\n{value.name}\n".encode())
        elif isinstance(value, Call):
            self.save(Named(value.module, value.name))
            self.save(value.arguments)
            self.write(pickle.REDUCE)
        else:
            super().save(value, save_persistent_id)


def pickled(value: Any, protocol: int = 2) -> bytes:
    buffer = io.BytesIO()
    _Pickler(buffer, protocol).dump(value)
    return buffer.getvalue()


IMPOSSIBLE: dict[str, Any] = {
    "repeated ten billion times": tensor((10**13,), (0,)),
    "repeated to 6 GB": tensor((1_500_000_000,), (0,)),
    "leaves its storage": tensor((5,), (1,)),
    "starts behind its storage": tensor((1,), (1,), offset=4),
    "starts before its storage": tensor((1,), (1,), offset=-1),
    "steps backwards": tensor((2,), (-1,), offset=2),
    "of a negative size": tensor((-4,), (1,)),
    "of a size beyond integers": tensor((2**70,), (1,)),
    "of a step beyond integers": tensor((2,), (2**70,)),
    "nothing, times a lot": tensor((0, 2**63), (1, 1)),
    "with fewer steps than sizes": tensor((2, 2), (1,)),
    "of 65 dimensions": tensor((1,) * 65, (1,) * 65),
    "of sizes that are text": tensor(("2",), (1,)),
    "of sizes that are fractions": tensor((2.0,), (1,)),
    "of sizes that are true": tensor((True,), (1,)),
    "without sizes": tensor(None, None),
    "at no place": tensor((4,), (1,), offset=None),
    "of a storage that is not there": tensor((4,), (1,), key="7"),
    "of a storage outside": tensor((4,), (1,), key="../data.pkl"),
    "of a storage without a name": tensor((4,), (1,), key=None),
    "of a storage that is a list": tensor((4,), (1,), key=[]),
    "of more than is stored": tensor((4,), (1,), count=5),
    "of less than nothing": tensor((4,), (1,), count=-4),
    "of a count that is a list": tensor((4,), (1,), count=[1]),
    "of an unknown storage": tensor((4,), (1,), kind="FlotStorage"),
    "of complex numbers": tensor((2,), (1,), count=2, kind="ComplexFloatStorage"),
    "of quantised numbers": tensor((4,), (1,), kind="QInt8Storage"),
    "without arguments": Call("torch._utils", "_rebuild_tensor_v2", ()),
    "of nothing": Call("torch._utils", "_rebuild_tensor_v2", (None,) * 6),
    "of a function to be": Call("torch._utils", "_rebuild_something_new", (1,)),
    "in a hundred wrappers": Call(
        "torch._utils", "_rebuild_parameter", (Call("torch._utils", "_rebuild_parameter", (3,)),)
    ),
}


@pytest.mark.parametrize("what", IMPOSSIBLE)
def test_an_impossible_tensor_is_refused_before_it_takes_memory(tmp_path, what):
    path = archive(tmp_path / "c.pth", pickled({"w": IMPOSSIBLE[what]}), {"0": bytes(16)})
    refused(lambda: read_checkpoint(path), "c.pth")


def test_a_possible_tensor_made_the_same_way_is_read(tmp_path):
    path = archive(tmp_path / "c.pth", pickled({"w": tensor((2, 2), (1, 2))}), {"0": struct.pack("<4f", 1, 2, 3, 4)})
    assert read_checkpoint(path)["w"].tolist() == [[1, 3], [2, 4]]


def nested(depth: int) -> bytes:
    return b"\x80\x02}" + b"U\x01a}" * depth + b"s" * depth + b"."


PICKLES: dict[str, bytes] = {
    "a dictionary in itself": b"\x80\x02}q\x00U\x05modelh\x00s.",
    "a list in itself": b"\x80\x02]q\x00h\x00a.",
    "dictionaries, a hundred thousand deep": nested(100_000),
    "tuples, a hundred thousand deep": b"\x80\x02N" + b"\x85" * 100_000 + b".",
    "pairs of pairs, which would hash for ever": b"\x80\x02})" + b"2\x86" * 100 + b"Ns.",
    "more steps than any network's": b"\x80\x02]" + b"N0" * MOST_OPCODES + b".",
    "more names than any trainer's": b"\x80\x02" + b"".join(b"cx\na%d\n0" % i for i in range(MOST_NAMES + 1)) + b"N.",
    "a place in the memo that would take 64 GB": b"\x80\x02}r\xff\xff\xff\xff.",
    "text longer than the file": b"\x80\x02X\xff\xff\xff\x7fabc.",
    "bytes longer than any memory": b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7fabc.",
    "a frame longer than any memory": b"\x80\x04\x95" + b"\xff" * 7 + b"\x7f}.",
    "a number of 5,000 digits": b"\x80\x02L" + b"9" * 5000 + b"L\n.",
    "a number of a megabyte": b"\x80\x02\x8b" + struct.pack("<I", 2**20) + b"\x77" * 2**20 + b".",
    "an array that would take terabytes": pickled({"w": Call("builtins", "bytearray", (10**13,))}),
    "a tensor that would take terabytes": pickled({"w": Call("torch", "FloatTensor", (10**13,))}),
    "an entry in what is no table": b"\x80\x02]NNs.",
    "half an entry": b"\x80\x02}(Nu.",
    "an attribute of nothing": b"\x80\x02}b.",
    "a mark that is not there": b"\x80\x02}u.",
    "a call without arguments": b"\x80\x02cposix\nsystem\nR.",
    "an empty stack": b"\x80\x02.",
    "without an end": b"\x80\x02}",
    "an unknown step": b"\x80\x02\xff.",
    "an extension": b"\x80\x02\x82\x01.",
    "a buffer from elsewhere": b"\x80\x05\x97.",
    "a reference in text": b"\x80\x02Pabc\n.",
    "a name that is not text": b"\x80\x04K\x01K\x02\x93.",
    "text that is not UTF-8": b"\x80\x02X\x02\x00\x00\x00\xff\xfe.",
    "no pickle": b"hello",
    "nothing": b"",
}


@pytest.mark.parametrize("what", PICKLES)
@pytest.mark.parametrize("form", ["archive", "bare"])
def test_a_hostile_pickle_is_refused(tmp_path, what, form):
    path = tmp_path / "c.pth"
    if form == "archive":
        archive(path, PICKLES[what])
    else:
        path.write_bytes(PICKLES[what])
    refused(lambda: read_checkpoint(path), "c.pth")


COMMANDS = {
    "a command": ("posix", "system", ("touch {proof}",)),
    "another name of it": ("os", "system", ("touch {proof}",)),
    "a process": ("subprocess", "call", (["touch", "{proof}"],)),
    "code": ("builtins", "exec", ("open('{proof}', 'w')",)),
    "code of old": ("__builtin__", "eval", ("open('{proof}', 'w')",)),
    "an open file": ("builtins", "open", ("{proof}", "w")),
    "an import": ("importlib", "import_module", ("antigravity",)),
    "a module's run": ("runpy", "run_path", ("{proof}",)),
    "a method of torch": ("torch.hub", "download_url_to_file", ("file:///etc/hostname", "{proof}")),
    "a method of numpy": ("numpy", "save", ("{proof}", 1)),
    "a nested pickle": ("pickle", "loads", (b"cposix\nsystem\n(U\x05touchtR.",)),
    "torch's own loader": ("torch.storage", "_load_from_bytes", (b"cposix\nsystem\n(U\x05touchtR.",)),
}


@pytest.mark.parametrize("what", COMMANDS)
@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("place", ["alone", "beside weights", "as a key", "as a type of storage"])
def test_whatever_a_pickle_would_call_is_not_called(tmp_path, what, protocol, place):
    module, name, arguments = COMMANDS[what]
    proof = tmp_path / "proof"
    call = Call(module, name, tuple(_filled(argument, proof) for argument in arguments))
    data = {
        "alone": call,
        "beside weights": {"w": tensor((4,), (1,)), "x": call},
        "as a key": Call("collections", "OrderedDict", ([[call, 1]],)),
        "as a type of storage": {"w": Call("torch._utils", "_rebuild_tensor_v2", (call, 0, (1,), (1,), False, {}))},
    }[place]
    path, before = archive(tmp_path / "c.pth", pickled(data, protocol), {"0": bytes(16)}), set(sys.modules)
    try:
        assert read_checkpoint(path).keys() == {"w"}
    except CheckpointError as error:
        assert len(str(error).splitlines()) == 1  # noqa: PT017 - either outcome is right
    assert not proof.exists()
    assert set(sys.modules) == before
    assert list(tmp_path.iterdir()) == [path]


def _filled(argument: Any, proof: Path) -> Any:
    if isinstance(argument, list):
        return [_filled(one, proof) for one in argument]
    return argument.replace("{proof}", str(proof)) if isinstance(argument, str) else argument


@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
    max_leaves=20,
), st.sampled_from([0, 1, 2, 3, 4, 5]))  # fmt: skip
@settings(max_examples=100, deadline=None)
def test_plain_data_is_what_pickle_says_it_is(data, protocol):
    names = set[Named]()
    found = read_pickle(io.BytesIO(pickle.dumps(data, protocol)), names)
    if protocol > 2 or not names:  # before, bytes are made of text by a call
        assert found == data
    assert names <= {Named("_codecs", "encode"), Named("__builtin__", "bytes")}


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_a_pickle_or_no_pickle(content):
    try:
        read_pickle(io.BytesIO(content), set())
    except PickleError as error:
        assert str(error)  # noqa: PT017 - either outcome is right


# -------------------- files


def _saved(tmp_path: Path, form: str) -> bytes:
    buffer = io.BytesIO()
    if form == "safetensors":
        save_file(STATE, tmp_path / "x")
        return (tmp_path / "x").read_bytes()
    torch.save({"state_dict": STATE, "epoch": 3}, buffer, _use_new_zipfile_serialization=form == "archive")
    return buffer.getvalue()


@pytest.mark.parametrize("form", ["archive", "legacy", "safetensors"])
def test_a_file_with_changed_bytes_is_read_or_refused(tmp_path, form):
    """Not a byte of a file is trusted: any may be changed, taken out or put in."""
    content, random_ = _saved(tmp_path, form), random.Random(1)
    path = tmp_path / ("c.safetensors" if form == "safetensors" else "c.pth")
    for _ in range(300):
        changed = bytearray(content)
        for _ in range(random_.choice((1, 1, 2, 8))):
            at = random_.randrange(len(changed))
            changed[at : at + random_.choice((0, 1, 1, 1, 9))] = random_.randbytes(random_.choice((1, 1, 1, 8)))
        path.write_bytes(changed)
        try:
            assert all(len(name) < 100 for state in read_tables(path).values() for name in state)
        except CheckpointError as error:
            assert len(str(error).splitlines()) == 1  # noqa: PT017 - either outcome is right


def _compressed(path: Path) -> None:
    _rewritten(path, lambda file, name, content: file.writestr(name, content, zipfile.ZIP_DEFLATED))


def _bomb(path: Path) -> None:
    def write(file: zipfile.ZipFile, name: str, content: bytes) -> None:
        bomb = name.endswith("data/0")
        file.writestr(name, bytes(2**26) if bomb else content, zipfile.ZIP_DEFLATED if bomb else zipfile.ZIP_STORED)

    _rewritten(path, write)


def _twice(path: Path) -> None:
    def write(file: zipfile.ZipFile, name: str, content: bytes) -> None:
        file.writestr(name, content)
        file.writestr(name.replace("data/0", "data/1"), content)

    _rewritten(path, write)


def _big_endian(path: Path) -> None:
    _rewritten(path, lambda file, name, content: file.writestr(name, b"big" if "byteorder" in name else content))


def _without(part: str) -> Callable[[Path], None]:
    def write(file: zipfile.ZipFile, name: str, content: bytes) -> None:
        if part not in name:
            file.writestr(name, content)

    return lambda path: _rewritten(path, write)


def _rewritten(path: Path, write: Callable[[zipfile.ZipFile, str, bytes], None]) -> None:
    torch.save(STATE, path)
    with zipfile.ZipFile(path) as file:
        records = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(path, "w") as file:
        for name, content in records.items():
            write(file, name, content)


def _socket(path: Path) -> None:
    folder = os.open(path.parent, os.O_RDONLY)  # the path of a socket may not be long
    try:
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(f"/proc/self/fd/{folder}/{path.name}")
    finally:
        os.close(folder)


def _circle(path: Path) -> None:
    path.symlink_to(path.name)


def _unreadable(path: Path) -> None:
    path.symlink_to("/proc/self/mem")


FILES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "compressed records": (_compressed, "compressed"),
    "a record that inflates": (_bomb, "compressed"),
    "records under one name": (_twice, "archive"),
    "numbers in the other byte order": (_big_endian, "byte order"),
    "no data.pkl": (_without("data.pkl"), "archive"),
    "no storage": (_without("data/0"), "storage"),
    "an archive of something else": (lambda path: zipfile.ZipFile(path, "w").writestr("a.txt", "b"), "archive"),
    "an empty archive": (lambda path: zipfile.ZipFile(path, "w").close(), "archive"),
    "an archive alone by its start": (lambda path: path.write_bytes(b"PK\x03\x04" + bytes(500)), "archive"),
    "a directory of 4 GB": (
        lambda path: path.write_bytes(b"PK\x05\x06" + struct.pack("<4H2LH", 0, 0, 9, 9, 2**32 - 2, 0, 0)), "archive",
    ),
    "a FIFO": (lambda path: os.mkfifo(path), "FIFO"),
    "a socket": (_socket, "socket"),
    "a folder": (lambda path: path.mkdir(), "folder"),
    "a device without an end": (lambda path: path.symlink_to("/dev/zero"), "device"),
    "a terminal": (lambda path: path.symlink_to("/dev/tty"), "c.pth"),
    "a link to nothing": (lambda path: path.symlink_to("none"), "no such file"),
    "a link to itself": (_circle, "circle"),
    "memory": (_unreadable, "can be read"),
    "a program of TorchScript": (
        lambda path: torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), path), "c.pth",
    ),
    "a model": (lambda path: torch.save({"model": torch.nn.Linear(2, 2)}, path), "nothing in it was run"),
    "tensors in a list": (lambda path: torch.save([torch.ones(2)], path), "table of tensors"),
    "tensors by number": (lambda path: torch.save({5: torch.ones(2)}, path), "table of tensors"),
    "tensors by pairs": (lambda path: torch.save({(1, 2): torch.ones(2)}, path), "table of tensors"),
    "a name of a megabyte": (lambda path: torch.save({"a" * 2**20: torch.ones(2)}, path), "long name"),
    "half bytes": (
        lambda path: torch.save({"w": torch.zeros(4, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)}, path), "'w'",
    ),
    "exponents": (lambda path: torch.save({"w": torch.zeros(4, dtype=torch.float8_e8m0fnu)}, path), "'w'"),
    "a lazy conjugate": (lambda path: torch.save({"w": torch.ones(2, dtype=torch.complex64).conj()}, path), "'w'"),
    "a nested tensor": (lambda path: torch.save({"w": torch.nested.nested_tensor([torch.ones(2)])}, path), "'w'"),
    "a sparse one by rows": (lambda path: torch.save({"w": torch.eye(3).to_sparse_csr()}, path), "'w'"),
}  # fmt: skip


@pytest.mark.parametrize("what", FILES)
def test_what_is_no_file_of_plain_tensors_is_refused(tmp_path, what):
    make, fragment = FILES[what]
    make(tmp_path / "c.pth")
    refused(lambda: read_checkpoint(tmp_path / "c.pth"), fragment, "c.pth")


def test_records_that_claim_more_than_the_file_holds_are_refused(tmp_path):
    """What torch.save does not write, and an archive's directory may still say."""
    path = archive(tmp_path / "c.pth", pickled({"w": tensor((4,), (1,))}), {"0": bytes(16)})
    content = path.read_bytes()
    for size in (17, 10**6, 2**32 - 2):
        at = content.rindex(b"PK\x01\x02")
        path.write_bytes(content[: at + 20] + struct.pack("<LL", size, size) + content[at + 28 :])
        try:
            assert read_checkpoint(path)["w"].tolist() == [0.0] * 4  # a byte more is still inside the file
        except CheckpointError as error:
            assert "longer than the file" in str(error)  # noqa: PT017 - either outcome is right


# -------------------- safetensors


def table(**changes: Any) -> dict[str, Any]:
    return {"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16], **changes}}


def safetensors(path: Path, header: Any, data: bytes = bytes(16), length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


HEADERS: dict[str, Any] = {
    "not JSON": b"{'w': 1}",
    "cut": json.dumps(table()).encode()[:-3],
    "a list": [],
    "a number": b"12",
    "of no tensor": {},
    "of metadata alone": {"__metadata__": {"format": "pt"}},
    "nested ten thousand deep": b"[" * 10_000 + b"]" * 10_000,
    "nested deep in a tensor": b'{"w": ' + b'{"a":' * 10_000 + b"1" + b"}" * 10_000 + b"}",
    "with a number of 5,000 digits": b'{"w": {"dtype": "F32", "shape": [' + b"9" * 5000 + b"]}}",
    "with NaN": b'{"w": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, 16]}}',
    "with one name twice": json.dumps(table()).encode()[:-1] + b"," + json.dumps(table()).encode()[1:],
    "that is not UTF-8": b'{"\xff\xfe": 1}',
    "with a tensor that is a list": {"w": []},
    "with a tensor that is nothing": {"w": None},
    "without a type": {"w": {"shape": [4], "data_offsets": [0, 16]}},
    "without a place": {"w": {"dtype": "F32", "shape": [4]}},
    "of half bytes": table(dtype="F4", shape=[32]),
    "of six bits": table(dtype="F6_E2M3"),
    "of exponents": table(dtype="F8_E8M0", shape=[16]),
    "of complex numbers": table(dtype="C64", shape=[2]),
    "of an unknown type": table(dtype="\x1b[31mF32"),
    "of a type that is a list": table(dtype=["F32"]),
    "of 65 dimensions": table(shape=[1] * 65),
    "of a negative size": table(shape=[-4]),
    "of two negative sizes": table(shape=[-2, -2]),
    "of a fraction": table(shape=[4.0]),
    "of text": table(shape="4"),
    "of a size beyond integers": table(shape=[2**80, 0]),
    "of too many elements": table(shape=[2**20, 2**20, 2**20]),
    "of another size than its place": table(shape=[5]),
    "outside the file": table(data_offsets=[16, 32]),
    "outside by a byte": table(data_offsets=[1, 17]),
    "before the file": table(data_offsets=[-16, 0]),
    "backwards": table(data_offsets=[16, 0]),
    "at a place that is text": table(data_offsets=["0", "16"]),
    "at a place that is true": table(data_offsets=[False, 16]),
    "at three places": table(data_offsets=[0, 16, 16]),
    "of a very long name": {"w" * 10_000: table()["w"]},
    "of very many tensors": {f"w{index}": table()["w"] for index in range(20_001)},
}  # fmt: skip


@pytest.mark.parametrize("what", HEADERS)
def test_a_header_that_cannot_be_is_refused(tmp_path, what):
    path = safetensors(tmp_path / "c.safetensors", HEADERS[what])
    message = refused(lambda: read_checkpoint(path), "c.safetensors")
    assert "\x1b" not in message


@pytest.mark.parametrize("length", [0, 1, 10**4, 2**24, 100 * 2**20, 2**63, 2**64 - 1])
def test_a_length_that_cannot_be_is_refused(tmp_path, length):
    refused(lambda: read_checkpoint(safetensors(tmp_path / "c.safetensors", table(), length=length)), "c.safetensors")


def test_tensors_that_all_lie_at_one_place_take_no_more_than_the_file(tmp_path):
    many = {f"w{i}": {"dtype": "F32", "shape": [2**20], "data_offsets": [0, 2**22]} for i in range(1000)}
    path = safetensors(tmp_path / "c.safetensors", many, bytes(2**22))
    refused(lambda: read_checkpoint(path), "would take")


def test_a_file_of_holes_is_refused_by_what_it_claims(tmp_path):
    path = safetensors(tmp_path / "c.safetensors", table(shape=[2**38], data_offsets=[0, 2**40]), b"")
    os.truncate(path, path.stat().st_size + 2**40)
    refused(lambda: read_checkpoint(path), "1.02e+03 GiB")
