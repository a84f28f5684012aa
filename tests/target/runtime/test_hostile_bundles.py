"""Bundles whose hashes match and whose content does not: damage (4) or wrong values (5), in one line; never an answer.

Each case is a small graph, an edited engine, an array file or an edited manifest. Nothing is left behind, and nothing
asks for memory that it does not get.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import struct
import zipfile
from contextlib import suppress
from functools import partial

import numpy as np
import onnx
import pytest
from helpers import broken_graphs as graphs
from helpers.broken_graphs import FLOAT, IMAGE, LOGITS, graph, integers, outside, sized
from helpers.bundles import edit, linked_copy, rewrite
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

import ztdeploy
from ztdeploy.core.bundle import MANIFEST, WEIGHTS_FILE, read_bundle
from ztdeploy.core.errors import BundleError, EnvironmentLacksError, ParityError
from ztdeploy.target.verify import verify_bundle

TERA = 10**12
ENGINE, PRUNED = "graphs/dense.cpu.onnx", "graphs/keep-0.70.cpu.onnx"
NOTES, BLOCKS = "graphs/_notes.keep-0.70.fp32.onnx", "graphs/_blocks.fp32.onnx"
NPZ, PIXELS = "golden/keep-0.70.npz", "golden/pixels.npy"


@pytest.fixture
def victim(digits_bundle, tmp_path):
    """A copy to be damaged."""
    return linked_copy(digits_bundle, tmp_path / "bundle")


@pytest.fixture(scope="module")
def pixels(digits_bundle):
    return np.load(digits_bundle / PIXELS)


def fails(call, *kinds):
    """In one line, with an error of exactly one of these classes."""
    with pytest.raises(kinds) as caught:
        call()
    assert type(caught.value) in kinds
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 2000


def names_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def run(bundle, pixels, **options):
    with ztdeploy.load(bundle, threads=1, **options) as runner:
        return runner.infer(pixels)


def verified(bundle):
    return verify_bundle(bundle, "cpu", lambda *_: None)


# -------------------- engines

ENGINES = {
    "input of another type": graph(inputs=[("image", FLOAT, IMAGE[2])]),
    "input of int8": graph(inputs=[("image", TensorProto.INT8, IMAGE[2])]),
    "input of rank 2": graph(
        [helper.make_node("Cast", ["image"], ["logits"], to=FLOAT)],
        inputs=[("image", graphs.UINT8, (3, 7))],
        outputs=[("logits", FLOAT, (3, 7))],
        head=False,
    ),
    "input of other channels": graph(inputs=[("image", graphs.UINT8, ("batch", 32, 32, 4))]),
    "input of another size": graph(inputs=[("image", graphs.UINT8, ("batch", 224, 224, 3))]),
    "input for one image": graph(
        inputs=[("image", graphs.UINT8, (1, 32, 32, 3))], outputs=[("logits", FLOAT, (1, 10))]
    ),
    "input of another name": graph(
        inputs=[("zzz", *IMAGE[1:])], head=False, outputs=[("axes", TensorProto.INT64, (3,))]
    ),
    "two inputs": graph(inputs=[IMAGE, ("more", FLOAT, (1,))]),
    "an input of text": graph(inputs=[IMAGE, ("words", TensorProto.STRING, ("n",))]),
    "no input": graphs.graph([helper.make_node("Identity", ["row"], ["logits"])], inputs=[], head=False),
    "another output": graph(
        [helper.make_node("Add", ["column", "row"], ["scores"])], outputs=[("scores", *LOGITS[1:])]
    ),
    "one output more": graph(outputs=[LOGITS, ("column", FLOAT, ("batch", 1))]),
    "scalar": graphs.constant(np.array(1.0)),
    "a vector": graphs.constant(np.zeros(10)),
    "empty": graphs.constant(np.zeros((1, 0))),
    "no images": graphs.constant(np.zeros((0, 10))),
    "one image whatever comes": graphs.constant(np.zeros((1, 10))),
    "eleven classes": graphs.constant(np.ones((4, 11))),
    "rank 3": graphs.constant(np.ones((4, 10, 1))),
    "NaN as constant": graphs.constant(np.full((4, 10), np.nan)),
    "int64": graphs.constant(np.ones((4, 10)), TensorProto.INT64),
    "float64": graphs.constant(np.ones((4, 10)), TensorProto.DOUBLE),
    "float16": graphs.constant(np.ones((4, 10)), TensorProto.FLOAT16),
    "truth values": graphs.constant(np.ones((4, 10), bool), TensorProto.BOOL),
    "text": graph(
        [helper.make_node("Add", ["column", "row"], ["x"]), helper.make_node("Cast", ["x"], ["logits"], to=8)],
        outputs=[("logits", TensorProto.STRING, LOGITS[2])],
    ),
    "a sequence": graph(
        [helper.make_node("SequenceConstruct", ["column"], ["logits"])],
        outputs=[helper.make_tensor_sequence_value_info("logits", FLOAT, None)],
    ),
    "undeclared width, one class": graph(
        [helper.make_node("Identity", ["column"], ["logits"])], outputs=[("logits", FLOAT, ("batch", "classes"))]
    ),
    "undeclared batch, twice as many": graph(
        [helper.make_node("Add", ["column", "row"], ["x"]), helper.make_node("Concat", ["x", "x"], ["logits"], axis=0)],
        outputs=[("logits", FLOAT, ("n", 10))],
    ),
    "undeclared batch, none": graph(
        [
            helper.make_node("Add", ["column", "row"], ["x"]),
            helper.make_node("Slice", ["x", "zero", "zero"], ["logits"]),
        ],
        outputs=[("logits", FLOAT, ("n", 10))],
    ),
    "NaN": graphs.plus(np.nan),
    "infinity": graphs.plus(np.inf),
    "minus infinity": graphs.plus(-np.inf),
    "0 / 0": graph(
        [
            helper.make_node("Sub", ["row", "row"], ["nothing"]),
            helper.make_node("Mul", ["column", "nothing"], ["a"]),
            helper.make_node("Div", ["a", "nothing"], ["logits"]),
        ]
    ),
    "an unknown operator": graph([helper.make_node("Foo", ["column"], ["logits"], domain="bar")]),
    "a cycle": graph([helper.make_node("Add", ["logits", "row"], ["logits"])]),
    "nothing computes it": graph([helper.make_node("Add", ["column", "row"], ["x"])]),
    "shapes that do not fit": graph([helper.make_node("Add", ["column", "axes"], ["logits"])]),
    "a reshape that fails": graph([helper.make_node("Reshape", ["column", "axes"], ["logits"])]),
    "a gather out of range": graph(
        [
            helper.make_node("Gather", ["row", "far"], ["x"], axis=0),
            helper.make_node("Add", ["column", "x"], ["y"]),
            helper.make_node("Expand", ["y", "ten"], ["logits"]),
        ],
        constants=[integers("far", 10**9)],
    ),
}
HUGE = {
    "constant of shape": sized("ConstantOfShape", "s", constants=[integers("s", TERA, 10)]),
    "constant of many dimensions": sized("ConstantOfShape", "s", constants=[integers("s", *[1000] * 6)]),
    "expand": sized("Expand", "column", "s", constants=[integers("s", TERA, 1, 10)]),
    "expand by a node's constant": graph(
        [
            helper.make_node("Constant", [], ["s"], value_ints=[TERA, 1, 10]),
            helper.make_node("Expand", ["column", "s"], ["x"]),
            helper.make_node("ReduceSum", ["x", "zero"], ["logits"], keepdims=0),
        ]
    ),
    "tile": sized("Tile", "row", "s", constants=[integers("s", TERA)]),
    "range": sized(
        "Range",
        "a",
        "b",
        "c",
        constants=[helper.make_tensor(n, FLOAT, [], [v]) for n, v in zip("abc", (0, 1e15, 1), strict=True)],
    ),
    "range of small steps": sized(
        "Range",
        "a",
        "b",
        "c",
        constants=[helper.make_tensor(n, FLOAT, [], [v]) for n, v in zip("abc", (0, 1, 1e-20), strict=True)],
    ),
    "pad": sized("Pad", "row", "s", constants=[integers("s", 0, TERA)]),
    "one hot": sized(
        "OneHot", "axes", "s", "v", constants=[integers("s", TERA), helper.make_tensor("v", FLOAT, [2], [0, 1])]
    ),
    "resize": sized("Resize", "column", "", "", "s", constants=[integers("s", TERA, TERA)]),
    "a shape that is computed": graph(
        [
            helper.make_node("Mul", ["s", "s"], ["big"]),
            helper.make_node("ConstantOfShape", ["big"], ["x"]),
            helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
            helper.make_node("Add", ["column", "row"], ["y"]),
            helper.make_node("Add", ["y", "sum"], ["logits"]),
        ],
        constants=[integers("s", 10**6, 10**3)],
    ),
    "a constant without content": graph(
        [helper.make_node("Add", ["column", "w"], ["logits"])],
        constants=[TensorProto(name="w", data_type=FLOAT, dims=[TERA, 10])],
    ),
    "a constant of a negative length": graph(
        [helper.make_node("Add", ["column", "w"], ["logits"])],
        constants=[TensorProto(name="w", data_type=FLOAT, dims=[-1, 10])],
    ),
    "a sparse constant": graphs.sparse(),
    "a loop": graphs.inside("Loop"),
    "a branch": graphs.inside("If"),
    "a scan": graphs.inside("Scan"),
    "a function": graphs.function(),
}
OUTSIDE = {
    "above": outside("../secret"),
    "above the bundle": outside("../../secret"),
    "absolute": outside("/etc/passwd", length=10),
    "a device": outside("/dev/zero"),
    "unlisted": outside("unlisted.bin"),
    "unlisted, below": outside("below/unlisted.bin"),
    "by a detour": outside("../graphs/weights.safetensors"),
    "the manifest": outside("../manifest.json"),
    "itself": outside("dense.cpu.onnx", dims=[TERA], length=4 * TERA),
    "nothing": outside(""),
    "a folder": outside("."),
    "missing": outside("missing.bin"),
    "memory": outside("*/_ORT_MEM_ADDR_/*", offset=4096),
    "a link's name": outside("link.bin"),
    "beyond the end": outside("weights.safetensors", offset=10**15),
    "across the end": outside("weights.safetensors", offset=0, length=TERA),
    "before the beginning": outside("weights.safetensors", offset=-4),
    "a negative length": outside("weights.safetensors", length=-4),
    "terabytes": outside("weights.safetensors", dims=[TERA, 10], length=None),
    "an offset of 5000 digits": outside("weights.safetensors", offset=10**4000),
    "an offset in words": outside("weights.safetensors", offset=None).replace(b"length\x12\x0240", b"offset\x12\x02xy"),
}
RUBBISH = {
    "nothing": b"",
    "text": b"no graph",
    "JSON": b'{"graph": []}',
    "zeros": bytes(1000),
    "all ones": b"\xff" * 1000,
    "cut off": graph()[:200],
    "cut off at the end": graph()[:-1],
    "a length beyond the end": b"\x3a\xff\xff\xff\xff\x07" + graph(),
    "a group": b"\x3b" + graph(),
    "a number for a graph": b"\x38\x05",
    "an endless number": b"\x3a" + b"\x80" * 100,
    "a deep nest": b"\x3a\x7e" * 5000,
    "many fields": b"\x08\x01" * 2_000_001 + graph(),
    "no graph": helper.make_model(helper.make_graph([], "g", [], [])).SerializeToString()[:4],
}


def in_place(bundle, content):
    (bundle / "graphs" / "unlisted.bin").write_bytes(bytes(4000))
    (bundle / "graphs" / "link.bin").symlink_to("/etc/passwd")
    (bundle / "secret").write_bytes(bytes(4000))
    return rewrite(bundle, ENGINE, content)


@pytest.mark.parametrize("memory", ["speed", "shared"])
def test_a_sound_graph_of_the_tests_runs(victim, pixels, memory):
    bundle = in_place(victim, graph())
    logits = run(bundle, pixels, keep_ratio=1, memory=memory).logits
    np.testing.assert_allclose(logits[:, 3] - logits[:, 0], 3, rtol=1e-2)


@pytest.mark.parametrize("name", ENGINES)
def test_engines_that_are_not_the_variants_give_no_answer(victim, pixels, name):
    bundle = in_place(victim, ENGINES[name])
    before = names_in(bundle)
    fails(partial(run, bundle, pixels, keep_ratio=1), BundleError, ParityError)
    assert names_in(bundle) == before


@pytest.mark.parametrize("name", HUGE)
def test_engines_that_ask_for_terabytes_or_for_ever_are_refused(victim, pixels, name, capfd):
    fails(partial(run, in_place(victim, HUGE[name]), pixels, keep_ratio=1), BundleError)
    assert capfd.readouterr() == ("", ""), "the runtime's own lines would show names as the graph has them"


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("name", OUTSIDE)
def test_engines_read_nothing_that_is_not_listed(victim, pixels, name, verify):
    fails(partial(run, in_place(victim, OUTSIDE[name]), pixels, keep_ratio=1, verify=verify), BundleError)


@pytest.mark.parametrize("name", RUBBISH)
def test_engines_that_are_no_graphs_are_refused(victim, pixels, name):
    fails(partial(run, in_place(victim, RUBBISH[name]), pixels, keep_ratio=1), BundleError)


def test_weights_of_another_file_are_read_if_they_are_listed(victim, pixels):
    """And then they are compared with their hash as well."""
    content = np.arange(10, dtype=np.float32).tobytes()
    bundle = rewrite(in_place(victim, outside("mine.weights")), "graphs/mine.weights", content)
    np.testing.assert_allclose(np.diff(run(bundle, pixels, keep_ratio=1).logits), 1, atol=1e-1)
    (bundle / "graphs" / "mine.weights").write_bytes(bytes(40))
    fails(partial(run, bundle, pixels, keep_ratio=1), BundleError)


# -------------------- the same for OpenVINO, which compiles the graph itself


@pytest.fixture
def openvino_victim(victim):
    """The bundle as if its profile were OpenVINO's, which reads `graphs/x.onnx`."""
    pytest.importorskip("openvino")
    from ztdeploy.target.backends.openvino import OpenVinoBackend

    def put(content):
        engine = b'{"graph": "x.onnx", "precision": "fp32", "row_group": 0}'
        fingerprint = OpenVinoBackend().fingerprint(hashlib.sha256(content).hexdigest()).model_dump()

        def change(manifest):
            profile = manifest["profiles"]["cpu"]
            profile.update(backend=OpenVinoBackend.name, fused_attention_from=None)
            for variant in manifest["variants"]:
                variant["graphs"]["cpu"]["file"] = "graphs/x.onnx"
                variant["engines"]["cpu"].update(
                    backend=OpenVinoBackend.name, file="graphs/x.openvino.json", fingerprint=fingerprint
                )

        rewrite(in_place(victim, graph()), "graphs/x.onnx", content)
        return edit(rewrite(victim, "graphs/x.openvino.json", engine), change)

    return put


