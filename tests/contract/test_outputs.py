"""What a model gives: logits, what goes into the head, or features for every place of the grid."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from helpers.families import MEMBERS, adapter_of, chained, check_read_tokens, images_for, member, only
from helpers.models import PREPROCESS
from torch import Tensor
from torch.nn import functional

from ztdeploy.core.keep_ratio import uniform_schedule
from ztdeploy.core.preprocess_spec import ImageSize
from ztdeploy.core.schedule import LayerSpec, PruningSchedule
from ztdeploy.host.export import export_onnx
from ztdeploy.host.graph import GraphSpec
from ztdeploy.host.models.adapter import ModelAdapter
from ztdeploy.host.pruning.pruned_model import PrunedModel

NAMES = [
    "deit_small_distilled_patch16_224",
    "eva_large_patch14_196",
    "vit_base_patch16_siglip_224",
    "vit_small_patch14_reg4_dinov2",
    "vit_small_patch16_dinov3",
    "beit_base_patch16_224",
    "lvvit_s",
]
DENSE = uniform_schedule(1.0, 3)
names = pytest.mark.parametrize("name", NAMES)
OF_TRANSFORMERS = (
    "hf/ViTForImageClassification",
    "hf/Dinov2WithRegistersModel",
    "hf/SiglipVisionModel",
    "hf/BeitModel",
)
grids = pytest.mark.parametrize("name", [*NAMES, *OF_TRANSFORMERS])


def schedule(method: str, *blocks: int) -> PruningSchedule:
    layers = tuple(LayerSpec(block=block, keep_ratio=0.6) for block in blocks)
    return PruningSchedule(name="pruned", method=method, layers=layers)


def giving(name: str, output: str) -> ModelAdapter:
    adapter = adapter_of(name)
    adapter.give(output)  # type: ignore[arg-type]
    return adapter


def features_of(name: str, found: PruningSchedule) -> tuple[Tensor, list[Tensor]]:
    with PrunedModel(giving(name, "features"), found) as pruned, torch.no_grad():
        replay = pruned.replay(images_for(name))
    return replay.output, [choice.kept for choice in replay.choices]


@names
@pytest.mark.parametrize("output", ["embedding", "features"])
def test_an_output_reads_the_tokens_that_are_told(name: str, output: str) -> None:
    check_read_tokens(giving(name, output), images_for(name))


@names
def test_embeddings_are_what_the_head_is_given(name: str) -> None:
    model, adapter = member(name), giving(name, "embedding")
    assert adapter.architecture.num_classes == 0
    with PrunedModel(adapter, DENSE) as pruned, torch.no_grad():
        output = pruned(images_for(name))[0]
        tokens = model.forward_features(images_for(name))
        expected = tokens[:, 0] if name == "lvvit_s" else model.forward_head(tokens, pre_logits=True)
    assert torch.equal(output, expected)


@grids
def test_dense_features_are_the_patches_last_tokens(name: str) -> None:
    output, _ = features_of(name, DENSE)
    with torch.no_grad():
        tokens = member(name).forward_features(images_for(name))
    assert torch.equal(output, tokens[:, MEMBERS[name].prefix :])


@grids
def test_each_place_has_the_features_of_what_stands_for_it(name: str) -> None:
    output, kept = features_of(name, schedule("zero-tprune", 1, 2))
    places, prefix = chained(kept)[-1], MEMBERS[name].prefix
    model = member(name)
    with only(model, dict(enumerate(chained(kept)))), torch.no_grad():
        left = model.forward_features(images_for(name))[:, prefix:]
    for image in range(3):
        patches = places[image, prefix:] - prefix
        torch.testing.assert_close(output[image, patches], left[image], rtol=1e-4, atol=1e-4)
        distance = torch.cdist(output[image], left[image]).amin(1)
        assert distance.max() < 1e-3  # whatever went has those of one that stayed


@pytest.mark.parametrize("name", ["vit_small_patch14_reg4_dinov2", "vit_small_patch16_dinov3", "beit_base_patch16_224"])
def test_what_stands_for_a_token_has_the_most_similar_keys(name: str) -> None:
    output, (kept,) = features_of(name, schedule("zero-tprune", 2))
    model, prefix = member(name), MEMBERS[name].prefix
    inputs: list[Tensor] = []
    model.blocks[1].attn.register_forward_pre_hook(lambda _module, given: inputs.append(given[0]))
    with torch.no_grad():
        model(images_for(name))
        attention = model.blocks[1].attn
        bias = None if attention.qkv is None or attention.qkv.bias is None else attention.qkv.bias[48:96]
        keys = functional.linear(inputs[0], attention.qkv.weight[48:96], bias).view(3, -1, 3, 16).mean(2)
    for image in range(3):
        stays = kept[image, prefix:]
        alike = functional.cosine_similarity(keys[image, :, None], keys[image, None, stays], dim=-1)
        for token in range(prefix, keys.shape[1]):
            chosen = token if token in stays.tolist() else int(stays[alike[token].argmax()])
            assert torch.equal(output[image, token - prefix], output[image, chosen - prefix])


@pytest.mark.parametrize("name", ["vit_small_patch16_dinov3", "hf/Dinov2WithRegistersModel"])
@pytest.mark.parametrize("method", ["novelty-merge", "tome"])
def test_a_merged_token_keeps_what_sets_it_apart_from_its_stand_in(name: str, method: str) -> None:
    adapter, own, grids = giving(name, "features"), list[Tensor](), list[Tensor]()
    with torch.no_grad(), watched(adapter, own):
        adapter.model.forward_features(images_for(name))
    with PrunedModel(adapter, schedule(method, 2)) as pruned, torch.no_grad(), watched(adapter, grids):
        (choice,) = pruned.replay(images_for(name)).choices
    before, behind, last = grids
    assert torch.equal(before, own[0])
    if method == "novelty-merge":  # which stands behind the block
        torch.testing.assert_close(behind, own[1], rtol=1e-5, atol=1e-5)
    assert choice.into is not None
    for image in range(3):
        stays = choice.kept[image].tolist()
        gone = [token for token in range(behind.shape[1]) if token not in stays]
        stand_ins = [stays[slot] for slot in choice.into[image].tolist()]
        update = (last - behind)[image]
        torch.testing.assert_close(update[gone], update[stand_ins], rtol=1e-4, atol=1e-4)
        assert not torch.allclose(last[image, gone], last[image, stand_ins], atol=1e-2)


@contextmanager
def watched(adapter: ModelAdapter, seen: list[Tensor]) -> Iterator[None]:
    """What each block hands on, in order."""
    with ExitStack() as hooks:
        for block in adapter.blocks:
            hook = block.register_forward_hook(lambda _block, _inputs, output: seen.append(output))
            hooks.callback(hook.remove)
        yield


@pytest.mark.long
@pytest.mark.parametrize("method", ["zero-tprune", "novelty-merge"])
def test_a_graph_gives_the_same_features(method: str) -> None:
    name = "vit_small_patch16_dinov3"
    size = PREPROCESS.model_copy(update=dict.fromkeys(("image_size", "resize"), ImageSize.of(80)))
    with PrunedModel(giving(name, "features"), schedule(method, 1, 2)) as pruned:
        model = export_onnx(pruned, size, GraphSpec(20, "float32", None))
    data = ir.serde.serialize_model(model).SerializeToString()
    session = ort.InferenceSession(data, providers=["CPUExecutionProvider"])
    output = session.run(["logits"], {"image": images_for(name).numpy()})[0]
    assert output.shape == (3, 25, 48)
    expected, _ = features_of(name, schedule(method, 1, 2))
    np.testing.assert_allclose(output, expected.numpy(), rtol=1e-3, atol=1e-3)
