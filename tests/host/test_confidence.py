"""How sure a model is: of vectors by what pruning layers lose, the same in PyTorch, in graphs and in their tails."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.models import IMAGE_SIZE, PREPROCESS, layer_plan, loaded, pixels, schedule, variant
from helpers.sessions import run_graph
from torch import Tensor

from ztdeploy.core.keep_ratio import default_schedule
from ztdeploy.core.plan import Variant
from ztdeploy.core.preprocess_spec import Output
from ztdeploy.core.schedule import LayerSpec
from ztdeploy.host.confidence import Closeness, Margin, confidence_of
from ztdeploy.host.export import Deployable, export_onnx
from ztdeploy.host.graph import GraphSpec, specialise
from ztdeploy.host.graph.cutting import cut
from ztdeploy.host.graph.parts import without_notes
from ztdeploy.host.models.vit import VitAdapter
from ztdeploy.host.pruning.closeness import Distance
from ztdeploy.host.pruning.layer import BlockTaps
from ztdeploy.host.pruning.pruned_model import PrunedModel
from ztdeploy.target.runtime.postprocess import cosines
from ztdeploy.target.runtime.preprocess import load_pixels

SPEC = GraphSpec(20, "uint8", 3)
NO_NOTES: dict[str, Tensor] = {}
NOTED = [(1, "distance", 0.25), (2, "distance", 0.75), (2, "importance", 9.0)]
MERGING = layer_plan(8, 3).model_copy(update={"merges": True})


def test_distance_is_that_of_the_definition() -> None:
    generator = np.random.default_rng(0)
    x, kept = generator.normal(1.0, 2.0, (2, 9, 5)), np.array([[0, 2, 3, 7], [0, 1, 4, 8]])
    found = Distance(MERGING)(torch.tensor(x), BlockTaps(), torch.tensor(kept))
    unit = x / np.linalg.norm(x, axis=-1, keepdims=True)
    for image in range(2):
        gone = [token for token in range(1, 9) if token not in kept[image]]
        nearest = [max(unit[image, token] @ unit[image, other] for other in kept[image, 1:]) for token in gone]
        assert found[image] == pytest.approx(1 - np.mean(nearest), rel=1e-9)


def test_dropping_layers_compare_keys_as_graphs_have_no_tokens_that_go() -> None:
    keys = torch.randn(1, 2, 9, 4, generator=torch.Generator().manual_seed(0))
    kept, apart = torch.tensor([[0, 1, 2, 3]]), Distance(layer_plan(8, 3))
    found = apart(torch.full((1, 9, 5), torch.nan), BlockTaps(keys=keys), kept)
    assert torch.equal(found, Distance(MERGING)(keys.mean(1), BlockTaps(), kept))
    assert apart(torch.zeros(1, 9, 5), BlockTaps(keys=torch.zeros_like(keys)), kept).tolist() == [1], "no NaN"


@pytest.mark.parametrize(("method", "output"), [("novelty-merge", "features"), ("zero-tprune", "embedding")])
def test_graphs_and_their_tails_are_as_sure_as_pytorch(method: str, output: Output) -> None:
    adapter, images = VitAdapter(variant("class-token", depth=3), IMAGE_SIZE), pixels(3)
    adapter.give(output)
    with PrunedModel(adapter, schedule(method, LayerSpec(block=2, keep_ratio=0.6))) as pruned, torch.no_grad():
        traced = export_onnx(pruned, PREPROCESS, SPEC, noted=True, confidence=Closeness())
        vectors, notes = pruned.noted(Deployable(pruned, PREPROCESS, "uint8").normalise(images))
        first = pruned.token_plan.layers[0].block
    expected = Closeness()(vectors[0], notes).numpy()
    assert ((expected > 0) & (expected < 1)).all()
    for precision, tolerance in (("fp32", 1e-4), ("fp16", 0.02), ("int8", 0.05)):
        typed = specialise(traced, GraphSpec(20, "uint8", 3, precision))  # type: ignore[arg-type]
        shipped = without_notes(typed, confidence=True)
        prefix, tail = cut(shipped, first)
        tokens = run_graph(prefix, image=images.numpy())["tokens"]
        found = run_graph(tail, tokens=tokens)["confidence"]
        assert (found.dtype, found.shape) == (np.float32, (3,))
        np.testing.assert_allclose(found, expected, atol=tolerance, err_msg=precision)
        np.testing.assert_allclose(run_graph(shipped, image=images.numpy())["confidence"], found, atol=tolerance)
        assert "confidence" not in [one.name for one in without_notes(typed).graph.outputs]


def test_graphs_without_a_confidence_pay_nothing_for_it() -> None:
    adapter = VitAdapter(variant("class-token", depth=3), IMAGE_SIZE)
    adapter.give("embedding")
    with PrunedModel(adapter, schedule("zero-tprune", LayerSpec(block=2, keep_ratio=0.6))) as pruned:
        noted = export_onnx(pruned, PREPROCESS, SPEC, noted=True, confidence=Closeness())
        plain = export_onnx(pruned, PREPROCESS, SPEC)
    shapes = [
        sorted((node.op_type, str(node.outputs[0].shape)) for node in graph.graph)
        for graph in (without_notes(noted), plain)
    ]
    assert shapes[0] == shapes[1]


@pytest.mark.realdata
@pytest.mark.long
def test_the_surer_the_closer_to_the_baseline(realdata: Path) -> None:
    checkpoint = realdata / "deit_tiny_patch16_224.fp16.safetensors"
    model = loaded("deit_t", checkpoint=checkpoint, output="embedding")
    architecture = model.adapter.architecture
    half = Variant.of(default_schedule(0.7, architecture), architecture)
    confidence = confidence_of(model, half)
    assert confidence is not None
    images = torch.from_numpy(load_pixels(sorted((realdata / "images").iterdir())[::12], model.preprocess))
    with PrunedModel(model.adapter, half) as pruned, torch.no_grad():
        normalised = Deployable(pruned, model.preprocess, "uint8").normalise(images)
        (vectors, *_), notes = pruned.noted(normalised)
        sure = confidence(vectors, notes)
    with torch.no_grad():
        like = cosines(model.adapter.model(normalised).numpy(), vectors.numpy())
    ranks = [np.argsort(np.argsort(values)) for values in (sure.numpy(), like)]
    assert np.corrcoef(*ranks)[0, 1] > 0.4  # on 200 images: 0.73


def test_distances_of_layers_add_up() -> None:
    notes = {f"blocks.{block}/prune/{note}": torch.tensor([value]) for block, note, value in NOTED}
    assert Closeness()(torch.zeros(1, 4), notes).tolist() == [0.5]


def test_nothing_is_added_where_there_are_classes_or_no_layers() -> None:
    model = loaded("vit_digits")
    architecture = model.adapter.architecture
    half, dense = (Variant.of(default_schedule(ratio, architecture), architecture) for ratio in (0.5, 1.0))
    assert isinstance(confidence_of(model, half), Margin)
    with PrunedModel(model.adapter, half) as pruned, torch.no_grad():
        _, notes = pruned.noted(torch.zeros(1, 3, *model.preprocess.shape[:2]))
    assert not any(name.endswith("/distance") for name in notes)
    model.adapter.give("features")
    assert confidence_of(model, dense) is None
    assert isinstance(confidence_of(model, half), Closeness)


def test_margins() -> None:
    logits = torch.tensor([[0.0, 2.0, 2.0], [0.0, 9.0, 0.0]])
    two, one = Margin("softmax")(logits, NO_NOTES).tolist()
    assert two == pytest.approx(0, abs=1e-6)
    assert one > 0.99
    even, sure = Margin("sigmoid")(torch.tensor([[8.0, 0.0], [8.0, -8.0]]), NO_NOTES).tolist()
    assert even == pytest.approx(0, abs=1e-6)
    assert sure == pytest.approx(0.5, abs=1e-3)
