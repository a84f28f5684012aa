"""The store of traces: what comes back, what is shared, and what is never trusted."""

from __future__ import annotations

import hashlib
import io
import json

import numpy as np
import onnx_ir as ir
import pytest
from helpers.errors import refused
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ztdeploy.core.errors import OutputError
from ztdeploy.host.traces import Trace, TraceStore

KEY = hashlib.sha256(b"a key").hexdigest()


def graph(*, first: int = 0, dtype=np.float32) -> ir.Model:
    """Two large initialisers, one of which depends on `first`, and a small one."""
    arrays = {
        "shared": np.arange(2000, dtype=dtype).reshape(20, 100),
        "own": np.arange(first, first + 2000, dtype=dtype).reshape(100, 20),
        "small": np.ones(3, dtype=dtype),
    }
    values = [
        ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
                 const_value=ir.Tensor(array, name=name))
        for name, array in arrays.items()
    ]  # fmt: skip
    node = ir.Node("", "MatMul", values[:2], name="blocks.0/product")
    return ir.Model(
        ir.Graph([], node.outputs, nodes=[node], initializers=values, opset_imports={"": 20}), ir_version=10
    )


def trace(**options) -> Trace:
    reference = {"logits": np.linspace(0, 1, 10, dtype=np.float32), "kept.2": np.arange(6, dtype=np.int32)}
    return Trace(graph(**options), reference)


def as_bytes(model: ir.Model) -> bytes:
    return ir.serde.serialize_model(model).SerializeToString(deterministic=True)


def same(one: Trace, other: Trace) -> bool:
    arrays = one.reference.keys() == other.reference.keys() and all(
        np.array_equal(one.reference[name], other.reference[name])
        and one.reference[name].dtype == other.reference[name].dtype
        for name in one.reference
    )
    return arrays and as_bytes(one.graph) == as_bytes(other.graph)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "deep" / "traces"


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int64])
def test_what_is_written_comes_back(dtype, folder):
    made = trace(dtype=dtype)
    before = as_bytes(made.graph)
    TraceStore(folder).write(KEY, made)
    assert as_bytes(made.graph) == before, "writing changes nothing"
    found = TraceStore(folder).read(KEY)
    assert same(found, made)
    assert TraceStore(folder).read(KEY[::-1]) is None


def test_variants_share_weights(folder):
    store = TraceStore(folder)
    for variant in range(10):
        store.write(f"{variant:064x}", trace(first=variant))
    large = [path for path in folder.iterdir() if path.stat().st_size == 8000]
    assert len(large) == 10, "own weights of nine, the shared ones, which are also those of the first"
    assert all(hashlib.sha256(path.read_bytes()).hexdigest() == path.name for path in large)
    again = TraceStore(folder)
    assert all(same(again.read(f"{variant:064x}"), trace(first=variant)) for variant in range(10))


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def pick(kind):
    """One of the files of a trace."""

    def find(folder):
        record = json.loads((folder / f"{KEY}.json").read_text())
        if kind == "record":
            return folder / f"{KEY}.json"
        if kind in record:
            return folder / record[kind]
        return next(path for path in folder.iterdir() if path.stat().st_size == 8000)

    return find


@pytest.mark.parametrize("kind", ["graph", "reference", "weights", "record"])
@pytest.mark.parametrize("damage", [cut, flip, lambda path: path.unlink(), lambda path: path.write_bytes(b"")])
def test_what_is_damaged_counts_as_none_and_is_made_whole_again(damage, kind, folder):
    TraceStore(folder).write(KEY, trace())
    damage(pick(kind)(folder))
    found = TraceStore(folder).read(KEY)
    assert found is None or (kind == "record" and same(found, trace())), "a record's flipped bit can be in a blank"
    TraceStore(folder).write(KEY, trace())
    assert same(TraceStore(folder).read(KEY), trace())


@pytest.mark.parametrize(
    "record",
    [
        "[]",
        "{}",
        '{"graph": "../../secret", "reference": "../../secret"}',
        json.dumps({"graph": KEY, "reference": KEY}),
        json.dumps({"graph": KEY, "reference": KEY, "code": "import os"}),
    ],
)
def test_records_that_are_none(record, folder):
    store = TraceStore(folder)
    (folder / f"{KEY}.json").write_text(record)
    assert store.read(KEY) is None


def put(folder, content: bytes) -> str:
    name = hashlib.sha256(content).hexdigest()
    (folder / name).write_bytes(content)
    return name


def test_nothing_outside_the_folder_is_read(folder):
    """A graph whose external data leads elsewhere, under a name that is right."""
    store = TraceStore(folder)
    secret = folder.parent / "secret"
    secret.write_bytes(bytes(8000))
    model = graph()
    model.graph.initializers["own"].const_value = ir.ExternalTensor(
        "../secret", 0, 8000, ir.DataType.FLOAT, shape=ir.Shape([100, 20]), name="own"
    )
    TraceStore(folder).write(KEY, trace())
    record = json.loads((folder / f"{KEY}.json").read_text())
    (folder / f"{KEY}.json").write_text(json.dumps({**record, "graph": put(folder, as_bytes(model))}))
    assert store.read(KEY) is None


def test_no_pickle(folder):
    store = TraceStore(folder)
    store.write(KEY, trace())
    pickled = io.BytesIO()
    np.savez(pickled, logits=np.array([{"code": 1}], dtype=object))
    record = json.loads((folder / f"{KEY}.json").read_text())
    (folder / f"{KEY}.json").write_text(json.dumps({**record, "reference": put(folder, pickled.getvalue())}))
    assert store.read(KEY) is None


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=200))
def test_any_bytes_for_a_graph(content, folder):
    """Whatever is in there under a right name, it is a trace or none."""
    store = TraceStore(folder)
    store.write(KEY, trace())
    record = json.loads((folder / f"{KEY}.json").read_text())
    (folder / f"{KEY}.json").write_text(json.dumps({**record, "graph": put(folder, content)}))
    found = store.read(KEY)
    assert found is None or isinstance(found, Trace)


def test_two_at_once(folder):
    """Neither disturbs the other; what one has written, the other finds."""
    one, other = TraceStore(folder), TraceStore(folder)
    one.write(KEY, trace())
    other.write(KEY, trace())
    other.write(KEY[::-1], trace(first=7))
    assert same(one.read(KEY[::-1]), trace(first=7))
    assert not list(folder.glob(".*"))


def test_a_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    refused(lambda: TraceStore(tmp_path / "file" / "traces"), "the cache", "--cache", kind=OutputError)


def test_ranges_are_measured_once_and_again_where_they_are_damaged(folder):
    calls = []

    def measure():
        calls.append(1)
        return {"a": (-1.5, 2.25)}

    for _ in range(2):
        assert TraceStore(folder).ranges(KEY, measure) == {"a": (-1.5, 2.25)}
    assert len(calls) == 1
    TraceStore(folder).ranges(KEY[::-1], measure)
    assert len(calls) == 2
    for damage in ("{", '{"a": [1]}', '{"a": [0, NaN]}'):
        (folder / f"{KEY}.ranges.json").write_text(damage)
        assert TraceStore(folder).ranges(KEY, measure) == {"a": (-1.5, 2.25)}
    assert len(calls) == 5
