"""Checkpoints as people have them: wrappers, other libraries' names, other heads and sizes, somebody else's."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from helpers.errors import refused
from helpers.families import images_for, member
from helpers.models import randomised
from safetensors.torch import save_file
from torch import Tensor, nn

from ztdeploy.errors import CheckpointError, InputError
from ztdeploy.models.checkpoint import load_strictly, read_checkpoint
from ztdeploy.models.class_names import read_class_names
from ztdeploy.models.layouts import classes_of, fitted, unwrapped
from ztdeploy.models.loading import load_model
from ztdeploy.models.lvvit_module import make_lvvit

State = dict[str, Tensor]


def read(path: Path, data: Any) -> State:
    torch.save(data, path)
    return unwrapped(read_checkpoint(path))


def loaded(state: State, model: nn.Module) -> nn.Module:
    """Another model of the same kind, filled with it."""
    found, _ = fitted(unwrapped(state), model)
    load_strictly(model, found, Path("c.pth"))
    return model.eval()


def same_answers(name: str, one: nn.Module, other: nn.Module) -> None:
    with torch.no_grad():
        torch.testing.assert_close(one(images_for(name)), other(images_for(name)), rtol=1e-5, atol=1e-5)


# -------------------- wrappers


@pytest.mark.parametrize("prefix", ["", "module.", "module.module.", "_orig_mod.", "module._orig_mod.", "model."])
@pytest.mark.parametrize("keys", [(), ("model",), ("state_dict",), ("model_ema",), ("state_dict", "model")])
def test_wrappers_are_taken_off(tmp_path: Path, prefix: str, keys: tuple[str, ...]) -> None:
    state = member("deit_tiny_patch16_224").state_dict()
    data: Any = {prefix + name: tensor for name, tensor in state.items()}
    for key in reversed(keys):
        data = {key: data, "epoch": 3, "args": argparse.Namespace(lr=1.0)}
    found = read(tmp_path / "c.pth", data)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)


def test_averaged_weights_come_first(tmp_path: Path) -> None:
    plain, averaged = ({"w": torch.full((2, 2), value)} for value in (1.0, 2.0))
    assert read(tmp_path / "c.pth", {"model": plain, "model_ema": averaged})["w"][0, 0] == 2


def test_options_of_a_script_that_hold_objects_are_still_refused(tmp_path: Path) -> None:
    data = {"model": {"w": torch.ones(2)}, "args": argparse.Namespace(path=Path("x"))}
    torch.save(data, tmp_path / "c.pth")
    refused(lambda: read_checkpoint(tmp_path / "c.pth"), "nothing in it was run", kind=CheckpointError)


# -------------------- the names of the transformers library


def split(state: State, block: str, names: tuple[str, str, str]) -> State:
    """A joint projection as three."""
    return {
        f"{name}.{kind}": part
        for kind in ("weight", "bias")
        for name, part in zip(names, state[f"{block}.attn.qkv.{kind}"].chunk(3), strict=True)
    }


def both(state: State, old: str, new: str) -> State:
    return {f"{new}.{kind}": state[f"{old}.{kind}"] for kind in ("weight", "bias") if f"{old}.{kind}" in state}


def vit_names(state: State, tower: str) -> State:
    """As its ViTForImageClassification and DeiTForImageClassificationWithTeacher name them."""
    result = {
        f"{tower}.embeddings.cls_token": state["cls_token"],
        f"{tower}.embeddings.position_embeddings": state["pos_embed"],
        **both(state, "patch_embed.proj", f"{tower}.embeddings.patch_embeddings.projection"),
        **both(state, "norm", f"{tower}.layernorm"),
    }
    if "dist_token" in state:
        result[f"{tower}.embeddings.distillation_token"] = state["dist_token"]
        result |= both(state, "head", "cls_classifier") | both(state, "head_dist", "distillation_classifier")
    else:
        result |= both(state, "head", "classifier")
    for index in range(3):
        old, new = f"blocks.{index}", f"{tower}.encoder.layer.{index}"
        parts = ("query", "key", "value")
        result |= split(state, old, tuple(f"{new}.attention.attention.{part}" for part in parts))  # type: ignore[arg-type]
        result |= both(state, f"{old}.attn.proj", f"{new}.attention.output.dense")
        result |= both(state, f"{old}.mlp.fc1", f"{new}.intermediate.dense")
        result |= both(state, f"{old}.mlp.fc2", f"{new}.output.dense")
        result |= both(state, f"{old}.norm1", f"{new}.layernorm_before")
        result |= both(state, f"{old}.norm2", f"{new}.layernorm_after")
    return result


def dinov2_names(state: State, registers: bool) -> State:
    """As its Dinov2Model and Dinov2WithRegistersModel do, where each token has a position."""
    position = torch.zeros_like(state["cls_token"]) if registers else None
    places = state["pos_embed"] if position is None else torch.cat([position + 0.25, state["pos_embed"]], 1)
    token = state["cls_token"] if position is None else state["cls_token"] - 0.25
    result = {
        "embeddings.cls_token": token,
        "embeddings.mask_token": torch.zeros(1, token.shape[-1]),
        "embeddings.position_embeddings": places,
        **both(state, "patch_embed.proj", "embeddings.patch_embeddings.projection"),
        **both(state, "norm", "layernorm"),
        **both(state, "head", "classifier"),
    }
    if registers:
        result["embeddings.register_tokens"] = state["reg_token"]
    for index in range(3):
        old, new = f"blocks.{index}", f"encoder.layer.{index}"
        parts = ("query", "key", "value")
        result |= split(state, old, tuple(f"{new}.attention.attention.{part}" for part in parts))  # type: ignore[arg-type]
        result |= both(state, f"{old}.attn.proj", f"{new}.attention.output.dense")
        for part in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
            result |= both(state, f"{old}.{part}", f"{new}.{part}")
        result |= {f"{new}.layer_scale{one}.lambda1": state[f"{old}.ls{one}.gamma"] for one in (1, 2)}
    return result


def tower_names(state: State) -> State:
    """As its CLIPModel and SiglipModel do, text towers and all."""
    result = {
        "logit_scale": torch.ones(()),
        "text_model.embeddings.token_embedding.weight": torch.ones(4, 4),
        "text_projection.weight": torch.ones(4, 4),
        "vision_model.embeddings.position_ids": torch.arange(26)[None],
        "vision_model.embeddings.position_embedding.weight": state["pos_embed"][0],
        **both(state, "patch_embed.proj", "vision_model.embeddings.patch_embedding"),
        **both(state, "norm", "vision_model.post_layernorm"),
    }
    if "cls_token" in state:
        result["vision_model.embeddings.class_embedding"] = state["cls_token"][0, 0]
        result["visual_projection.weight"] = state["head.weight"]
        result |= both(state, "norm_pre", "vision_model.pre_layrnorm")
    else:
        result["vision_model.head.probe"] = state["attn_pool.latent"]
        for kind in ("weight", "bias"):
            parts = [state[f"attn_pool.{part}.{kind}"] for part in ("q", "kv")]
            result[f"vision_model.head.attention.in_proj_{kind}"] = torch.cat(parts)
        result |= both(state, "attn_pool.proj", "vision_model.head.attention.out_proj")
        result |= both(state, "attn_pool.norm", "vision_model.head.layernorm")
        for layer in ("fc1", "fc2"):
            result |= both(state, f"attn_pool.mlp.{layer}", f"vision_model.head.mlp.{layer}")
    for index in range(3):
        old, new = f"blocks.{index}", f"vision_model.encoder.layers.{index}"
        result |= split(state, old, (f"{new}.self_attn.q_proj", f"{new}.self_attn.k_proj", f"{new}.self_attn.v_proj"))
        result |= both(state, f"{old}.attn.proj", f"{new}.self_attn.out_proj")
        result |= both(state, f"{old}.norm1", f"{new}.layer_norm1") | both(state, f"{old}.norm2", f"{new}.layer_norm2")
        for layer in ("fc1", "fc2"):
            result |= both(state, f"{old}.mlp.{layer}", f"{new}.mlp.{layer}")
    return result


@pytest.mark.parametrize(
    ("name", "rename"),
    [
        ("vit_base_patch16_224", lambda state: vit_names(state, "vit")),
        ("deit_small_distilled_patch16_224", lambda state: vit_names(state, "deit")),
        ("vit_small_patch14_dinov2", lambda state: dinov2_names(state, registers=False)),
        ("vit_small_patch14_reg4_dinov2", lambda state: dinov2_names(state, registers=True)),
        (
            "vit_small_patch14_dinov2",
            lambda state: {
                name if name.startswith("classifier") else f"dinov2.{name}": tensor
                for name, tensor in dinov2_names(state, registers=False).items()
            },
        ),
        ("vit_base_patch16_clip_quickgelu_224", tower_names),
    ],
)
def test_what_the_transformers_library_saves_is_read(name: str, rename: Any) -> None:
    model = member(name, 1)
    if "clip" in name:
        nn.init.zeros_(model.head.bias)  # its projection has none
    state = rename(model.state_dict())
    assert not state.keys() & model.state_dict().keys()
    assert classes_of(unwrapped(state)) == 7
    same_answers(name, loaded(state, member(name, 2)), model)


def test_siglips_attention_pooling_is_read() -> None:
    name = "vit_base_patch16_siglip_224"
    model, other = (member(name, seed, num_classes=0) for seed in (1, 2))
    same_answers(name, loaded(tower_names(model.state_dict()), other), model)


def test_layer_scales_under_deit_threes_first_names_are_read() -> None:
    name = "deit3_small_patch16_224"
    model = member(name, 1)
    state = {
        key.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): value
        for key, value in model.state_dict().items()
    }
    same_answers(name, loaded(state, member(name, 2)), model)


@pytest.mark.parametrize("name", ["vit_base_patch16_224", "beit_base_patch16_224", "lvvit_s"])
def test_positions_of_another_size_are_resampled_and_that_is_told(name: str) -> None:
    small, large = member(name), member(name, 1, img_size=112)
    found, remark = fitted(small.state_dict(), large)
    if name != "beit_base_patch16_224":  # its positions are all relative
        assert remark == "positions resampled"
        assert found["pos_embed"].shape == large.state_dict()["pos_embed"].shape
    load_strictly(large, found, Path("c.pth"))


def test_patches_of_another_size_are_not_resampled() -> None:
    state, model = member("vit_base_patch32_224").state_dict(), member("vit_base_patch16_224")
    found, _ = fitted(state, model)
    refused(lambda: load_strictly(model, found, Path("c.pth")), "patch_embed.proj.weight", kind=CheckpointError)


# -------------------- heads, names, siblings


@pytest.fixture
def deit(tmp_path: Path) -> Path:
    """DeiT-Tiny with a head for three classes, as its training script saves it."""
    model = randomised(timm.create_model("deit_tiny_patch16_224", num_classes=3))
    torch.save({"model": {f"module.{name}": part for name, part in model.state_dict().items()}}, tmp_path / "c.pth")
    return tmp_path / "c.pth"


def test_a_head_of_ones_own_with_names(deit: Path, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("cat\ndog\nowl\n", encoding="utf-8")
    model = load_model("deit_t", checkpoint=deit, class_names=tmp_path / "names.txt")
    assert model.adapter.architecture.num_classes == 3
    assert model.class_names == ("cat", "dog", "owl")
    assert load_model("deit_t", checkpoint=deit).class_names is None


def test_a_siblings_checkpoint_names_the_sibling(deit: Path) -> None:
    message = refused(lambda: load_model("deit_s", checkpoint=deit), "mis-shaped", kind=CheckpointError)
    assert "--model deit_t" not in message  # with three classes it is nobody's
    state = timm.create_model("deit_tiny_patch16_224").state_dict()
    torch.save(state, deit)
    refused(lambda: load_model("deit_s", checkpoint=deit), "it is of 'deit_t'", "--model deit_t", kind=CheckpointError)


def test_lv_vit_reads_its_published_names(tmp_path: Path) -> None:
    model = randomised(make_lvvit("lvvit_t"))
    names = set(model.state_dict())
    wanted = {"patch_embed.conv1.weight", "patch_embed.bn3.running_var", "patch_embed.proj.bias", "cls_token"}
    assert wanted | {"blocks.11.attn.qkv.weight", "blocks.0.mlp.fc2.bias", "norm.weight", "aux_head.bias"} <= names
    assert "blocks.0.attn.qkv.bias" not in names
    save_file(model.state_dict(), tmp_path / "lvvit.safetensors")
    found = load_model("lvvit_t", checkpoint=tmp_path / "lvvit.safetensors")
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        tokens = model.forward_features(images)
        best = torch.stack([model.aux_head(tokens[:, place]) for place in range(1, 197)]).amax(0)
        assert torch.allclose(found.adapter.model(images), model.head(tokens[:, 0]) + best / 2, atol=1e-5)


@pytest.mark.parametrize(
    ("file", "content", "expected"),
    [
        ("n.txt", "cat\ngrey owl\n", ("cat", "grey owl")),
        ("n.json", json.dumps(["cat", "owl"]), ("cat", "owl")),
        ("n.json", json.dumps({"1": "owl", "0": "cat"}), ("cat", "owl")),
        ("n.json", json.dumps({"id2label": {"0": "cat", "1": "owl"}, "hidden_size": 3}), ("cat", "owl")),
    ],
)
def test_class_names_are_read(tmp_path: Path, file: str, content: str, expected: tuple[str, ...]) -> None:
    (tmp_path / file).write_text(content, encoding="utf-8")
    assert read_class_names(tmp_path / file, 2) == expected


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("n.txt", "cat\n"),
        ("n.txt", "cat\nowl\ndog\n"),
        ("n.txt", "cat\n\n"),
        ("n.json", "{"),
        ("n.json", "[1, 2]"),
        ("n.json", '{"0": "cat", "2": "owl"}'),
        ("n.json", "7"),
    ],
)
def test_class_names_that_do_not_fit_are_refused(tmp_path: Path, file: str, content: str) -> None:
    (tmp_path / file).write_text(content, encoding="utf-8")
    refused(lambda: read_class_names(tmp_path / file, 2), file, kind=InputError)
    refused(lambda: read_class_names(tmp_path / "none.txt", 2), "none.txt", kind=InputError)
