"""Where a call's time goes, from hand-made accounts of a runtime: nothing is lost, nothing is in the wrong place."""

from __future__ import annotations

import pytest
from helpers.errors import refused
from hypothesis import given
from hypothesis import strategies as st

from ztdeploy.core.errors import EnvironmentLacksError
from ztdeploy.core.preprocess_spec import ImageSize
from ztdeploy.core.setting import Setting
from ztdeploy.target.backends.base import NodeRun, ProfiledCall
from ztdeploy.target.measure.operators import EXPOSED, NONE, PLAIN, UNLIKE, kind_of, place, take_apart
from ztdeploy.target.measure.sweep_report import OperatorProfile

N, ACTIVATIONS, HEADS, MATRIX = 65, (1, 65, 96), (1, 3, 65, 32), (1, 3, 65, 65)


def node(name, operator=None, ms=1.0, inputs=(ACTIVATIONS,), outputs=(ACTIVATIONS,)) -> NodeRun:
    return NodeRun(name, operator or name.split("/")[-1].split("_")[0], ms, tuple(inputs), tuple(outputs))


def plain_block(block: int, *, pruned: bool = False) -> list[NodeRun]:
    """What ONNX Runtime makes of a block, in the order in which it runs."""
    scope = f"blocks.{block}"
    nodes = [
        node(f"{scope}/norm1/LayerNormalization_0"),
        node(f"{scope}/attn/qkv/MatMul_0"),
        node("Squeeze_token_75"),
        node(f"{scope}/attn/MatMul_0/MatMulScaleFusion/", "FusedMatMul", 1.0, [HEADS, HEADS], [MATRIX]),
        node(f"{scope}/attn/Softmax_0", ms=2.0, inputs=[MATRIX], outputs=[MATRIX]),
        node(f"{scope}/attn/MatMul_1", ms=1.0, inputs=[MATRIX, HEADS], outputs=[HEADS]),
        node(f"{scope}/attn/proj/MatMul_0"),
        node(f"{scope}/Add_0"),
        node(f"{scope}/mlp/fc1/MatMul_0", inputs=[ACTIVATIONS, (96, 384)]),
        node("BiasGelu_token_192", "BiasGelu"),
        node(f"{scope}/mlp/fc2/MatMul_0"),
    ]
    reader = node(f"{scope}/prune/wpr/MatMul_0", ms=5.0, inputs=[(1, 1, 1, N), MATRIX], outputs=[(1, 3, 1, N)])
    own = [reader, node("Squeeze_3", "Squeeze", 7.0), node(f"{scope}/prune/keep/TopK_0", ms=3.0)]
    return nodes + own if pruned else nodes


def fused_block(block: int) -> list[NodeRun]:
    nodes = plain_block(block)
    return [*nodes[:3], node(f"blocks.{block}/attn/MultiHeadAttention_0"), *nodes[6:]]


def around(nodes: list[NodeRun]) -> list[NodeRun]:
    first = [node("io/Cast_0"), node("patch_embed/proj/Conv_0_nchwc", "Conv"), node("ReorderOutput")]
    return [*first, node("io/Add_1"), *nodes, node("norm/LayerNormalization_0"), node("head/Gemm_0"), node("Strange_9")]


def accounts(nodes: list[NodeRun], calls: int = 3, over: float = 0.5):
    return taken_apart([ProfiledCall(sum(one.ms for one in nodes) + over, tuple(nodes))] * calls)


def taken_apart(calls: list[ProfiledCall]) -> OperatorProfile:
    return take_apart(calls, "dense", Setting(ImageSize(32, 32), 1, 1))


def parts(nodes: list[NodeRun]) -> dict[tuple[int | None, str], float]:
    return {(part.block, part.kind): part.ms for part in accounts(nodes).parts}


def test_every_node_is_where_it_belongs():
    found = parts(around([*plain_block(0), *plain_block(1, pruned=True)]))
    own = {"linear": 4, "attention": 4, "norm": 1, "activation": 1, "elementwise": 1, "data movement": 1}
    expected: dict[tuple[int | None, str], float] = {(block, kind): ms for block in (0, 1) for kind, ms in own.items()}
    expected |= {(1, "pruning"): 15}
    expected |= {(None, "linear"): 2, (None, "norm"): 1, (None, "data movement"): 2, (None, "elementwise"): 1}
    assert found == expected | {(None, "other"): 1}


def test_parts_and_operators_are_in_order():
    found = accounts(around(plain_block(0)))
    assert [part.block for part in found.parts] == [0] * 6 + [None] * 5
    assert [part.kind for part in found.parts[:2]] == ["attention", "linear"]
    (first, second, *_) = found.operators
    assert (first.operator, first.count, first.ms) == ("MatMul", 5, 5.0)
    assert second.ms >= found.operators[2].ms