def test_a_sound_graph_of_the_tests_runs_in_openvino(openvino_victim, pixels):
    logits = run(openvino_victim(graph()), pixels, keep_ratio=1).logits
    np.testing.assert_allclose(logits[:, 3] - logits[:, 0], 3, rtol=1e-2)


#: OpenVINO gives zeros for what is out of range, and does not bound what a graph computes by itself.
_OPENVINO_TAKES = {"a gather out of range", "a shape that is computed"}
_FOR_OPENVINO = {**ENGINES, **HUGE, **OUTSIDE, **RUBBISH}


@pytest.mark.parametrize("name", sorted(_FOR_OPENVINO.keys() - _OPENVINO_TAKES))
def test_openvino_is_given_no_such_graph_either(openvino_victim, pixels, name):
    fails(partial(run, openvino_victim(_FOR_OPENVINO[name]), pixels, keep_ratio=1), BundleError, ParityError)


# -------------------- tokens

KEPT = "blocks.2/prune/kept"
CHOICES = {
    "far out of range": ([helper.make_node("Mul", ["right", "million"], [KEPT])], {}),
    "negative": ([helper.make_node("Neg", ["right"], [KEPT])], {}),
    "all the same": ([helper.make_node("Mul", ["right", "none"], [KEPT])], {}),
    "one on": ([helper.make_node("Add", ["right", "unit"], [KEPT])], {}),
    "not in order": (
        [helper.make_node("TopK", ["right", "count"], [KEPT, "places"], axis=1)],
        {},
    ),
    "int64": ([helper.make_node("Cast", ["right"], [KEPT], to=TensorProto.INT64)], {"kind": TensorProto.INT64}),
    "floats": ([helper.make_node("Cast", ["right"], [KEPT], to=FLOAT)], {"kind": FLOAT}),
    "text": ([helper.make_node("Cast", ["right"], [KEPT], to=8)], {"kind": 8}),
    "one more": ([helper.make_node("Concat", ["right", "right"], [KEPT], axis=1)], {"width": 92}),
    "another batch": ([helper.make_node("Concat", ["right", "right"], [KEPT], axis=0)], {}),
    "one less": (
        [helper.make_node("Slice", ["right", "begin", "end", "along"], [KEPT])],
        {"width": 45},
    ),
}


