"""Every graph pass on graphs small enough to read, and what each does where it can't keep its promise."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from ztdeploy.core.errors import ModelError
from ztdeploy.host.graph import PASSES, apply_passes
from ztdeploy.host.graph.stable_names import ROOT_SCOPE, scope_name, stable_names
from ztdeploy.host.graph.tidying import check_static_shapes, clean, gather_rows

SCOPES = "pkg.torch.onnx.name_scopes"


def parse(body: str) -> ir.Model:
    """A model from ONNX's text form, shapes inferred; the first line is the graph's signature.

    The text form has no names with dots: what is written `a__b` becomes `a.b`.
    """
    proto = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : 20]>\n{body}')
    for tensor in proto.graph.initializer:
        tensor.name = tensor.name.replace("__", ".")
    for node in proto.graph.node:
        node.input[:] = [name.replace("__", ".") for name in node.input]
    return ir.serde.deserialize_model(onnx.shape_inference.infer_shapes(proto, data_prop=True))


def run(model: ir.Model, **feeds: np.ndarray) -> list[Any]:
    proto = ir.serde.serialize_model(model)
    onnx.checker.check_model(proto)
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(None, feeds))


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def scoped(node: ir.Node, *scopes: str) -> None:
    """Give a node the metadata that the exporter gives it: module paths, outermost first, then its own name."""
    node.metadata_props[SCOPES] = repr([*scopes, "its_fx_name"])
    node.metadata_props["pkg.torch.onnx.stack_trace"] = 'File "/home/somebody/model.py", line 1'


ROWS = """
rows (float[batch, 5, 4] x, int64[batch, 3, 1] i) => (float[batch, 3, 4] y)
<int64[3] shape = {1, 1, 4}>
{
  e = Expand(i, shape)
  g = GatherElements <axis = 1> (x, e)
  y = Relu(g)
}
"""


class TestGatherRows:
    FEEDS = {  # noqa: RUF012
        "x": np.arange(40, dtype=np.float32).reshape(2, 5, 4),
        "i": np.array([[[4], [0], [2]], [[1], [1], [3]]]),
    }

    def test_becomes_one_gather_nd_with_the_same_result(self) -> None:
        model = parse(ROWS)
        before = run(model, **self.FEEDS)
        gather_rows(model)
        assert ops(model) == ["GatherND", "Relu"]
        np.testing.assert_array_equal(run(model, **self.FEEDS), before)

    def test_keeps_name_type_shape_and_scope_of_what_it_replaces(self) -> None:
        model = parse(ROWS)
        old = model.graph[1]
        scoped(old, "blocks.2.prune")
        expected = (old.outputs[0].name, old.outputs[0].dtype, old.outputs[0].shape)
        gather_rows(model)
        new = model.graph[0]
        assert (new.outputs[0].name, new.outputs[0].dtype, new.outputs[0].shape) == expected
        assert "blocks.2.prune" in new.metadata_props[SCOPES]

    def test_a_gather_that_is_itself_an_output_of_the_graph(self) -> None:
        body = ROWS.replace("  y = Relu(g)\n", "").replace("g = GatherElements", "y = GatherElements")
        model = parse(body)
        before = run(model, **self.FEEDS)
        gather_rows(model)
        assert ops(model) == ["GatherND"]
        assert [value.name for value in model.graph.outputs] == ["y"]
        np.testing.assert_array_equal(run(model, **self.FEEDS), before)

    def test_an_index_that_others_use_too_stays(self) -> None:
        model = parse(
            ROWS.replace("=> (float[batch, 3, 4] y)", "=> (float[batch, 3, 4] y, int64[batch, 3, 4] e2)").replace(
                "  y = Relu", "  e2 = Identity(e)\n  y = Relu"
            )
        )
        before = run(model, **self.FEEDS)
        gather_rows(model)
        assert sorted(ops(model)) == ["Expand", "GatherND", "Identity", "Relu"]
        for ours, theirs in zip(run(model, **self.FEEDS), before, strict=True):
            np.testing.assert_array_equal(ours, theirs)

    def test_a_plain_gather_elements_is_left_alone(self) -> None:
        model = parse("""
        plain (float[batch, 5] x, int64[batch, 3] i) => (float[batch, 3] y)
        { y = GatherElements <axis = 1> (x, i) }
        """)
        gather_rows(model)
        assert ops(model) == ["GatherElements"]

    @pytest.mark.parametrize(
        "body",
        [
            pytest.param(ROWS.replace("axis = 1", "axis = 2"), id="along the last axis"),
            pytest.param(ROWS.replace("axis = 1", "axis = 0"), id="along the batch"),
            pytest.param(
                ROWS.replace("int64[batch, 3, 1] i", "int64[batch, 1, 4] i").replace("{1, 1, 4}", "{1, 3, 1}"),
                id="expanded along the tokens",
            ),
            pytest.param(
                """
                flat (float[batch, 5] x, int64[batch, 1] i) => (float[batch, 3] y)
                <int64[2] shape = {1, 3}>
                { e = Expand(i, shape)
                  y = GatherElements <axis = 1> (x, e) }
                """,
                id="of rank 2",
            ),
        ],
    )
    def test_an_expanded_index_of_another_form_fails_loudly_and_names_the_node(self, body: str) -> None:
        model = parse(body)
        gather = next(node for node in model.graph if node.op_type == "GatherElements")
        gather.name = "the_culprit"
        with pytest.raises(AssertionError, match="the_culprit"):
            gather_rows(model)

    @pytest.mark.parametrize(
        ("body", "index"),
        [
            pytest.param(
                ROWS.replace("int64[batch, 3, 1] i", "int64[1, 3, 1] i").replace("{1, 1, 4}", "{2, 3, 4}"),
                np.array([[[4], [0], [2]]]),
                id="one index for all images",
            ),
            pytest.param(
                ROWS.replace("int64[batch, 3, 1] i", "int64[batch, 1, 1] i").replace("{1, 1, 4}", "{1, 3, 4}"),
                np.array([[[4]], [[2]]]),
                id="one row several times",
            ),
            pytest.param(
                ROWS.replace("{1, 1, 4}", "{1, 1, 2}").replace("3, 4] y", "3, 2] y"), None, id="part of a row"
            ),
        ],
    )
    def test_an_expansion_that_is_more_than_whole_rows_is_not_taken_for_one(
        self, body: str, index: np.ndarray | None
    ) -> None:
        """Refusing is as good as rewriting rightly; a different result is not."""
        model = parse(body)
        feeds = {**self.FEEDS, "i": self.FEEDS["i"] if index is None else index}
        before = run(model, **feeds)
        try:
            gather_rows(model)
        except AssertionError as refusal:
            assert "not recognised" in str(refusal)  # noqa: PT017 - either outcome is right
            return
        (after,) = run(model, **feeds)
        np.testing.assert_array_equal(after, before[0])


class TestClean:
    def test_identities_repetitions_and_dead_ends_go_and_results_stay(self) -> None:
        model = parse("""
        messy (float[batch, 4] x) => (float[batch, 4] y)
        {
          same = Identity(x)
          a = Relu(same)
          b = Relu(x)
          dead = Sqrt(x)
          y = Add(a, b)
        }
        """)
        x = np.array([[-1, 2, -3, 4]], dtype=np.float32)
        before = run(model, x=x)
        clean(model)
        assert sorted(ops(model)) == ["Add", "Relu"]
        np.testing.assert_array_equal(run(model, x=x), before)

    def test_equal_operators_with_other_attributes_stay_apart(self) -> None:
        model = parse("""
        apart (float[batch, 4] x) => (float[batch, 4] y)
        {
          a = Softmax <axis = 1> (x)
          b = Softmax <axis = 0> (x)
          y = Add(a, b)
        }
        """)
        clean(model)
        assert sorted(ops(model)) == ["Add", "Softmax", "Softmax"]

    def test_weights_that_nothing_uses_go_and_so_do_unused_opsets(self) -> None:
        model = parse("""
        spare (float[batch, 2] x) => (float[batch, 2] y)
        <float[2] used = {1, 2}, float[2] spare = {3, 4}>
        { y = Add(x, used) }
        """)
        model.graph.opset_imports["pkg.torch"] = 1
        clean(model)
        assert list(model.graph.initializers) == ["used"]
        assert dict(model.graph.opset_imports) == {"": 20}

    def test_the_order_becomes_topological(self) -> None:
        model = parse("order (float[2] x) => (float[2] y)\n{ a = Relu(x)\n y = Sqrt(a) }")
        first = model.graph[0]
        model.graph.remove(first)
        model.graph.append(first)
        assert ops(model) == ["Sqrt", "Relu"]
        clean(model)
        assert ops(model) == ["Relu", "Sqrt"]

    def test_names_of_inputs_and_outputs_are_kept(self) -> None:
        model = parse("keep (float[2] x) => (float[2] y)\n{ a = Relu(x)\n y = Identity(a) }")
        clean(model)
        assert [value.name for value in (*model.graph.inputs, *model.graph.outputs)] == ["x", "y"]


class TestScopeName:
    @pytest.mark.parametrize(
        ("path", "name"),
        [
            ("", ROOT_SCOPE),
            ("head", "head"),
            ("blocks.2.prune.wpr", "blocks.2/prune/wpr"),
            ("blocks.11.mlp.fc1", "blocks.11/mlp/fc1"),
            ("a.0.1.b", "a.0.1/b"),
            ("0.a", "0/a"),
        ],
    )
    def test_digits_belong_to_what_they_count(self, path: str, name: str) -> None:
        assert scope_name(path) == name


NAMED = """
main_graph (float[batch, 4] image) => (float[batch, 3] logits)
<float[4, 3] val_7 = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, float[3] pruned__model__head__bias = {1, 2, 3},
 float[1] val_9 = {2}, float[1, 4] pruned__model__cls_token = {1, 2, 3, 4}, float[1] scale = {3}>
{
  n0 = Mul(image, scale)
  n1 = Add(n0, pruned__model__cls_token)
  n2 = MatMul(n1, val_7)
  n3 = Add(n2, pruned__model__head__bias)
  n4 = Mul(n3, val_9)
  logits = Mul(n4, val_9)
}
"""


class TestStableNames:
    @pytest.fixture
    def model(self) -> ir.Model:
        model = parse(NAMED)
        paths = ["", "pruned.model", "pruned.model.head", "pruned.model.head", "pruned.model.blocks.2.prune.wpr"]
        for node, path in zip(model.graph, [*paths, paths[-1]], strict=True):
            scoped(node, "", path)
        return model

    def test_nodes_are_named_by_module_path_and_operator(self, model: ir.Model) -> None:
        stable_names(model)
        assert [node.name for node in model.graph] == [
            "io/Mul_0",
            "io/Add_0",
            "head/MatMul_0",
            "head/Add_0",
            "blocks.2/prune/wpr/Mul_0",
            "blocks.2/prune/wpr/Mul_1",
        ]

    def test_values_are_named_after_their_nodes_but_inputs_and_outputs_keep_their_names(self, model: ir.Model) -> None:
        stable_names(model)
        assert [value.name for value in model.graph.inputs] == ["image"]
        assert [node.outputs[0].name for node in model.graph] == [
            *(node.name for node in list(model.graph)[:-1]),
            "logits",
        ]

    def test_parameters_keep_the_names_of_the_checkpoint_and_constants_get_one(self, model: ir.Model) -> None:
        stable_names(model)
        assert set(model.graph.initializers) == {
            "scale",
            "cls_token",
            "head.weight.T",
            "head.bias",
            "blocks.2/prune/wpr/const_0",
        }
        assert model.graph[3].inputs[1] is model.graph.initializers["head.bias"]

    def test_nothing_is_left_of_where_it_came_from(self, model: ir.Model) -> None:
        model.metadata_props["made by"] = "somebody"
        model.producer_name, model.producer_version, model.doc_string = "pytorch", "9.9", "made in /home/somebody"
        model.graph.doc_string = model.graph[0].doc_string = "in /home/somebody"
        model.graph[0].outputs[0].metadata_props["where"] = "/home/somebody"
        model.graph.initializers["val_7"].metadata_props["where"] = "/home/somebody"
        model.graph.inputs[0].doc_string = "/home/somebody"
        stable_names(model)
        text = ir.serde.serialize_model(model).SerializeToString()
        for word in (b"/home", b"somebody", b"pytorch", b"pkg.torch", b"its_fx_name", b"9.9", b"pruned"):
            assert word not in text, word

    def test_what_runs_is_unchanged(self, model: ir.Model) -> None:
        image = np.ones((2, 4), np.float32)
        before = run(model, image=image)
        stable_names(model)
        np.testing.assert_array_equal(run(model, image=image), before)

    def test_names_do_not_depend_on_the_names_before(self, model: ir.Model) -> None:
        other = parse(NAMED.replace("val_7", "w_123").replace("val_9", "c").replace("n0", "zzz"))
        for theirs, ours in zip(other.graph, model.graph, strict=True):
            theirs.metadata_props.update(ours.metadata_props)
        stable_names(model)
        stable_names(other)
        texts = [ir.serde.serialize_model(each).SerializeToString(deterministic=True) for each in (model, other)]
        assert texts[0] == texts[1]

    def test_parameters_that_would_share_a_name_are_told_apart(self) -> None:
        model = parse("""
        two (float[batch, 2] x) => (float[batch, 2] y)
        <float[2, 2] v1 = {1, 2, 3, 4}, float[2, 2] v2 = {5, 6, 7, 8}>
        { a = MatMul(x, v1)
          y = MatMul(a, v2) }
        """)
        for node in model.graph:
            scoped(node, "", "pruned.model.head")
        x = np.ones((1, 2), np.float32)
        before = run(model, x=x)
        stable_names(model)
        assert sorted(model.graph.initializers) == ["head.weight.T", "head.weight.T.2"]
        np.testing.assert_array_equal(run(model, x=x), before)

    def test_each_output_of_a_node_gets_a_name_but_one_that_nobody_asked_for_stays_out(self) -> None:
        model = parse("""
        top (float[batch, 4] x) => (float[batch, 2] y)
        <int64[1] k = {2}>
        { values, indices = TopK(x, k)
          y = Relu(values)
          t, nothing = Dropout(x) }
        """)
        dropout = model.graph[2]
        dropout.outputs[1].name = ""
        for node in model.graph:
            scoped(node, "", "pruned.model.blocks.0.prune.select")
        stable_names(model)
        assert [value.name for value in model.graph[0].outputs] == [
            "blocks.0/prune/select/TopK_0:0",
            "blocks.0/prune/select/TopK_0:1",
        ]
        assert not dropout.outputs[1].name, "naming an optional output asks the runtime to compute it"

    def test_a_node_without_metadata_belongs_to_the_root(self) -> None:
        model = parse("bare (float[2] x) => (float[2] y)\n{ y = Relu(x) }")
        stable_names(model)
        assert model.graph[0].name == "io/Relu_0"

    def test_two_nodes_that_would_share_a_name_fail_loudly(self) -> None:
        """Only a mistake in the counting can make them; here it forgets."""
        model = parse("clash (float[2] x) => (float[2] y)\n{ a = Relu(x)\n y = Relu(a) }")

        class Forgetful(dict[str, int]):
            def __getitem__(self, key: str) -> int:
                return 0

            def __setitem__(self, key: str, value: int) -> None:
                pass

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("ztdeploy.host.graph.stable_names.Counter", Forgetful)
            with pytest.raises(ModelError, match="share a name"):
                stable_names(model)


#: Graphs with an axis that depends on something else than the batch.
UNKNOWN_AXES = {
    "token axis": "g (float[batch, tokens] x) => (float[batch, tokens] y)\n{ y = Relu(x) }",
    "two unknown axes": "g (float[batch, n, 4] x) => (float[n, batch, 4] y)\n{ y = Transpose <perm = [1, 0, 2]> (x) }",
    "a count that is an input": "g (float[batch, 4] x, int64[1] k) => (float[batch, m] y)\n{ y, i = TopK(x, k) }",
    "a count that is data": "g (float[batch, 4] x) => (int64[2, n] y)\n{ y = NonZero(x) }",
    "data selected by data": "g (float[batch, 4] x) => (float[n] y)\n"
    "{ z = NonZero(x)\n t = Transpose(z)\n y = GatherND(x, t) }",
    "rows selected by data in a fixed batch": "g (float[4, 3] x, bool[4] c) => (float[n, 3] y)\n"
    "{ y = Compress <axis = 0> (x, c) }",
}


class TestStaticShapes:
    def test_a_batch_in_front_is_fine(self) -> None:
        check_static_shapes(parse("ok (float[batch, 4] x) => (float[batch, 4] y)\n{ y = Relu(x) }"))

    def test_so_is_a_part_in_front_of_the_batch(self) -> None:
        check_static_shapes(
            parse("qkv (float[batch, 3, 4] x) => (float[3, batch, 4] y)\n{ y = Transpose <perm = [1, 0, 2]> (x) }")
        )

    def test_shapes_are_inferred_where_they_are_missing(self) -> None:
        model = parse("ok (float[batch, 4] x) => (float[batch, 4] y)\n{ a = Relu(x)\n y = Relu(a) }")
        model.graph[0].outputs[0].shape = None
        check_static_shapes(model)
        assert model.graph[0].outputs[0].shape == ir.Shape(["batch", 4])

    @pytest.mark.parametrize("what", UNKNOWN_AXES)
    def test_an_axis_that_depends_on_anything_but_the_batch_is_refused_with_the_node(self, what: str) -> None:
        model = parse(UNKNOWN_AXES[what])
        for node in model.graph:
            node.name = f"a/{node.op_type}_0"
        with pytest.raises(ModelError, match="static shapes behind the batch axis") as caught:
            check_static_shapes(model)
        assert "node 'a/" in caught.value.given

    def test_an_unknown_rank_is_refused(self) -> None:
        model = parse(
            "g (float[batch, 4] x, int64[n] shape) => (float[batch, 4] y)\n{ r = Reshape(x, shape)\n y = Relu(r) }"
        )
        model.graph[0].name = "a/Reshape_0"
        with pytest.raises(ModelError, match="a/Reshape_0"):
            check_static_shapes(model)


class TestAll:
    def test_every_pass_of_the_table_runs_in_its_order(self) -> None:
        known = ["gather-rows", "clean", "stable-names", "live-rows", "static-shapes"]
        assert [name for name, one in PASSES.items() if one.when is None and name in known] == known
        model = parse(ROWS)
        for node in model.graph:
            scoped(node, "", "pruned.model.blocks.2.prune")
        before = run(model, **TestGatherRows.FEEDS)
        apply_passes(model)
        assert [node.name for node in model.graph] == ["blocks.2/prune/GatherND_0", "blocks.2/prune/Relu_0"]
        assert not model.graph.initializers
        np.testing.assert_array_equal(run(model, **TestGatherRows.FEEDS), before)

    def test_running_them_twice_changes_nothing_more(self) -> None:
        model = parse(ROWS)
        apply_passes(model)
        once = ir.serde.serialize_model(model).SerializeToString(deterministic=True)
        apply_passes(model)
        assert ir.serde.serialize_model(model).SerializeToString(deterministic=True) == once