def test_medians_over_calls_and_the_time_between():
    times = [(1.0, 10.0, 0.5), (2.0, 30.0, 0.7), (9.0, 20.0, 0.6)]
    calls = [
        ProfiledCall(first + second + over, (node("io/Add_0", ms=first), node("blocks.0/Add_0", ms=second)))
        for first, second, over in times
    ]
    found = taken_apart(calls)
    assert [(part.block, part.ms) for part in found.parts] == [(0, 20.0), (None, 2.0)]
    assert found.between_ms == pytest.approx(0.6)
    assert found.call_ms == pytest.approx(22.6)
    assert found.calls == 3


def test_a_call_that_is_shorter_than_its_nodes_has_nothing_between():
    assert accounts([node("io/Add_0", ms=3.0)], over=-0.001).between_ms == 0


names = st.sampled_from(["blocks.0/attn/X", "blocks.0/prune/X", "blocks.11/Y", "io/Z", "Fused", "blocks.x/Q", "blocks"])


@given(st.lists(st.tuples(names, st.sampled_from(["MatMul", "Add", "New"]), st.integers(0, 10**6)), min_size=1))
def test_nothing_is_lost(listed):
    nodes = [node(name, operator, micros / 1000) for name, operator, micros in listed]
    found, total = accounts(nodes, over=0.25), sum(one.ms for one in nodes)
    assert sum(part.ms for part in found.parts) == pytest.approx(total)
    assert sum(one.ms for one in found.operators) == pytest.approx(total)
    assert sum(one.count for one in found.operators) == len(nodes)
    assert found.call_ms == pytest.approx(total + 0.25)
    assert len({(part.block, part.kind) for part in found.parts}) == len(found.parts)


def test_a_node_without_a_place_goes_with_the_next_and_the_last_one_with_the_one_before():
    runs = [node("A"), node("blocks.3/prune/X"), node("B"), node("blocks.4/Y"), node("C"), node("head/Z"), node("D")]
    found = place(runs, [1.0] * len(runs))
    assert [one.block for one in found] == [3, 3, 4, 4, None, None, None]
    assert [one.pruning for one in found] == [True, True, False, False, False, False, False]
    assert [one.block for one in place([node("A"), node("B")], [1.0, 1.0])] == [None, None]


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        ([ACTIVATIONS], "linear"),
        ([ACTIVATIONS, (96, 288)], "linear"),
        ([(1, 96), (96, 10)], "linear"),
        ([HEADS, HEADS], "attention"),
        ([ACTIVATIONS, ACTIVATIONS], "attention"),
        ([], "linear"),
    ],
)
def test_a_product_is_attention_where_both_sides_are_computed(inputs, expected):
    assert kind_of(node("blocks.0/attn/MatMul_0", inputs=inputs)) == expected


@pytest.mark.parametrize("calls", [[], [ProfiledCall(1.0, ())]])
def test_a_profile_without_nodes(calls):
    refused(lambda: taken_apart(calls), "calls with", kind=EnvironmentLacksError)


def test_calls_that_differ():
    calls = [ProfiledCall(1.0, (node("io/Add_0"),)), ProfiledCall(1.0, (node("io/Add_1"),))]
    refused(lambda: taken_apart(calls), "the same nodes in every call", kind=EnvironmentLacksError)


# How attention is computed.


def check(nodes):
    return {one.block: (one.fused, one.operators, one.reason) for one in accounts(around(nodes)).attention}


PLAIN_OPERATORS = ("FusedMatMul", "Softmax", "MatMul")


def test_plain_everywhere():
    found = check([*plain_block(0), *plain_block(1, pruned=True)])
    assert found == {0: (False, PLAIN_OPERATORS, PLAIN), 1: (False, PLAIN_OPERATORS, EXPOSED)}


def test_fused_but_for_one_that_a_pruning_layer_reads_and_one_that_nobody_knows_why():
    found = check([*fused_block(0), *plain_block(1, pruned=True), *plain_block(2)])
    assert found[0] == (True, ("MultiHeadAttention",), "")
    assert [reason for _, _, reason in found.values()] == ["", EXPOSED, UNLIKE]


def test_a_pruning_layer_that_reads_only_tokens_is_no_reason():
    slicing = node("blocks.0/prune/GatherND_0", inputs=[ACTIVATIONS, (1, 45, 1)])
    assert check([*plain_block(0), slicing])[0][2] == PLAIN


def test_a_block_without_attention():
    assert check([node("blocks.0/mlp/fc1/MatMul_0")]) == {0: (False, (), NONE)}