def with_choice(content, nodes, changes):
    model = onnx.load_from_string(graphs.changed_output(content, KEPT, nodes, **changes))
    int32 = partial(helper.make_tensor, data_type=TensorProto.INT32, dims=[1])
    model.graph.initializer.extend(
        [
            int32("million", vals=[10**6]),
            int32("none", vals=[0]),
            int32("unit", vals=[1]),
            integers("count", 45 + 1),
            integers("begin", 0),
            integers("end", 45),
            integers("along", 1),
        ]
    )
    return model.SerializeToString()


@pytest.mark.parametrize("name", CHOICES)
def test_tokens_that_cannot_stay_are_found(victim, pixels, name):
    kept = read_bundle(victim).variant(0.7).plan.layers[0].tokens_out
    content = (victim / PRUNED).read_bytes()
    nodes, changes = CHOICES[name]
    if "width" in changes:
        changes = {"width": {"one more": 2 * kept, "one less": 45}[name]}
    bundle = rewrite(victim, PRUNED, with_choice(content, nodes, changes))
    fails(partial(run, bundle, pixels, keep_ratio=0.7), BundleError, ParityError)


# -------------------- what only some verbs read


def noted(operator, *inputs):
    """A graph with notes, one of which an operator makes of zeros."""

    def make(content):
        names = (output.name for output in onnx.load_from_string(content).graph.output)
        name = next(name for name in names if name.endswith("importance"))
        zeros = helper.make_node("Sub", ["right", "right"], ["zeros"])
        return graphs.changed_output(content, name, [zeros, helper.make_node(operator, list(inputs), [name])])

    return make


