"""Configurations beside weights, of timm and of transformers: what they say, and that damaged ones are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.errors import refused

from ztdeploy.core.errors import CheckpointError
from ztdeploy.host.models.descriptions import describe

VIT: dict[str, Any] = {
    "model_type": "vit",
    "hidden_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 768,
    "image_size": 80,
    "patch_size": 16,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "qkv_bias": True,
}
TIMM: dict[str, Any] = {
    "architecture": "vit_tiny_patch16_224",
    "num_classes": 2,
    "model_args": {"img_size": 32, "depth": 2},
    "pretrained_cfg": {"tag": "mine", "mean": [0.1, 0.2, 0.3], "std": [0.5, 0.5, 0.5], "crop_pct": 0.8},
}


def folder(path: Path, config: Any, preprocessor: Any = None) -> Path:
    for name, data in (("config.json", config), ("preprocessor_config.json", preprocessor)):
        if data is not None:
            (path / name).write_text(data if isinstance(data, str) else json.dumps(data), encoding="utf-8")
    return path


def test_what_timm_says(tmp_path: Path) -> None:
    found = describe(folder(tmp_path, {**TIMM, "label_names": ["cat", "dog"]}))
    assert found is not None
    assert (found.library, found.architecture, found.tag) == ("timm", "vit_tiny_patch16_224", "mine")
    assert (found.geometry, found.image_size) == ({"depth": 2}, (32, 32))
    assert found.preprocess == {"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.5, 0.5), "crop_pct": 0.8}
    assert set(found.sources) == {"mean", "std", "crop_pct", "image_size"}
    assert found.class_names == ("cat", "dog")


def test_what_timm_once_said_in_one_table(tmp_path: Path) -> None:
    old = {"architecture": "vit_small_patch16_224", "input_size": [3, 96, 96], "mean": [0.5] * 3, "labels": ["a", "b"]}
    found = describe(folder(tmp_path, old))
    assert found is not None
    assert (found.image_size, found.preprocess, found.class_names) == ((96, 96), {"mean": (0.5,) * 3}, ("a", "b"))


@pytest.mark.parametrize(
    ("change", "activation", "epsilon"),
    [
        ({}, "gelu", 1e-12),
        ({"hidden_act": "gelu_new"}, "gelu_tanh", 1e-12),
        ({"model_type": "dinov2", "layer_norm_eps": None}, "gelu", 1e-6),
        ({"model_type": "clip_vision_model", "hidden_act": "quick_gelu", "layer_norm_eps": 1e-3}, "quick_gelu", 1e-3),
        ({"model_type": "clip", "vision_config": {"hidden_act": "gelu"}}, "gelu", 1e-12),
        ({"model_type": "siglip", "hidden_act": None, "vision_config": {}}, "gelu_tanh", 1e-12),
        ({"model_type": "swin"}, None, None),
    ],
)
def test_what_transformers_says_of_weights_for_a_model_of_timms(
    tmp_path: Path, change: dict[str, Any], activation: str | None, epsilon: float | None
) -> None:
    found = describe(folder(tmp_path, {**VIT, **change}))
    assert found is not None
    assert (found.library, found.architecture) == ("transformers", None)
    assert (found.arguments.get("act_layer"), found.layer_norm_eps) == (activation, epsilon)


def test_of_models_that_timm_has_otherwise_only_images_and_names_are_taken(tmp_path: Path) -> None:
    config = {**VIT, "model_type": "beit", "hidden_act": "mish", "id2label": {"0": "ant", "1": "bee"}}
    found = describe(folder(tmp_path, config, {"size": 96, "image_mean": [0.5] * 3}))
    assert found is not None
    assert (found.architecture, found.arguments, found.layer_norm_eps) == (None, {}, None)
    assert (found.class_names, found.image_size, found.preprocess["mean"]) == (("ant", "bee"), (96, 96), (0.5,) * 3)


HALVES = {"mean": (0.5,) * 3, "std": (0.5,) * 3}


@pytest.mark.parametrize(
    ("preprocessor", "size", "expected"),
    [
        ({"size": 224, "resample": 2}, (224, 224), {"crop_mode": "squash", "crop_pct": 1, "interpolation": "bilinear"}),
        ({"size": {"height": 96, "width": 384}}, (96, 384), {"crop_mode": "squash", "crop_pct": 1.0, **HALVES}),
        (
            {"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}, "do_center_crop": True},
            (224, 224),
            {"crop_mode": "center", "crop_pct": 0.875},
        ),
        (
            {"size": 256, "crop_size": 224, "do_center_crop": True},
            (224, 224),
            {"crop_mode": "squash", "crop_pct": 0.875},
        ),
        ({"size": 224, "crop_size": 96, "do_center_crop": False}, (224, 224), {"crop_mode": "squash", "crop_pct": 1.0}),
        ({"size": {"shortest_edge": 224}, "do_center_crop": False}, (224, 224), {"crop_mode": "center", "crop_pct": 1}),
        ({"image_mean": [0.1] * 3, "image_std": [0.25] * 3}, (224, 224), {"mean": (0.1,) * 3, "std": (0.25,) * 3}),
        ({"do_normalize": False, "image_mean": [0.1] * 3}, (224, 224), {"mean": (0.0,) * 3, "std": (1.0,) * 3}),
        ({"do_rescale": False, "do_normalize": False}, (224, 224), {"mean": (0.0,) * 3, "std": (1 / 255,) * 3}),
        (
            {"rescale_factor": 2 / 255, "image_mean": [1.0] * 3, "image_std": [0.5] * 3},
            (224, 224),
            {"std": (0.25,) * 3},
        ),
        ({"rescale_factor": 0.00392156862745098}, (224, 224), HALVES),
    ],
)
def test_what_a_preprocessor_says(
    tmp_path: Path, preprocessor: dict[str, Any], size: tuple[int, int], expected: dict[str, Any]
) -> None:
    found = describe(folder(tmp_path, VIT, preprocessor))
    assert found is not None
    assert found.image_size == size
    for name, value in expected.items():
        assert found.preprocess[name] == (value if isinstance(value, str) else pytest.approx(value))
    assert set(found.sources.values()) == {"preprocessor_config.json"}


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ({"0": "cat", "1": "dog"}, ("cat", "dog")),
        ({"1": "dog", "0": "cat"}, ("cat", "dog")),
        ({"0": "LABEL_0", "1": "LABEL_1"}, None),
        ({"0": "cat", "2": "dog"}, None),
        ({"0": " ", "1": "dog"}, None),
        ({"0": "\x1b[31mcat", "1": "dog"}, ("[31mcat", "dog")),
    ],
)
def test_class_names_of_a_configuration(tmp_path: Path, labels: dict[str, str], names: tuple[str, ...] | None) -> None:
    found = describe(folder(tmp_path, {**VIT, "id2label": labels}))
    assert found is not None
    assert found.class_names == names


@pytest.mark.parametrize("config", [None, {}, {"some": "settings"}, [1, 2], "7"])
def test_other_files_of_that_name_say_nothing(tmp_path: Path, config: Any) -> None:
    assert describe(folder(tmp_path, config)) is None


def timm_with(**change: Any) -> dict[str, Any]:
    return {**TIMM, **change}


DAMAGED: dict[str, Any] = {
    "no JSON": "{",
    "nested without end": "[" * 3000,
    "not a number": '{"model_type": "vit", "layer_norm_eps": NaN}',
    "digits without end": '{"model_type": "vit", "hidden_size": ' + "9" * 5000 + "}",
    "architecture is a path": timm_with(architecture="../../etc"),
    "architecture is a number": timm_with(architecture=7),
    "arguments are a list": timm_with(model_args=[1]),
    "an argument is a table": timm_with(model_args={"norm_layer": {"x": 1}}),
    "a model without end": timm_with(model_args={"depth": 10**9}),
    "a model too wide": timm_with(model_args={"embed_dim": 10**9}),
    "patches of no pixel": timm_with(model_args={"patch_size": 0}),
    "no heads": timm_with(model_args={"num_heads": 0}),
    "fewer registers than none": timm_with(model_args={"reg_tokens": -1}),
    "an image of three sides": timm_with(model_args={"img_size": [1, 2, 3]}),
    "a size of words": timm_with(model_args={"img_size": ["a", "b"]}),
    "a size of one side": timm_with(pretrained_cfg={"input_size": [3, 224]}),
    "mean is a word": timm_with(pretrained_cfg={"mean": "half"}),
    "no mean": timm_with(pretrained_cfg={"mean": []}),
    "a crop of nothing": timm_with(pretrained_cfg={"crop_pct": 0}),
    "labels are numbers": timm_with(label_names=[1, 2]),
    "depth is a word": {**VIT, "num_hidden_layers": "many"},
    "no depth": {**VIT, "num_hidden_layers": 0},
    "a depth without end": {**VIT, "num_hidden_layers": 10**6},
    "heads of nothing": {**VIT, "num_attention_heads": -3},
    "an unknown activation": {**VIT, "hidden_act": "mish"},
    "an epsilon of one": {**VIT, "layer_norm_eps": 1},
    "labels are a list": {**VIT, "id2label": ["cat"]},
    "a patch of three sides": {**VIT, "patch_size": [1, 2, 3]},
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_configuration_is_refused(tmp_path: Path, case: str) -> None:
    message = refused(lambda: describe(folder(tmp_path, DAMAGED[case])), "config", kind=CheckpointError)
    assert len(message) < 1000


@pytest.mark.parametrize(
    "preprocessor",
    [
        "{",
        {"size": "large"},
        {"size": {"height": "x", "width": 3}},
        {"resample": 9},
        {"image_mean": "x"},
        {"image_mean": [0.5, "x", 0.5]},
        {"crop_size": [224]},
        {"do_resize": "perhaps"},
        {"rescale_factor": 0},
        {"size": 0, "crop_size": 224, "do_center_crop": True},
        {"size": {"shortest_edge": -5}, "crop_size": 224, "do_center_crop": True},
    ],
)
def test_a_damaged_preprocessor_is_refused(tmp_path: Path, preprocessor: Any) -> None:
    refused(lambda: describe(folder(tmp_path, VIT, preprocessor)), kind=CheckpointError)
