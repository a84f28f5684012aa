"""Profiles as ONNX Runtime writes them, and files that are none."""

from __future__ import annotations

import json

import pytest
from helpers.errors import refused

from ztdeploy.core.errors import EnvironmentLacksError
from ztdeploy.target.backends import BACKENDS, get_backend
from ztdeploy.target.backends.base import Insight
from ztdeploy.target.backends.onnxruntime_profile import read_profile


def event(name, dur, cat="Node", **arguments):
    return {"cat": cat, "pid": 1, "tid": 1, "ts": 0, "ph": "X", "name": name, "dur": dur, "args": arguments}


def kernel(name, dur):
    shapes = {"input_type_shape": [{"float": [1, 65, 96]}, {"int64": []}], "output_type_shape": [{"float": [1, 96]}]}
    return event(f"{name}_kernel_time", dur, op_name="Add", **shapes)


RUN = event("model_run", 30, "Session")
GOOD = [
    event("model_loading_uri", 500, "Session"),
    kernel("io/Add_0", 3),
    event("io/Add_0_fence_before", 1, op_name="Add"),
    event("SequentialExecutor::Execute", 25, "Session"),
    RUN,
    kernel("io/Add_0", 4),
    RUN,
]


def written(tmp_path, content):
    path = tmp_path / "profile.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_calls_and_their_nodes(tmp_path):
    first, second = read_profile(written(tmp_path, GOOD))
    assert (first.ms, [node.ms for node in first.nodes], [node.ms for node in second.nodes]) == (0.03, [0.003], [0.004])
    (node,) = first.nodes
    assert (node.name, node.operator, node.inputs, node.outputs) == ("io/Add_0", "Add", ((1, 65, 96), ()), ((1, 96),))


def test_what_belongs_to_no_finished_call_is_left_out(tmp_path):
    assert len(read_profile(written(tmp_path, [*GOOD, kernel("io/Add_0", 5)]))) == 2
    assert read_profile(written(tmp_path, [])) == ()


@pytest.mark.parametrize(
    "content",
    [
        "",
        "no JSON",
        "[" * 100_000,
        "{}" * 2,
        "7",
        ["text"],
        [{"cat": "Node"}],
        [{**kernel("io/Add_0", 3), "args": {}}],
        [{**kernel("io/Add_0", 3), "args": None}],
        [kernel("io/Add_0", -1)],
        [kernel("io/Add_0", float("nan"))],
        [kernel("io/Add_0", "long")],
        [{**RUN, "dur": None}],
        [event("x_kernel_time", 1, op_name="Add", input_type_shape=[7])],
        [event("x_kernel_time", 1, op_name="Add", input_type_shape=[{"float": ["batch"]}])],
    ],
)
def test_a_file_that_is_none(content, tmp_path):
    path = written(tmp_path, content)
    refused(lambda: read_profile(path), "cannot be read", "trace events", kind=EnvironmentLacksError)


def test_no_file(tmp_path):
    refused(lambda: read_profile(tmp_path / "none.json"), "cannot be read", kind=EnvironmentLacksError)


def test_who_offers_insight():
    assert {name for name in BACKENDS if isinstance(get_backend(name), Insight)} == {"onnxruntime"}