def without_notes(content):
    model = onnx.load_from_string(content)
    sound = [output for output in model.graph.output if output.name.endswith(("logits", "kept"))]
    del model.graph.output[:]
    model.graph.output.extend(sound)
    return model.SerializeToString()


BLOCK_INPUT = ("tokens", FLOAT, ("batch", "tokens", 96))


def blocks(operator, output="tokens_out", **attributes):
    node = helper.make_node(operator, ["tokens"], [output], **attributes)
    return graph([node], inputs=[BLOCK_INPUT], outputs=[(output, FLOAT, None)], head=False)


PARTS = {
    "notes: no graph": ("notes", lambda _: b"no graph"),
    "notes: the dense model": ("notes", lambda _: graph()),
    "notes: infinite": ("notes", noted("Log", "zeros")),
    "notes: NaN": ("notes", noted("Div", "zeros", "zeros")),
    "notes: none": ("notes", without_notes),
    "notes: a file that is not listed": ("notes", lambda _: outside("unlisted.bin")),
    "blocks: no graph": ("blocks", lambda _: b"no graph"),
    "blocks: the dense model": ("blocks", lambda _: graph()),
    "blocks: fewer tokens": ("blocks", lambda _: blocks("ReduceSum", keepdims=1)),
    "blocks: NaN": ("blocks", lambda _: blocks("Log")),
    "blocks: another input": (
        "blocks",
        lambda _: graph(inputs=[("t", *BLOCK_INPUT[1:])], head=False, outputs=[("row", FLOAT, (10,))]),
    ),
    "blocks: a loop": ("blocks", lambda _: graphs.inside("Loop")),
    "graph: no graph": ("graph", lambda _: b"no graph"),
    "graph: a loop": ("graph", lambda _: graphs.inside("Loop")),
    "graph: a file that is not listed": ("graph", lambda _: outside("../../secret")),
    "image: no image": ("image", lambda _: b"no image"),
    "image: empty": ("image", lambda _: b""),
    "image: cut off": ("image", lambda content: content[:-30]),
    "image: another": ("image", None),
    "class names: one less": ("classes", lambda content: content.partition(b"\n")[2]),
    "class names: no text": ("classes", lambda _: b"\xff\n" * 10),
    "class names: empty": ("classes", lambda _: b""),
}


