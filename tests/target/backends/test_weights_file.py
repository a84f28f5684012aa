"""The weights file: written once for all graphs, mapped in place, and believed in nothing."""

from __future__ import annotations

import json
import shutil
import struct

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from ztdeploy.core.bundle import WEIGHTS_FILE
from ztdeploy.core.errors import BundleError
from ztdeploy.host.graph.shared_weights import THRESHOLD_BYTES, SharedWeights
from ztdeploy.target.backends.onnxruntime import share_initializers
from ztdeploy.target.backends.weights_file import map_weights

SIZE = 2048  #: elements of the fp32 tensors below: 8 KiB, above the threshold
A = np.linspace(-1, 1, SIZE, dtype=np.float32)
B = np.linspace(2, 5, SIZE, dtype=np.float32)
C = np.linspace(7, 9, SIZE, dtype=np.float32)
DTYPES = {"f4": np.float32, "f2": np.float16, "i8": np.int64, "i4": np.int32, "i1": np.int8, "u1": np.uint8}


def graph(*tensors, first_value="sum.0"):
    """`y = x + t_1 + t_2 + ...` over named tensors; `first_value` is what the first sum is called."""
    x = ir.val("x", dtype=ir.DataType.FLOAT, shape=[SIZE])
    weights = [ir.val(name, const_value=ir.tensor(array, name=name)) for name, array in tensors]
    nodes, value = [], x
    for index, weight in enumerate(weights):
        nodes.append(ir.node("Add", [value, weight]))
        value = nodes[-1].outputs[0]
        value.name = first_value if index == 0 and len(weights) > 1 else f"sum.{index}"
    value.name, value.shape, value.type = "y", ir.Shape([SIZE]), ir.TensorType(ir.DataType.FLOAT)
    return ir.Model(
        ir.Graph([x], [value], nodes=nodes, initializers=weights, opset_imports={"": 20}, name="sums"), ir_version=10
    )


def written(folder, *graphs):
    """Writes graphs `0.onnx`, `1.onnx`, ... against one weights file."""
    shared = SharedWeights()
    for index, model in enumerate(graphs):
        shared.add(folder / f"{index}.onnx", model)
    shared.write(folder / "w.safetensors")
    return shared


def run(path):
    return ort.InferenceSession(str(path)).run(None, {"x": np.zeros(SIZE, np.float32)})[0]


