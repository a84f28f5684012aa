"""Graphs with notes: what they note is what an independent computation finds, and what ships does not change."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from helpers import reference
from helpers.models import PREPROCESS, pixels, pruned, variant

from ztdeploy.host.export import Deployable, export_onnx
from ztdeploy.host.graph import GraphSpec, specialise
from ztdeploy.host.graph.parts import notes_of, without_notes
from ztdeploy.host.pruning.layer import BlockTaps
from ztdeploy.host.pruning.pruned_model import PrunedModel

SPEC = GraphSpec(20, "uint8", None)
#: The notes that a method leaves.
METHODS = {
    "zero-tprune": {"importance", "rank", "survivors", "group", "partner", "similarity"},
    "tome": {"group", "partner", "similarity"},
    "ats": {"importance"},
    "evit": {"importance"},
}


def content(model: ir.Model) -> bytes:
    return ir.serde.serialize_model(model).SerializeToString(deterministic=True)


def run(model: ir.Model, images: torch.Tensor) -> dict[str, np.ndarray]:
    session = ort.InferenceSession(content(model), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"image": images.numpy()}), strict=True))


def first_taps(module: PrunedModel, images: torch.Tensor) -> BlockTaps:
    """What the first pruning layer is given."""
    seen = []
    hook = module.layers[0].register_forward_pre_hook(lambda _layer, given: seen.append(given[1]))
    with torch.no_grad():
        module.noted(Deployable(module, PREPROCESS, "uint8").normalise(images))
    hook.remove()
    return seen[0]


@pytest.mark.parametrize("method", METHODS)
def test_notes_are_outputs_and_nothing_else_changes(method: str) -> None:
    wanted, images = METHODS[method], pixels(3)
    with pruned(variant("class-token"), method) as module:
        noted, plain = export_onnx(module, PREPROCESS, SPEC, noted=True), export_onnx(module, PREPROCESS, SPEC)
        with torch.no_grad():
            outputs, eager = module.noted(Deployable(module, PREPROCESS, "uint8").normalise(images))
        blocks = [layer.block for layer in module.token_plan.layers]
    assert notes_of(plain) == []
    assert set(notes_of(noted)) == {f"blocks.{block}/prune/{note}" for block in blocks for note in wanted}
    assert content(without_notes(noted)) == content(plain), "what ships, names and all"
    found = run(noted, images)
    np.testing.assert_allclose(found["logits"], outputs[0], atol=1e-3)
    for name, values in eager.items():
        np.testing.assert_allclose(found[name], values.numpy(), rtol=2e-3, atol=1e-6, err_msg=name)


def test_against_the_specification() -> None:
    images = pixels(4, seed=5)
    with pruned(variant("registers"), "zero-tprune") as module:
        plan = module.token_plan.layers[0]
        taps = first_taps(module, images)
        found = run(export_onnx(module, PREPROCESS, SPEC, noted=True), images)
    assert taps.attention is not None
    assert taps.keys is not None
    notes = {name.rsplit("/", 1)[1]: values for name, values in found.items() if f"blocks.{plan.block}/" in name}
    for image in range(4):
        attention, keys = (taken[image].double().numpy() for taken in (taps.attention, taps.keys))
        decision = reference.zero_tprune(
            attention,
            keys,
            prefix=plan.prefix_tokens,
            class_token=plan.class_token,
            keep=plan.tokens_out,
            similarity_drop=plan.similarity_drop,
            iterations=plan.iterations,
        )
        assert np.flatnonzero(notes["survivors"][image]).tolist() == decision.survivors
        group_a, group_b = reference.groups(decision.rank, plan.prefix_tokens)
        assert notes["group"][image].tolist() == group_a
        feature = reference.key_features(keys)
        for token, partner, similarity in zip(
            group_a, notes["partner"][image], notes["similarity"][image], strict=True
        ):
            cosines = {other: reference.cosine(feature[token], feature[other]) for other in group_b}
            assert int(partner) in group_b
            assert max(cosines.values()) - cosines[int(partner)] < 1e-5
            assert abs(max(cosines.values()) - similarity) < 1e-5
        for note, expected in (("rank", decision.rank), ("importance", decision.scores)):
            actual = np.sqrt(notes[note][image].astype(float))
            np.testing.assert_allclose(actual / actual.sum(), expected / expected.sum(), rtol=1e-3, atol=1e-6)


def test_a_specialised_graph_keeps_its_notes() -> None:
    with pruned(variant("class-token")) as module:
        traced = export_onnx(module, PREPROCESS, SPEC, noted=True)
    half = specialise(traced, GraphSpec(20, "uint8", None, "fp16"))
    assert notes_of(half) == notes_of(traced)
    kinds = {output.dtype for output in half.graph.outputs if output.name in notes_of(half)}
    assert kinds == {ir.DataType.FLOAT, ir.DataType.INT64}
    plain = without_notes(half)
    assert [output.name for output in plain.graph.outputs] == ["logits", "blocks.1/prune/kept", "blocks.2/prune/kept"]
    assert len(list(plain.graph)) < len(list(half.graph))