def file_of(bundle, part):
    manifest = read_bundle(bundle).manifest
    record = manifest.variants[0].graphs["cpu"]
    files = {"notes": record.notes_file, "blocks": manifest.blocks["cpu"].file, "graph": record.file}
    return {**files, "image": manifest.golden.images[0], "classes": manifest.class_names}[part]


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.short("no graph", "NaN", "a loop", "not listed", "image: no image", "image: another", "one less")
def test_verify_looks_at_all_that_any_verb_reads(victim, name):
    part, make = PARTS[name]
    file = file_of(victim, part)
    content = (victim / file).read_bytes()
    if make is None:
        content, make = (victim / read_bundle(victim).manifest.golden.images[1]).read_bytes(), bytes
    bundle = rewrite(victim, file, make(content))
    (bundle / "graphs" / "unlisted.bin").write_bytes(bytes(4000))
    fails(partial(verified, bundle), BundleError, ParityError)


# -------------------- golden arrays


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def header(text, version=b"\1\0"):
    text = text.encode().ljust(117) + b"\n"
    return b"\x93NUMPY" + version + struct.pack("<H" if version == b"\1\0" else "<I", len(text)) + text


def shaped(shape, descr="'|u1'", order="False"):
    return header(f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}")


def archive(members, method=zipfile.ZIP_DEFLATED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file:
        for name, content in members:
            file.writestr(name, content)
    return buffer.getvalue()


def patched(content, at, value, *places):
    """A zip file with a field of its first member's headers changed."""
    content = bytearray(content)
    central = content.find(b"PK\1\2")
    for place in places or (at, central + at + 2):
        content[place : place + len(value)] = value
    return bytes(content)


ARRAYS = {
    "text": lambda a: {**a, "logits": np.full((4, 10), "x")},
    "bytes": lambda a: {**a, "logits": np.full((4, 10), b"x")},
    "dates": lambda a: {**a, "logits": a["logits"].astype("M8[s]")},
    "time spans": lambda a: {**a, "logits": a["logits"].astype("m8[s]")},
    "complex": lambda a: {**a, "logits": a["logits"].astype(complex)},
    "float64": lambda a: {**a, "logits": a["logits"].astype(float)},
    "float16": lambda a: {**a, "logits": a["logits"].astype(np.float16)},
    "big-endian": lambda a: {**a, "logits": a["logits"].astype(">f4")},
    "integers": lambda a: {**a, "logits": a["logits"].astype(np.int32)},
    "records": lambda a: {**a, "logits": np.zeros((4, 10), [("a", "f4")])},
    "objects": lambda a: {**a, "logits": np.array([None, {}], dtype=object)},
    "scalar logits": lambda a: {**a, "logits": np.float32(1)},
    "empty logits": lambda a: {**a, "logits": np.zeros((0, 10), np.float32)},
    "eleven classes": lambda a: {**a, "logits": np.zeros((4, 11), np.float32)},
    "NaN": lambda a: {**a, "logits": a["logits"] * np.nan},
    "infinity": lambda a: {**a, "logits": a["logits"] + np.inf},
    "a gap of 7": lambda a: {**a, "gap.2": np.zeros(7, np.float32)},
    "a gap of text": lambda a: {**a, "gap.2": np.full(4, "x")},
    "a gap of NaN": lambda a: {**a, "gap.2": a["gap.2"] * np.nan},
    "a negative gap": lambda a: {**a, "gap.2": a["gap.2"] - 10},
    "tokens as floats": lambda a: {**a, "kept.2": a["kept.2"].astype(np.float32)},
    "tokens out of range": lambda a: {**a, "kept.2": a["kept.2"] + 1000},
    "negative tokens": lambda a: {**a, "kept.2": -a["kept.2"] - 1},
    "fewer tokens": lambda a: {**a, "kept.2": a["kept.2"][:, 1:]},
    "one less": lambda a: {name: values for name, values in a.items() if name != "kept.5"},
    "one more": lambda a: {**a, "more": np.zeros(3)},
    "another name": lambda a: {("x" if name == "logits" else name): values for name, values in a.items()},
}


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.short("NaN", "objects", "negative gap", "out of range", "fewer tokens", "one less", "another name")
def test_golden_outputs_of_another_kind_are_refused(victim, name):
    buffer = io.BytesIO()
    np.savez(buffer, **ARRAYS[name](dict(np.load(victim / NPZ))))
    fails(partial(verified, rewrite(victim, NPZ, buffer.getvalue())), BundleError, ParityError)


ONE = npy(np.zeros((4, 10), np.float32))
ARCHIVES = {
    "encrypted": patched(archive([("logits.npy", ONE)]), 6, b"\1"),
    "an unknown method": patched(archive([("logits.npy", ONE)]), 8, b"\x63"),
    "bzip2": archive([("logits.npy", ONE)], zipfile.ZIP_BZIP2),
    "lzma": archive([("logits.npy", ONE)], zipfile.ZIP_LZMA),
    "a member of bytes": archive([("logits", b"x" * 100)]),
    "a member of text": archive([("logits.npy", b"x" * 100)]),
    "an empty member": archive([("logits.npy", b"")]),
    "no member": archive([]),
    "a member above": archive([("../logits.npy", ONE)]),
    "the same twice": archive([("logits.npy", ONE), ("logits.npy", ONE)]),
    "with and without a suffix": archive([("logits.npy", ONE), ("logits", ONE)]),
    "many members": archive([(f"{index}.npy", ONE) for index in range(5000)]),
    "a bomb": archive([("logits.npy", bytes(200 * 2**20))]),
    "a bomb that says it is small": patched(archive([("logits.npy", ONE + bytes(2**20))]), 22, struct.pack("<I", 288)),
    "a member that asks for petabytes": archive([("logits.npy", shaped(f"({TERA}, 1000)", "'<f4'"))]),
    "a wrong sum": patched(archive([("logits.npy", ONE)]), 14, b"abcd"),
    "cut off": archive([("logits.npy", ONE)])[:-10],
    "a tail": archive([("logits.npy", ONE)]) + bytes(70000),
    "the end alone": b"PK\x05\x06" + bytes(18),
    "64-bit sizes of nothing": b"PK\x06\x06" + bytes(52) + b"PK\x06\x07" + bytes(16) + b"PK\x05\x06" + b"\xff" * 18,
    "the start alone": b"PK\x03\x04",
    "a pickle": b"\x80\x04N.",
    "an array": ONE,
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_archives_of_another_kind_are_refused(victim, name):
    fails(partial(verified, rewrite(victim, NPZ, ARCHIVES[name])), BundleError)


FILES = {
    "petabytes": shaped(f"({TERA}, 32, 32, 3)"),
    "beyond 64 bits": shaped(f"({10**22},)"),
    "5000 digits": shaped(f"({'9' * 5000},)"),
    "a length of minus one": shaped("(-1, 32, 32, 3)") + bytes(3072),
    "two negative lengths": shaped("(-4, -32, 32, 3)") + bytes(12288),
    "a fraction": shaped("(4.0, 32, 32, 3)") + bytes(12288),
    "a truth value": shaped("(True, 32, 32, 3)") + bytes(3072),
    "no shape": shaped("None"),
    "100 dimensions": shaped(f"({'1, ' * 100})"),
    "objects": shaped("(4, 32, 32, 3)", "'|O'") + bytes(12288),
    "an unknown type": shaped("(4, 32, 32, 3)", "'|z9'") + bytes(12288),
    "a type of gigabytes": shaped("(4,)", "'|V3072000000'"),
    "bits as one": shaped("(4, 32, 32, 3)", "'|u1, |u1'"),
    "an expression": shaped("(4, 32, 32, 3) if 1 else ()") + bytes(12288),
    "nested": header("(" * 90),
    "no dictionary": header("[1, 2, 3]"),
    "another key": header("{'descr': '|u1', 'fortran_order': False, 'shape': (4, 32, 32, 3), 'x': 1, }") + bytes(12288),
    "columns first": shaped("(4, 32, 32, 3)", order="1"),
    "an unknown version": header("{'descr': '|u1'}", b"\x09\0"),
    "a header beyond the end": b"\x93NUMPY\1\0\xff\xff{",
    "a byte less": shaped("(4, 32, 32, 3)") + bytes(12287),
    "a byte more": shaped("(4, 32, 32, 3)") + bytes(12289),
    "nothing": b"",
    "text": b"no array",
    "an archive": archive([("pixels.npy", npy(np.zeros((4, 32, 32, 3), np.uint8)))]),
    "other images": npy(np.zeros((4, 32, 32, 3), np.uint8)),
    "one image": npy(np.zeros((1, 32, 32, 3), np.uint8)),
    "no image": npy(np.zeros((0, 32, 32, 3), np.uint8)),
    "floats": npy(np.zeros((4, 32, 32, 3), np.float32)),
    "a pickle": npy(np.array([None, {}], dtype=object)),
}


@pytest.mark.parametrize("name", FILES)
def test_golden_pixels_of_another_kind_are_refused(victim, name):
    fails(partial(verified, rewrite(victim, PIXELS, FILES[name])), BundleError, ParityError)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_array_files_with_changed_bytes_are_read_or_refused(digits_bundle, tmp_path, data):
    """Whatever is changed: an array of what the header says, or an error of ours."""
    from ztdeploy.target.runtime.arrays import read_arrays

    content = bytearray((digits_bundle / data.draw(st.sampled_from([NPZ, PIXELS]))).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.one_of(st.integers(0, 200), st.integers(0, len(content) - 1)))
        content[place] = data.draw(st.integers(0, 255))
    path = tmp_path / "a.npz"
    path.write_bytes(content)
    with suppress(BundleError):
        arrays = read_arrays(path, 2**16)
        assert sum(array.nbytes for array in arrays.values()) <= 2**16
        assert all(array.dtype.kind in "biuf" for array in arrays.values())


# -------------------- manifests


def at(path, value):
    """A change of one place of a manifest; of a list's first element by 0."""

    def change(manifest):
        *above, last = path.split("/")
        place = manifest
        for part in above:
            place = place[int(part) if isinstance(place, list) else part]
        if value is GONE:
            del place[int(last) if isinstance(place, list) else last]
        else:
            place[int(last) if isinstance(place, list) else last] = value

    return change


GONE = object()
SHA = "0" * 64
_NUMBERS = {
    "preprocess/image_size": [0, -1, 10**9, 1e400, "32", "32x", "32x96", 32.5, True, None, [32], [32, 32]],
    "model/architecture/num_classes": [-1, 11, 9, 10**18, "10", 10.5],
    "model/architecture/patch_tokens": [0, -64, 65, 10**18],
    "model/architecture/prefix_tokens": [-1, 2, 10**9],
    "model/architecture/depth": [0, 2, 10**30],
    "model/architecture/embed_dim": [0, 10**12],
    "model/architecture/read_tokens": [0, -1, 10**9, 1.5, "1"],
    "model/architecture/grid": [[8, 7], [-8, -8], [0, 0], [64], 8, "8x8", [10**9, 10**9]],
    "variants/0/plan/layers/0/tokens_in": [64, 10**9, -1],
    "variants/0/plan/layers/0/tokens_out": [0, -1, 65, 10**9, 45],
    "variants/0/plan/layers/0/block": [-1, 12, 8, 10**9],
    "variants/0/plan/layers/0/prefix_tokens": [0, 2, -1],
    "variants/0/graphs/cpu/batch": [0, -1, 10**12],
    "profiles/cpu/batch/sizes": [[], [0], [10**12], [-1], "1", [1.5]],
    "profiles/cpu/threads": [-1, 10**9, "2"],
    "blocks/cpu/count": [0, -1, "3"],
    "variants/0/plan/tokens_per_block": [[], [65] * 12, [65] * 13, [65, -1]],
    "variants/0/graphs/cpu/nodes": [[], [{"block": 0, "own": 1, "pruning": 0}]],
    "variants/0/pruning_gmacs": [-1],
    "variants/0/gmacs": [0, -1, float("nan"), float("inf"), "0.1", True, None],
    "preprocess/mean": [[float("nan"), 0.5, 0.5], [0.5], "half", [0.5] * 4, [True, 0.5, 0.5]],
    "preprocess/std": [[0, 0.5, 0.5], [-1, 1, 1], [float("inf"), 1, 1]],
    "schema_version": [1, 10**30, "2", 2.5, True, None, [], -1],
}
_PATHS = [
    "../x",
    "/etc/passwd",
    "graphs/../../x",
    "",
    ".",
    "graphs",
    "graphs//x",
    "./classes.txt",
    "a\\b",
    "c:x",
    "x" * 300,
]
_PATHS += ["nowhere", "a/\x1b[31m", "a/\u202eb", 3, None, ["classes.txt"], {}]
_PLACES = ["golden/pixels", "golden/images/0", "variants/0/engines/cpu/file", "variants/0/graphs/cpu/file"]
EDITS = {f"{path} = {str(value)[:30]}": at(path, value) for path, values in _NUMBERS.items() for value in values}
EDITS |= {f"{place} = {str(path)[:30]!r}": at(place, path) for place in _PLACES for path in _PATHS}
#: The other values of one place are of the same kinds as the first; so are the other paths.
TAIL = {f"{path} = {str(value)[:30]}" for path, values in _NUMBERS.items() for value in values[1:]}
TAIL |= {f"{place} = {str(path)[:30]!r}" for place in _PLACES[1:] for path in _PATHS[1:]}
EDITS |= {
    f"no {key}": at(key, GONE) for key in ("variants", "golden", "files", "model", "schema_version", "golden/pixels")
}
EDITS |= {
    "no variant": at("variants", []),
    "no image": at("golden/images", []),
    "no profile": at("profiles", {}),
    "a key of the future": at("surprise", 1),
    "an unknown backend": at("profiles/cpu/backend", "zzz"),
    "an unknown default": at("default_variant", "zzz"),
    "a default of escapes": at("default_variant", "\x1b[31m"),
    "two variants of a name": lambda m: m["variants"].append(m["variants"][0]),
    "no dense variant": at("variants/2", GONE),
    "names that differ in case alone": lambda m: m["files"].update({"Classes.TXT": m["files"]["classes.txt"]}),
    "itself among its files": lambda m: m["files"].update({"manifest.json": {"sha256": SHA, "bytes": 1}}),
    "a hash of another form": at("files/classes.txt/sha256", "zzz"),
    "a hash of capitals": at("files/classes.txt/sha256", "A" * 64),
    "a negative size": at("files/classes.txt/bytes", -1),
    "a size as text": at("files/classes.txt/bytes", "20"),
    "files as a list": at("files", []),
    "variants as a table": at("variants", {}),
    "a profile of another name": lambda m: m["profiles"].update({"../x": m["profiles"]["cpu"]}),
    "embeddings of a classifier": at("model/output", "features"),
}
TEXTS = {
    "nothing": b"",
    "a number": b"1",
    "null": b"null",
    "text": b"manifest",
    "an array": b"[]",
    "an empty table": b"{}",
    "no end": b'{"schema_version": 3',
    "NaN": b'{"schema_version": NaN}',
    "nested arrays": b"[" * 100_000,
    "nested tables": b'{"a":' * 100_000,
    "a number of 5000 digits": b'{"schema_version": ' + b"9" * 5000 + b"}",
    "an exponent": b'{"schema_version": 1e999}',
    "not UTF-8": b'{"schema_version": "\xff"}',
    "UTF-16": '{"schema_version": 3}'.encode("utf-16"),
    "zeros": bytes(1000),
    "many values": b"[" + b"1," * 3_000_000 + b"1]",
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long) if name in TAIL else name for name in EDITS]
)
def test_manifests_that_do_not_fit_give_no_answer(victim, pixels, name):
    """Refused when it is opened, loaded, run or verified, whichever looks at it first."""
    bundle = edit(victim, EDITS[name])
    before = names_in(bundle)

    def every_way():
        run(bundle, pixels, keep_ratio=0.7)
        verified(bundle)

    fails(every_way, BundleError, ParityError, EnvironmentLacksError)
    assert names_in(bundle) == before


