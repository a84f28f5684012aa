"""What fp16 would have to hold, against the same values computed step by step."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.errors import refused
from helpers.models import IMAGE_SIZE, PREPROCESS, images, pixels, pruned, schedule, variant
from torch.nn import functional

from ztdeploy.core.errors import ModelError
from ztdeploy.core.manifest import BlockRange
from ztdeploy.core.profile import read_profile
from ztdeploy.host.models.vit import VitAdapter
from ztdeploy.host.overflow import LARGEST, check_range, magnitudes, probe
from ztdeploy.target.runtime.preprocess import normalise

FP16 = [read_profile("cpu"), read_profile("jetson-orin")]


def largest(*tensors: torch.Tensor) -> float:
    return max(float(tensor.abs().max()) for tensor in tensors)


def by_hand(model: Any, batch: torch.Tensor) -> list[BlockRange]:
    """Every value of a plain block (no LayerScale, no norms of queries and keys), written out."""
    found = []
    with torch.no_grad():
        x = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(batch))))
        for index, block in enumerate(model.blocks):
            qkv = block.attn.qkv(block.norm1(x))
            b, n, _ = x.shape
            q, k, v = qkv.view(b, n, 3, 3, 16).permute(2, 0, 3, 1, 4)
            logits = torch.einsum("bhid,bhjd->bhij", q, k) / math.sqrt(16)
            mixed = torch.einsum("bhij,bhjd->bihd", logits.softmax(-1), v).reshape(b, n, 48)
            projected = block.attn.proj(mixed)
            middle = x + projected
            normed = block.norm2(middle)
            hidden = block.mlp.fc1(normed)
            active = functional.gelu(hidden)
            out = block.mlp.fc2(active)
            after = middle + out
            found.append(
                BlockRange(
                    block=index,
                    residual=largest(x, middle, after),
                    attention=largest(qkv, projected),
                    logits=largest(logits),
                    mlp=largest(normed, hidden, active, out),
                )
            )
            x = after
    return found


def same(found: list[BlockRange], expected: list[BlockRange]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.model_dump() == pytest.approx(other.model_dump(), rel=1e-4)


def test_every_value_of_a_block_is_seen() -> None:
    model = variant("class-token")
    found = magnitudes(VitAdapter(model, IMAGE_SIZE), model, [images(2), images(3, seed=1)])
    same(found, by_hand(model, torch.cat([images(2), images(3, seed=1)])))


@pytest.mark.parametrize("method", ["zero-tprune", "tome", "evit"])
def test_up_to_the_first_pruning_layer_it_is_dense_and_nothing_stays_behind(method: str) -> None:
    """Blocks 0 and 1 see all tokens; the stream behind block 1 is seen ahead of a layer that drops from it."""
    model = variant("class-token")
    adapter = VitAdapter(model, IMAGE_SIZE)
    dense = magnitudes(adapter, model, [images(2)])
    with pruned(model, method) as module:
        found = magnitudes(adapter, module, [images(2)])
    same(found[:1], dense[:1])
    assert all(value > 0 for block in found for value in block.model_dump(exclude={"block"}).values())
    assert not any(one._forward_hooks or one._forward_pre_hooks for one in model.modules())


@pytest.mark.parametrize("name", ["qk-norm-layer-scale", "registers", "average-pool"])
def test_other_blocks_are_probed_as_well(name: str) -> None:
    model = variant(name)
    found = magnitudes(VitAdapter(model, IMAGE_SIZE), model, [images(2)])
    assert all(0 < value < 1e3 for block in found for value in block.model_dump(exclude={"block"}).values())


def loaded(model: Any) -> Any:
    return SimpleNamespace(adapter=VitAdapter(model, IMAGE_SIZE), preprocess=PREPROCESS)


def swollen(kind: str) -> Any:
    """One value of block 2 grows beyond fp16, while every weight stays within it."""
    model = variant("class-token")
    block = model.blocks[2]
    with torch.no_grad():
        if kind == "mlp":
            block.mlp.fc1.weight[5] *= 60000 / block.mlp.fc1.weight[5].abs().max()
            block.mlp.fc2.weight[:, 5] = 0
        elif kind == "logits":
            block.attn.qkv.weight[:96] *= 300
        elif kind == "attention":
            block.attn.qkv.weight[100] *= 60000 / block.attn.qkv.weight[100].abs().max()
            block.attn.proj.weight[:, 4] = 0
    assert all(float(parameter.abs().max()) < LARGEST for parameter in model.parameters())
    return model


@pytest.mark.parametrize("kind", ["mlp", "logits", "attention"])
def test_an_overflow_names_block_and_value(kind: str) -> None:
    words = {"mlp": "inside the MLP", "logits": "an attention logit", "attention": "a linear layer of attention"}[kind]
    found = probe(loaded(swollen(kind)), [schedule()], pixels(20).numpy(), "photos")
    value = getattr(found["test"].blocks[2], kind)
    assert value > LARGEST
    refused(
        lambda: check_range(found, FP16),
        "profile 'jetson-orin' asks for fp16",
        "'test' overflows in block 2",
        f"{words} reaches {value:.4g} on images of 'photos'",
        "bf16",
        kind=ModelError,
    )
    check_range(found, [read_profile("cpu")])


def test_sound_models_pass_and_all_images_count() -> None:
    model, given = variant("class-token"), pixels(20).numpy()
    found = probe(loaded(model), [schedule()], given, "photos")
    check_range(found, FP16)
    assert found["test"].images == 20
    first = by_hand(model, torch.from_numpy(normalise(given, PREPROCESS)))[0]
    same(list(found["test"].blocks[:1]), [first])
    model.blocks[1].mlp.fc1.bias.data[0] = float("nan")
    refused(
        lambda: check_range(probe(loaded(model), [schedule()], given, "p"), FP16), "block 1", "inf", kind=ModelError
    )