def raw_file(folder, header, data=bytes(64)):
    """A weights file from a header (bytes, or what becomes JSON) and the tensors' bytes."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = folder / "raw.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def one_tensor(dtype="F32", shape=(1,), offsets=(0, 4)):
    return {"t": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


def refused(path, *fragments):
    with pytest.raises(BundleError) as caught:
        map_weights(path)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert all(fragment in message for fragment in ("damaged", path.name, *fragments)), message


# -------------------- mapping


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_the_safetensors_library_and_we_read_the_same(tmp_path, dtype):
    tensors = {"a": np.arange(24).reshape(2, 3, 4).astype(dtype), "b.c/d": np.ones((5,), dtype)}
    save_file(tensors, tmp_path / "w.safetensors", metadata={"format": "np"})
    mapped = map_weights(tmp_path / "w.safetensors")
    assert mapped.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert mapped[name].dtype == tensor.dtype
        np.testing.assert_array_equal(mapped[name], tensor)


def test_bool_scalar_and_empty_tensors(tmp_path):
    tensors = {"yes": np.array([True, False]), "scalar": np.array(3, np.float32), "none": np.zeros((0, 4), np.int64)}
    save_file(tensors, tmp_path / "w.safetensors")
    mapped = map_weights(tmp_path / "w.safetensors")
    for name, tensor in tensors.items():
        assert mapped[name].shape == tensor.shape
        np.testing.assert_array_equal(mapped[name], tensor)


def test_the_bundles_weights_read_the_same_with_the_library(digits_bundle):
    mapped, loaded = map_weights(digits_bundle / WEIGHTS_FILE), load_file(digits_bundle / WEIGHTS_FILE)
    assert mapped.keys() == loaded.keys()
    assert len(mapped) > 40
    for name, tensor in loaded.items():
        np.testing.assert_array_equal(mapped[name], tensor)


def test_mapped_tensors_cannot_be_written(digits_bundle):
    for tensor in map_weights(digits_bundle / WEIGHTS_FILE).values():
        assert not tensor.flags.writeable
        with pytest.raises(ValueError, match="read-only"):
            tensor[...] = 0


def test_nothing_is_copied(digits_bundle):
    tensors = map_weights(digits_bundle / WEIGHTS_FILE)
    assert not any(tensor.flags.owndata for tensor in tensors.values())


# -------------------- damage


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"{",
        b"[]",
        b"1",
        b'"text"',
        b"null",
        b"\xff\xfe\x00\x01",
        b"[" * 100_000,
        b'{"t":' * 50_000,
        {"t": None},
        {"t": []},
        {"t": {}},
        {"t": {"dtype": "F32", "shape": [1]}},
        b'{"t":{"dtype":"F32","shape":[1e999],"data_offsets":[0,4]}}',
        b'{"t":{"dtype":"F32","shape":[NaN],"data_offsets":[0,4]}}',
        b'{"t":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,4]}}',
        one_tensor(dtype=["F32"]),
        one_tensor(dtype=None),
        one_tensor(dtype="F128"),
        one_tensor(shape=None),
        one_tensor(shape=["a"]),
        one_tensor(shape=[[1]]),
        one_tensor(shape=[-1]),
        one_tensor(shape=[-1, -1]),
        one_tensor(shape=[-1, 0], offsets=[0, 0]),
        one_tensor(shape=[2**70]),
        one_tensor(shape=[2**63, 2]),
        one_tensor(shape=[2**32, 2**32], offsets=[0, 0]),
        one_tensor(shape=[2**62 + 1], offsets=[0, 4]),
        one_tensor(shape=[1] * 65),
        one_tensor(shape=[2]),
        one_tensor(dtype="F16", shape=[1]),
        one_tensor(offsets=None),
        one_tensor(offsets=[]),
        one_tensor(offsets=[0]),
        one_tensor(offsets=[0, 4, 8]),
        one_tensor(offsets=[4, 0]),
        one_tensor(offsets=[-4, 0]),
        one_tensor(offsets=[64, 68]),
        one_tensor(offsets=[0, 2**64]),
        one_tensor(offsets=[2**64, 2**64 + 4]),
    ],
    ids=lambda header: str(header)[:70],
)
def test_a_damaged_header_is_refused(tmp_path, header):
    refused(raw_file(tmp_path, header))


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9])
def test_a_file_too_short_for_a_header_is_refused(tmp_path, length):
    path = tmp_path / "w.safetensors"
    path.write_bytes(struct.pack("<Q", 2)[:length] + b"{" * max(0, length - 8))
    refused(path)


@pytest.mark.parametrize("claimed", [0, 1, 100, 2**31, 2**63, 2**64 - 1])
def test_a_header_that_claims_another_length_is_refused(tmp_path, claimed):
    path = tmp_path / "w.safetensors"
    path.write_bytes(struct.pack("<Q", claimed) + b"{}")
    refused(path)


@pytest.mark.parametrize("cut", [1, 100, 4096])
def test_a_truncated_file_is_refused(tmp_path, digits_bundle, cut):
    path = tmp_path / "w.safetensors"
    shutil.copy(digits_bundle / WEIGHTS_FILE, path)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - cut)
    refused(path, "outside the file")


def test_an_unsupported_type_is_named(tmp_path):
    refused(raw_file(tmp_path, one_tensor(dtype="F64", shape=[1], offsets=[0, 8])), "F64")


def test_overlapping_tensors_show_the_same_bytes_and_nothing_else(tmp_path):
    header = {**one_tensor(), "u": {"dtype": "U8", "shape": [4], "data_offsets": [2, 6]}}
    mapped = map_weights(raw_file(tmp_path, header, bytes(range(64))))
    assert mapped["u"].tolist() == [2, 3, 4, 5]
    assert mapped["t"].tobytes() == bytes([0, 1, 2, 3])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
NUMBERS = st.integers(-2, 70) | st.sampled_from([2**31, 2**32, 2**63 - 1, 2**63, 2**64, -(2**63)])
TENSOR = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "I64", "I8", "BOOL", "BF16", "F64", ""]) | JSON,
        "shape": st.lists(NUMBERS, max_size=4) | JSON,
        "data_offsets": st.lists(NUMBERS, min_size=2, max_size=2) | JSON,
    }
)


def mapped_or_refused(path, data):
    """Either a `BundleError`, or tensors that lie in the file and can be read to the last byte."""
    try:
        tensors = map_weights(path)
    except BundleError:
        return
    for tensor in tensors.values():
        assert tensor.nbytes <= len(data)
        assert tensor.tobytes() in data


@settings(max_examples=300, deadline=None)
@given(header=st.dictionaries(st.text(max_size=5) | st.just("__metadata__"), TENSOR | JSON, max_size=3))
def test_any_header_is_read_or_refused(tmp_path_factory, header):
    data = bytes(range(64))
    mapped_or_refused(raw_file(tmp_path_factory.getbasetemp(), header, data), data)


@settings(max_examples=300, deadline=None)
@given(content=st.binary(max_size=80), length=st.none() | st.integers(0, 80))
def test_any_bytes_are_read_or_refused(tmp_path_factory, content, length):
    path = tmp_path_factory.getbasetemp() / "fuzz.safetensors"
    path.write_bytes(content if length is None else struct.pack("<Q", length) + content)
    mapped_or_refused(path, content)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_changed_header_byte_is_read_or_refused(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "flipped.safetensors"
    save_file({"weight": np.arange(6, dtype=np.float32).reshape(2, 3), "bias": np.zeros(3, np.float16)}, path)
    content = bytearray(path.read_bytes())
    end = 8 + struct.unpack_from("<Q", content)[0]
    content[data.draw(st.integers(0, end - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    mapped_or_refused(path, bytes(content))


# -------------------- sharing


def test_equal_tensors_of_several_graphs_are_stored_once(tmp_path):
    written(tmp_path, graph(("w", A), ("v", B)), graph(("w", A)), graph(("other", B), ("third", C)))
    mapped = map_weights(tmp_path / "w.safetensors")
    assert sorted(mapped) == ["third", "v", "w"]
    assert (tmp_path / "w.safetensors").stat().st_size < 3 * A.nbytes + 1024
    for index, expected in enumerate((A + B, A, B + C)):
        np.testing.assert_allclose(run(tmp_path / f"{index}.onnx"), expected, rtol=1e-6)


def test_tensors_are_told_apart_by_shape_and_type(tmp_path):
    shared = SharedWeights()
    zeros = {"f4": np.zeros(SIZE, np.float32), "i4": np.zeros(SIZE, np.int32), "square": np.zeros((32, 64), np.float32)}
    values = [ir.val(name, const_value=ir.tensor(array, name=name)) for name, array in zeros.items()]
    model = ir.Model(ir.Graph([], [], nodes=[], initializers=values, opset_imports={"": 20}), ir_version=10)
    shared.add(tmp_path / "0.onnx", model)
    shared.write(tmp_path / "w.safetensors")
    mapped = map_weights(tmp_path / "w.safetensors")
    assert {name: (tensor.dtype, tensor.shape) for name, tensor in mapped.items()} == {
        name: (array.dtype, array.shape) for name, array in zeros.items()
    }


def test_one_name_for_two_contents_is_told_apart(tmp_path):
    written(tmp_path, graph(("w", A)), graph(("w", B)), graph(("w", C)))
    assert sorted(map_weights(tmp_path / "w.safetensors")) == ["w", "w.2", "w.3"]
    for index, expected in enumerate((A, B, C)):
        np.testing.assert_array_equal(run(tmp_path / f"{index}.onnx"), expected)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ([("a", A), ("b", B)], [("a", B), ("b", A)]),
        ([("a", A)], [("b", A), ("a", B)]),
        ([("a", A), ("a.2", B)], [("a", C), ("a.2", A)]),
        ([("a", A)], [("a", A), ("b", A)]),
        ([("a", A), ("b", A)], [("b", A)]),
        ([("a", A)], [("a", np.float32([3])), ("b", A)]),
    ],
    ids=["swapped", "taken-over", "numbered", "twice-in-one-graph", "twice-in-the-first", "taken-by-a-small-one"],
)
def test_renaming_never_mixes_tensors_up(tmp_path, first, second):
    written(tmp_path, graph(*first), graph(*second))
    for index, tensors in enumerate((first, second)):
        expected = sum(array for _, array in tensors)
        np.testing.assert_allclose(run(tmp_path / f"{index}.onnx"), expected, rtol=1e-6)


@pytest.mark.parametrize("how", ["add", "attach"])
def test_renaming_avoids_the_names_of_other_values(tmp_path, how):
    """The second graph calls A 'b', and a sum 'a', which is what the weights file calls A."""
    other = graph(("b", A), ("c", B), first_value="a")
    if how == "add":
        written(tmp_path, graph(("a", A)), other)
    else:
        written(tmp_path, graph(("a", A))).attach(tmp_path / "1.onnx", other)
    np.testing.assert_allclose(run(tmp_path / "1.onnx"), A + B, rtol=1e-6)


def test_small_tensors_stay_inside_the_graph(tmp_path):
    small, large = np.ones(THRESHOLD_BYTES // 4 - 1, np.float32), np.ones(THRESHOLD_BYTES // 4, np.float32)
    values = [ir.val(name, const_value=ir.tensor(array)) for name, array in {"small": small, "large": large}.items()]
    model = ir.Model(ir.Graph([], [], nodes=[], initializers=values, opset_imports={"": 20}), ir_version=10)
    shared = SharedWeights()
    shared.add(tmp_path / "0.onnx", model)
    shared.write(tmp_path / "w.safetensors")
    assert sorted(map_weights(tmp_path / "w.safetensors")) == ["large"]


def test_an_attached_graph_reads_what_is_shared_and_carries_the_rest(tmp_path):
    shared = written(tmp_path, graph(("w", A)))
    before = (tmp_path / "w.safetensors").read_bytes()
    shared.attach(tmp_path / "engine.onnx", graph(("fused", A), ("new", B)))
    assert (tmp_path / "w.safetensors").read_bytes() == before
    assert B.nbytes < (tmp_path / "engine.onnx").stat().st_size < B.nbytes + 2048
    np.testing.assert_allclose(run(tmp_path / "engine.onnx"), A + B, rtol=1e-6)


@pytest.mark.parametrize("own", [B, np.float32([3])], ids=["alike", "of another shape"])
def test_what_an_engine_holds_itself_is_never_taken_from_the_weights_file(tmp_path, own):
    """A runtime keeps the name of a tensor that it transposes: then two tensors of one name differ."""
    shared = written(tmp_path, graph(("w", A)))
    shared.attach(tmp_path / "attached.onnx", graph(("w", B)))
    ir.save(graph(("w", own)), tmp_path / "own.onnx")
    for name, expected in (("attached", B), ("own", own)):
        options = ort.SessionOptions()
        held = share_initializers(options, tmp_path / "w.safetensors", tmp_path / f"{name}.onnx")
        session = ort.InferenceSession(str(tmp_path / f"{name}.onnx"), options)
        (found,) = session.run(None, {"x": np.zeros(SIZE, np.float32)})
        np.testing.assert_array_equal(found, np.broadcast_to(expected, SIZE))
        del held


@pytest.mark.parametrize("dtype", [np.float16, np.int8, np.int64])
def test_what_is_written_is_what_is_mapped(tmp_path, dtype):
    array = np.arange(2 * SIZE).reshape(2, SIZE).astype(dtype)
    value = ir.val("w", const_value=ir.tensor(array, name="w"))
    model = ir.Model(ir.Graph([], [], nodes=[], initializers=[value], opset_imports={"": 20}), ir_version=10)
    shared = SharedWeights()
    shared.add(tmp_path / "0.onnx", model)
    shared.write(tmp_path / "w.safetensors")
    np.testing.assert_array_equal(map_weights(tmp_path / "w.safetensors")["w"], array)
    np.testing.assert_array_equal(load_file(tmp_path / "w.safetensors")["w"], array)


def test_the_same_graphs_give_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        written(tmp_path / name, graph(("w", A), ("v", B)), graph(("w", C), ("u", A)))
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_four_variants_cost_the_disk_of_one(tmp_path):
    rng = np.random.default_rng(0)
    weights = [(f"w.{index}", rng.normal(size=SIZE).astype(np.float32)) for index in range(40)]
    sizes = {}
    for count in (1, 4):
        folder = tmp_path / str(count)
        folder.mkdir()
        written(folder, *(graph(*weights) for _ in range(count)))
        sizes[count] = sum(path.stat().st_size for path in folder.iterdir())
    assert sizes[4] < 1.1 * sizes[1]


def test_tensors_start_on_a_cache_line(digits_bundle):
    """The largest come first, so that what is read with wide loads lies aligned."""
    content = (digits_bundle / WEIGHTS_FILE).read_bytes()
    (length,) = struct.unpack_from("<Q", content)
    entries = json.loads(content[8 : 8 + length])
    assert (8 + length) % 64 == 0
    sizes = [end - begin for begin, end in (entry["data_offsets"] for entry in entries.values())]
    assert sizes == sorted(sizes, reverse=True)
    assert sum(sizes) == len(content) - 8 - length