@pytest.mark.parametrize("name", TEXTS)
def test_what_is_no_manifest_is_refused(victim, name):
    (victim / MANIFEST).unlink()
    (victim / MANIFEST).write_bytes(TEXTS[name])
    fails(partial(read_bundle, victim), BundleError)


@pytest.mark.parametrize("key", ["schema_version", "files", "variants"])
def test_a_key_that_stands_there_twice_is_refused(victim, key):
    manifest = json.loads((victim / MANIFEST).read_text())
    twice = json.dumps(manifest)[:-1] + f', "{key}": {json.dumps(manifest[key])}}}'
    (victim / MANIFEST).unlink()
    (victim / MANIFEST).write_text(twice)
    fails(partial(read_bundle, victim), BundleError)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        pytest.param(name, what, marks=[] if name == ENGINE or what == "a folder" else pytest.mark.long)
        for name in (ENGINE, WEIGHTS_FILE, PIXELS, "classes.txt", MANIFEST)
        for what in ("a folder", "a FIFO", "a link to a device", "a link to itself", "a link to nothing")
    ],
)
def test_files_that_are_none_are_refused(victim, pixels, name, what):
    path = victim / name
    path.unlink()
    if what == "a folder":
        path.mkdir()
    elif what == "a FIFO":
        os.mkfifo(path)
    else:
        path.symlink_to({"device": "/dev/zero", "itself": path.name, "nothing": "nowhere"}[what.split()[-1]])
    fails(lambda: (run(victim, pixels, keep_ratio=1), verified(victim)), BundleError)


