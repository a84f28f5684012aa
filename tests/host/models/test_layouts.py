"""Checkpoints as people have them: wrappers, other libraries' names, other heads and sizes, somebody else's."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from helpers.dialects import dinov2_names, tower_names, vit_names
from helpers.errors import refused
from helpers.families import images_for, member
from helpers.models import loaded, randomised
from safetensors.torch import save_file
from torch import Tensor, nn

from ztdeploy.core.errors import CheckpointError, InputError, ModelError
from ztdeploy.host.models.checkpoint import load_strictly, tables_in
from ztdeploy.host.models.facts import check_activation, read_class_names
from ztdeploy.host.models.layouts import Fit, best_fit
from ztdeploy.host.models.lvvit import LvVitAdapter
from ztdeploy.host.models.making import sketch

State = dict[str, Tensor]


def fitted(data: Any, name: str, **arguments: Any) -> Fit:
    """What a model of that name, with as many classes as it likes, finds in a file."""
    tables = tables_in(data, lambda value: value if isinstance(value, Tensor) else None)
    return best_fit(tables, member(name, 5, **arguments), "c.pth")


def filled(state: State, name: str) -> nn.Module:
    """Another model of that name, filled with it."""
    fit = fitted(state, name)
    model = member(name, 2, num_classes=fit.classes or 0)
    load_strictly(model, fit.state, Path("c.pth"))
    return model.eval()


def same_answers(name: str, one: nn.Module, other: nn.Module) -> None:
    with torch.no_grad():
        torch.testing.assert_close(one(images_for(name)), other(images_for(name)), rtol=1e-5, atol=1e-5)


# -------------------- as trainers save

NAME = "deit_tiny_patch16_224"
STATE: State = member(NAME).state_dict()
OTHER: State = member(NAME, 1).state_dict()
TRUNK = {name: tensor for name, tensor in STATE.items() if not name.startswith("head.")}
HEAD = {name: tensor for name, tensor in STATE.items() if name.startswith("head.")}


def put(prefix: str, state: State = STATE) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def within(wrapper: str, state: State = STATE) -> State:
    """With a wrapper around each block."""
    return {re.sub(r"^(blocks\.\d+\.)", rf"\1{wrapper}", name): tensor for name, tensor in state.items()}


def called(name: str) -> State:
    return {f"{name}.weight": STATE["head.weight"], f"{name}.bias": STATE["head.bias"]}


#: What other libraries call the parts of a vision transformer: patterns of timm's names, and their replacements.
NAMES = {
    "mmpretrain": {
        r"^head\.": "head.layers.head.",
        r"^blocks\.(\d+)\.mlp\.fc1\.": r"backbone.layers.\1.ffn.layers.0.0.",
        r"^blocks\.(\d+)\.mlp\.fc2\.": r"backbone.layers.\1.ffn.layers.1.",
        r"^blocks\.(\d+)\.norm(\d)\.": r"backbone.layers.\1.ln\2.",
        r"^blocks\.": "backbone.layers.",
        r"^norm\.": "backbone.ln1.",
        r"^patch_embed\.proj\.": "backbone.patch_embed.projection.",
        r"^(cls_token|pos_embed)$": r"backbone.\1",
    },
    "torchvision": {
        r"^head\.": "heads.head.",
        r"^blocks\.(\d+)\.mlp\.fc1\.": r"encoder.layers.encoder_layer_\1.mlp.0.",
        r"^blocks\.(\d+)\.mlp\.fc2\.": r"encoder.layers.encoder_layer_\1.mlp.3.",
        r"^blocks\.(\d+)\.norm(\d)\.": r"encoder.layers.encoder_layer_\1.ln_\2.",
        r"^blocks\.(\d+)\.attn\.qkv\.": r"encoder.layers.encoder_layer_\1.self_attention.in_proj_",
        r"^blocks\.(\d+)\.attn\.proj\.": r"encoder.layers.encoder_layer_\1.self_attention.out_proj.",
        r"^norm\.": "encoder.ln.",
        r"^patch_embed\.proj\.": "conv_proj.",
        r"^cls_token$": "class_token",
        r"^pos_embed$": "encoder.pos_embedding",
    },
}


def as_called_by(library: str) -> State:
    state = STATE
    for old, new in NAMES[library].items():
        state = {re.sub(old, new, name): tensor for name, tensor in state.items()}
    return state


CRITERION = {"criterion.weight": torch.ones(7), "criterion.fc.weight": torch.ones(7, 3)}
LAYOUTS: dict[str, Any] = {
    "the state alone": STATE,
    "lightning": {"state_dict": put("model."), "epoch": 3, "pytorch-lightning_version": "2.0", "callbacks": {}},
    "lightning, net": {"state_dict": put("net."), "loops": {"fit_loop": {"state_dict": {}}}},
    "lightning, a loss with weights": {"state_dict": {**put("model."), **CRITERION}},
    "a loss beside the network's own names": {**STATE, **CRITERION},
    "metrics with buffers": {
        "state_dict": {**put("model."), "accuracy.tp": torch.zeros(7), "accuracy.n": torch.ones(())}
    },
    "loss with a buffer of NaN": {"state_dict": {**put("model."), "ema_loss.value": torch.tensor(float("nan"))}},
    "prefixes nobody foresaw": put("trainer.task.wrapped_vit."),
    "distributed": {"model": put("module."), "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}},
    "distributed and compiled": put("module._orig_mod."),
    "compiled and distributed": put("_orig_mod.module."),
    "compiled blocks": within("_orig_mod."),
    "checkpointed blocks": within("_checkpoint_wrapped_module."),
    "FSDP": put("_fsdp_wrapped_module.", within("_fsdp_wrapped_module._checkpoint_wrapped_module.")),
    "FSDP, older": put("_fsdp_wrapped_module._fpw_module.", within("_fsdp_wrapped_module._fpw_module.")),
    "Lightning Fabric": {"model": put("_forward_module.")},
    "AveragedModel": {**put("module."), "n_averaged": torch.tensor(7)},
    "backbone. and head.": {**put("backbone.", TRUNK), **HEAD},
    "backbone. and fc.": {**put("backbone.", TRUNK), **called("fc")},
    "model.backbone. and model.classifier.": {**put("model.backbone.", TRUNK), **called("model.classifier")},
    "encoder. and a deep head": {**put("encoder.", TRUNK), **called("head.fc")},
    "a sequence of backbone and linear layer": {**put("0.", TRUNK), **called("1")},
    "a sequence of dropout and linear layer": {**put("backbone.", TRUNK), **called("classifier.1")},
    "the head alone has another name": {**TRUNK, **called("classifier")},
    "a head, and a projector": {**put("backbone.", TRUNK), **HEAD, "projector.weight": torch.ones(9, 48)},
    "model_state_dict": {"model_state_dict": STATE, "epoch": 1, "loss": 0.3},
    "net": {"net": STATE, "acc": 91.2},
    "state": {"state": STATE},
    "network.params": {"network": {"params": STATE}},
    "ema without tensors": {"ema": {"decay": 0.99, "updates": 3}, "model": STATE},
    "ema of something else": {"model": STATE, "ema": {"loss": torch.ones(1), "x": {"y": torch.ones(2)}}},
    "ema beside": {"model": OTHER, "model_ema": STATE},
    "ema first": {"state_dict_ema": STATE, "state_dict": OTHER},
    "ema inside": {"model": OTHER, "ema": {"decay": 0.9, "shadow": STATE}},
    "ema as a prefix": {"state_dict": {**put("model.", OTHER), **put("ema.module.")}},
    "moments of an optimizer, by name": {"optimizer": {"exp_avg": OTHER, "exp_avg_sq": OTHER}, "model": STATE},
    "moments by name, first": {"exp_avg_ema": OTHER, "model": STATE},
    "student and teacher": {"student": put("module.", OTHER), "teacher": STATE},
    "student. and teacher.": {"state_dict": {**put("student.", OTHER), **put("teacher.")}},
    "MMPretrain": {"state_dict": as_called_by("mmpretrain"), "meta": {"epoch": 1}},
    "MMPretrain in a wrapper": put("module.", as_called_by("mmpretrain")),
    "torchvision": as_called_by("torchvision"),
    "torchvision in Lightning": {"state_dict": put("model.", as_called_by("torchvision"))},
    "chunks of blocks": {re.sub(r"^blocks\.", "blocks.0.", name): tensor for name, tensor in STATE.items()},
    "a list of states": [{"state_dict": STATE}, 3],
    "states of several models": {"models": [STATE], "optimizers": [{"exp_avg": OTHER}]},
    "an average as a list without names": {"model": STATE, "ema": {"shadow_params": list(STATE.values())}},
    "a table for each part": {"model": {"backbone": TRUNK, "head": {n[5:]: tensor for n, tensor in HEAD.items()}}},
    "a table for each part, called otherwise": {
        "encoder_state_dict": TRUNK,
        "fc_state_dict": {name[5:]: tensor for name, tensor in HEAD.items()},
    },
    "a deep prefix": put("a.b.c.d.e.f.g.h."),
    "a mask token": {**STATE, "mask_token": torch.zeros(1, 1, 48)},
    "half precision": {name: tensor.half().float() for name, tensor in STATE.items()},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_are_found_as_trainers_save_them(layout: str) -> None:
    fit = fitted(LAYOUTS[layout], NAME)
    assert not fit.faults, fit
    assert fit.classes == 7
    wanted = STATE if layout != "half precision" else LAYOUTS[layout]
    assert fit.state.keys() == wanted.keys()
    assert all(torch.equal(fit.state[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize(
    ("layout", "remark"),
    [
        ("the state alone", None),
        ("lightning", None),
        ("compiled blocks", None),
        ("a loss beside the network's own names", "left out 2 tensors that are not the network's: 'criterion.weight'"),
        ("AveragedModel", "left out 1 tensor that is not the network's: 'n_averaged'"),
        ("backbone. and fc.", "took 'fc' for the head"),
        ("ema beside", "took 'model_ema' (an average comes first), where 'model' would fit as well"),
        ("student. and teacher.", "took 'state_dict:teacher.'"),
        ("moments of an optimizer, by name", None),
        ("a mask token", None),
    ],
)
def test_what_was_chosen_and_left_out_is_said(layout: str, remark: str | None) -> None:
    remarks = fitted(LAYOUTS[layout], NAME).remarks
    assert (remarks == ()) if remark is None else any(remark in one for one in remarks)


def test_one_table_under_two_names_is_no_choice_to_speak_of() -> None:
    assert fitted({"model": STATE, "model_ema": dict(STATE)}, NAME).remarks == ()


HEADLESS: dict[str, State] = {
    "nothing": TRUNK,
    "a projection head": {
        **put("backbone.", TRUNK),
        **{f"head.mlp.{layer}.weight": torch.ones(48, 48) for layer in (0, 2)},
        "head.last_layer.weight": torch.ones(9, 48),
    },
    "another width": {**put("backbone.", TRUNK), "head.weight": torch.ones(7, 96), "head.bias": torch.ones(7)},
    "a pooler": {
        **put("backbone.", TRUNK),
        "pooler.dense.weight": torch.ones(48, 48),
        "pooler.dense.bias": torch.ones(48),
    },
    "a head of the class token and the mean": {**put("backbone.", TRUNK), "head.weight": torch.ones(7, 96)},
    "two of them": {**put("backbone.", TRUNK), **called("fc_a"), **called("fc_b")},
}


@pytest.mark.parametrize("layout", HEADLESS)
def test_weights_without_a_head(layout: str) -> None:
    fit = fitted(HEADLESS[layout], NAME)
    assert not fit.faults
    assert fit.classes is None
    assert fit.state.keys() == TRUNK.keys()


#: What is the network's, by its name or its place, and that the model has not; or that it has and the file has not.
MISFITS: dict[str, tuple[State, str]] = {
    "registers": ({**STATE, "reg_token": torch.zeros(1, 4, 48)}, "unexpected: reg_token"),
    "a distillation token": ({**STATE, "dist_token": torch.zeros(1, 1, 48)}, "unexpected: dist_token"),
    "a second head": ({**STATE, "head_dist.weight": torch.zeros(7, 48)}, "unexpected: head_dist.weight"),
    "layer scale": ({**STATE, "blocks.0.ls1.gamma": torch.ones(48)}, "unexpected: blocks.0.ls1.gamma"),
    "norms of queries": ({**STATE, "blocks.2.attn.q_norm.weight": torch.ones(16)}, "unexpected: blocks.2.attn.q_norm"),
    "a norm ahead": ({**STATE, "norm_pre.weight": torch.ones(48)}, "unexpected: norm_pre.weight"),
    "a norm behind the average": ({**STATE, "fc_norm.weight": torch.ones(48)}, "unexpected: fc_norm.weight"),
    "attention pooling": ({**STATE, "attn_pool.latent": torch.ones(1, 1, 48)}, "unexpected: attn_pool.latent"),
    "a block more": ({**STATE, "blocks.3.norm1.weight": torch.ones(48)}, "unexpected: blocks.3.norm1.weight"),
    "adapters": ({**STATE, "blocks.0.adapter.weight": torch.ones(4, 48)}, "unexpected: blocks.0.adapter.weight"),
    "prompts": ({**STATE, "prompts": torch.ones(1, 10, 48)}, "unexpected: prompts"),
    "a representation layer": (
        {**STATE, "pre_logits.fc.weight": torch.ones(48, 48)},
        "unexpected: pre_logits.fc.weight",
    ),
    "no bias of patches": (
        {n: t for n, t in STATE.items() if n != "patch_embed.proj.bias"},
        "missing: patch_embed.proj.bias",
    ),
    "no bias of queries": (
        {n: t for n, t in STATE.items() if "qkv.bias" not in n},
        "3 missing: blocks.0.attn.qkv.bias",
    ),
    "no positions": ({n: t for n, t in STATE.items() if n != "pos_embed"}, "missing: pos_embed"),
    "a block less": ({n: t for n, t in STATE.items() if "blocks.2." not in n}, "12 missing: blocks.2.norm1.weight"),
    "under a prefix": (put("model.", {**STATE, "reg_token": torch.zeros(1, 4, 48)}), "unexpected: reg_token"),
    "one channel": ({**STATE, "patch_embed.proj.weight": torch.zeros(48, 1, 16, 16)}, "patch_embed.proj.weight [48, 1"),
    "something else": ({"w": torch.ones(2)}, "missing: cls_token"),
}


@pytest.mark.parametrize("misfit", MISFITS)
def test_what_does_not_fit_is_told_by_name(misfit: str) -> None:
    state, fragment = MISFITS[misfit]
    fit = fitted({"state_dict": state}, NAME)
    assert fit.faults
    refused(lambda: load_strictly(member(NAME, 2), fit.state, Path("c.pth")), fragment, kind=CheckpointError)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("base_model.model.blocks.0.attn.qkv.lora_A.default.weight", "merge_and_unload"),
        ("_fsdp_wrapped_module._flat_param", "FULL_STATE_DICT"),
    ],
)
def test_what_has_to_be_merged_first_is_refused_with_how(name: str, what: str) -> None:
    state = {re.sub("attn.qkv", "attn.qkv.base_layer", one): tensor for one, tensor in STATE.items()}
    refused(
        lambda: fitted({**put("base_model.model.", state), name: torch.ones(4, 48)}, NAME), what, kind=CheckpointError
    )


# -------------------- the names of the transformers library


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
    for saved in (state, {f"model.{key}": tensor for key, tensor in state.items()}):
        assert fitted(saved, name).classes == 7
        same_answers(name, filled(saved, name), model)


def test_siglips_attention_pooling_is_read() -> None:
    name = "vit_base_patch16_siglip_224"
    model = member(name, 1, num_classes=0)
    same_answers(name, filled(tower_names(model.state_dict()), name), model)


def test_layer_scales_under_deit_threes_first_names_are_read() -> None:
    name = "deit3_small_patch16_224"
    model = member(name, 1)
    state = {
        key.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): value
        for key, value in model.state_dict().items()
    }
    same_answers(name, filled(state, name), model)


@pytest.mark.parametrize("name", ["vit_base_patch16_224", "beit_base_patch16_224", "lvvit_s"])
def test_positions_of_another_size_are_resampled_and_that_is_told(name: str) -> None:
    small, large = member(name), member(name, 1, img_size=112)
    fit = best_fit({"": small.state_dict()}, large, "c.pth")
    if name != "beit_base_patch16_224":  # its positions are all relative
        assert fit.resampled
        assert fit.state["pos_embed"].shape == large.state_dict()["pos_embed"].shape
    load_strictly(large, fit.state, Path("c.pth"))


def test_patches_of_another_size_are_not_resampled() -> None:
    state, model = member("vit_base_patch32_224").state_dict(), member("vit_base_patch16_224")
    found = best_fit({"": state}, model, "c.pth").state
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
    model = loaded("deit_t", checkpoint=deit, class_names=tmp_path / "names.txt")
    assert model.adapter.architecture.num_classes == 3
    assert model.class_names == ("cat", "dog", "owl")
    assert loaded("deit_t", checkpoint=deit).class_names is None


def test_a_thousand_classes_of_ones_own_are_not_imagenets(tmp_path: Path) -> None:
    torch.save(timm.create_model(NAME, num_classes=1000).state_dict(), tmp_path / "c.pth")
    model = loaded("deit_t", checkpoint=tmp_path / "c.pth")
    assert model.class_names is None
    assert any("--class-names" in remark for remark in model.remarks)
    named = loaded("deit_t", checkpoint=tmp_path / "c.pth", class_names=Path("imagenet"))
    assert named.class_names is not None
    assert named.class_names[:2] == ("tench", "goldfish")
    assert not any("--class-names" in remark for remark in named.remarks)


@pytest.mark.parametrize(
    ("name", "classes", "published", "expected"),
    [
        ("vit_base_patch32_clip_224.openai", 512, False, ModelError),
        ("vit_base_patch32_clip_224.openai", None, False, ModelError),
        ("vit_base_patch16_clip_224.openai", 512, True, ModelError),
        ("vit_large_patch14_clip_224.dfn2b", 768, True, ModelError),
        ("vit_base_patch16_clip_224.metaclip_2pt5b", 512, False, ModelError),
        ("vit_base_patch32_clip_224.openai", 10, False, "which timm notes"),
        ("vit_base_patch32_clip_224", 512, False, "want QuickGELU"),
        ("vit_base_patch32_clip_224.laion2b", 512, True, None),
        ("vit_base_patch32_clip_224.laion2b", 10, False, None),
        ("vit_base_patch32_clip_quickgelu_224.openai", 512, True, None),
        ("vit_base_patch32_clip_quickgelu_224.openai", 512, False, None),
        ("vit_base_patch16_siglip_224", None, False, None),
        ("deit_tiny_patch16_224", 1000, False, None),
        ("vit_small_patch14_dinov2", None, False, None),
    ],
)
def test_weights_that_want_another_activation(
    name: str, classes: int | None, published: bool, expected: type[ModelError] | str | None
) -> None:
    def doubt() -> str | None:
        return check_activation(sketch(name), name, classes, published=published)

    if expected is ModelError:
        refused(doubt, f"{name.replace('_clip_', '_clip_quickgelu_')}", "QuickGELU", kind=ModelError)
    else:
        found = doubt()
        assert (found is None) if expected is None else (found is not None and str(expected) in found)


def test_a_siblings_checkpoint_names_the_sibling(deit: Path) -> None:
    message = refused(lambda: loaded("deit_s", checkpoint=deit), "mis-shaped", kind=CheckpointError)
    assert "--model deit_t" in message
    state = timm.create_model("deit_tiny_patch16_224").state_dict()
    torch.save(state, deit)
    refused(lambda: loaded("deit_s", checkpoint=deit), "it is of 'deit_t'", "--model deit_t", kind=CheckpointError)


def test_lv_vit_reads_its_published_names(tmp_path: Path) -> None:
    model = randomised(LvVitAdapter.make("lvvit_t", None, {}))
    names = set(model.state_dict())
    wanted = {"patch_embed.conv1.weight", "patch_embed.bn3.running_var", "patch_embed.proj.bias", "cls_token"}
    assert wanted | {"blocks.11.attn.qkv.weight", "blocks.0.mlp.fc2.bias", "norm.weight", "aux_head.bias"} <= names
    assert "blocks.0.attn.qkv.bias" not in names
    save_file(model.state_dict(), tmp_path / "lvvit.safetensors")
    found = loaded("lvvit_t", checkpoint=tmp_path / "lvvit.safetensors")
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