# -------------------- weights that all engines share


def entry(dtype="F32", shape=(10,), begin=0, end=40, name=None):
    return {name: {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}}


HEADERS = {
    "no JSON": b"x" * 100,
    "an array": b"[1, 2]",
    "nested": b"[" * 50_000,
    "NaN": b'{"NAME": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, 40]}}',
    "text for a table": b'{"NAME": "x"}',
    "an unknown type": entry("F99"),
    "another type": entry("I64", (5,)),
    "a type that NumPy lacks": entry("BF16", (20,)),
    "truth values": entry("BOOL", (40,)),
    "another shape": entry(shape=(2, 5)),
    "no dimension": entry(shape=(), end=4),
    "no value": entry(shape=(0,), end=0),
    "terabytes": entry(shape=(TERA,), end=4 * TERA),
    "an overflow": entry(shape=(2**62, 2**62)),
    "a negative length": entry(shape=(-10,)),
    "many dimensions": entry(shape=(1,) * 100, end=4),
    "beyond the end": entry(begin=10**15, end=10**15 + 40),
    "backwards": entry(begin=40, end=0),
}


@pytest.mark.parametrize("name", HEADERS)
def test_weights_with_another_header_are_refused(victim, pixels, name):
    """Of a tensor that the engine reads; the bytes behind the header are as many as before."""
    content = (victim / WEIGHTS_FILE).read_bytes()
    size = int.from_bytes(content[:8], "little")
    tensors = json.loads(content[8 : 8 + size])
    model = onnx.load(victim / ENGINE, load_external_data=False)
    used = next(one.name for one in model.graph.initializer if one.external_data and one.name in tensors)
    made = HEADERS[name]
    text = (
        json.dumps({**tensors, used: made[None]}).encode()
        if isinstance(made, dict)
        else made.replace(b"NAME", used.encode())
    )
    new = len(text).to_bytes(8, "little") + text + content[8 + size :] + bytes(10**5)
    fails(
        partial(run, rewrite(victim, WEIGHTS_FILE, new), pixels, keep_ratio=1, memory="shared"),
        BundleError,
        ParityError,
    )
