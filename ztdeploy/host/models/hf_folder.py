"""Folders and repositories in the form of `transformers`: `config.json`, weights, `preprocessor_config.json`.

All files are untrusted: no code comes from them, and none of their settings reach what would fetch or run something.
This module needs neither the library nor PyTorch; `hf_model.make` makes the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ztdeploy.core.errors import CheckpointError, ModelError, nearest
from ztdeploy.core.text import printable

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
#: Settings of a configuration that say nothing about a model and let the library fetch, run or replace something.
_IGNORED = {"attn_implementation", "experts_implementation", "fusion_config", "transformers_weights", "use_kernels"}
_IGNORED |= {"backbone", "backbone_kwargs", "use_pretrained_backbone", "use_timm_backbone"}


@dataclass(frozen=True)
class Kind:
    """What a `model_type` of the library's configurations stands for."""

    tower: str  #: the class of the vision tower, or of the whole where that is another model's
    processor: str  #: the library's image processor for it
    heads: tuple[str, ...] = ()  #: classes with a tower and a head
    #: Other classes that contain the tower, and the class that is made in their place.
    others: Mapping[str, str] = field(default_factory=dict)

    @property
    def classes(self) -> tuple[str, ...]:
        return (self.tower, *self.heads)

    def made_for(self, architecture: str) -> str | None:
        """The class to make for what a configuration calls `architectures`."""
        return architecture if architecture in self.classes else self.others.get(architecture)


def _kind(stem: str, processor: str, *heads: str, **others: str) -> Kind:
    """All names without the stem that they share."""
    named = {f"{stem}{name}": f"{stem}{made}" for name, made in others.items()}
    return Kind(f"{stem}Model", processor, tuple(f"{stem}{head}" for head in heads), named)


_CLASSIFIER, DEPTH, SEGMENTATION = "ForImageClassification", "ForDepthEstimation", "ForSemanticSegmentation"
#: `model_type` of towers within other models, under `backbone_config`.
_BACKBONES = ("dinov2", "dinov2_with_registers", "beit")
KINDS: Mapping[str, Kind] = {
    "vit": _kind("ViT", "ViT", _CLASSIFIER, ForMaskedImageModeling="Model"),
    "vit_msn": _kind("ViTMSN", "ViT", _CLASSIFIER),
    "vit_mae": _kind("ViTMAE", "ViT", ForPreTraining="Model"),
    "deit": _kind("DeiT", "DeiT", _CLASSIFIER, f"{_CLASSIFIER}WithTeacher", ForMaskedImageModeling="Model"),
    "dinov2": _kind("Dinov2", "Bit", _CLASSIFIER, Backbone="Model"),
    "dinov2_with_registers": _kind("Dinov2WithRegisters", "Bit", _CLASSIFIER, Backbone="Model"),
    "dinov3_vit": _kind("DINOv3ViT", "DINOv3ViT", Backbone="Model"),
    "clip_vision_model": _kind("CLIPVision", "CLIP", "ModelWithProjection"),
    "clip": Kind(
        "CLIPVisionModel", "CLIP", ("CLIPForImageClassification",), {"CLIPModel": "CLIPVisionModelWithProjection"}
    ),
    "siglip_vision_model": _kind("SiglipVision", "Siglip"),
    "siglip": Kind(
        "SiglipVisionModel", "Siglip", ("SiglipForImageClassification",), {"SiglipModel": "SiglipVisionModel"}
    ),
    "beit": _kind("Beit", "Beit", _CLASSIFIER, SEGMENTATION, ForMaskedImageModeling="Model"),
    "depth_anything": Kind(f"DepthAnything{DEPTH}", "DPT"),
    "dpt": Kind(f"DPT{DEPTH}", "DPT", (f"DPT{SEGMENTATION}",)),
}
_GRID = "it shrinks the grid of patches between its stages"
_WINDOWS = "its attention stays within windows of the image"
#: Why models of the library cannot be pruned soundly, by `model_type`.
REFUSED_TYPES: Mapping[str, str] = {
    **dict.fromkeys(("siglip2", "siglip2_vision_model"), "its number of patches depends on the image (NaFlex)"),
    **dict.fromkeys(("swin", "swinv2", "sam", "sam_vision_model", "sam2", "sam3", "vitdet", "rf_detr"), _WINDOWS),
    **dict.fromkeys(("hiera", "levit", "pvt", "pvt_v2", "segformer"), _GRID),
    **dict.fromkeys(("convnext", "convnextv2", "dinov3_convnext", "resnet"), "it has no attention between patches"),
}


@dataclass(frozen=True)
class HubConfig:
    """A configuration that was read, and the class of the library that is made from it."""

    kind: str  #: `model_type`
    made: str  #: name of the class
    values: Mapping[str, Any]  #: of the class's configuration


def read_config(data: Mapping[str, Any], where: str) -> HubConfig:
    """
    Args:
        data: the content of `config.json`.
        where: the folder or repository, in errors.

    Raises:
        ModelError: an architecture that is not supported, with its reason; code of the repository's own.
        CheckpointError: weights that are quantised.
    """
    check_no_code(data, where, CONFIG)
    if quantised := data.get("quantization_config"):
        method = quantised.get("quant_method") if isinstance(quantised, dict) else None
        raise CheckpointError(
            f"'{where}' holds quantised weights ({printable(str(method or 'by an unknown method'))})",
            "weights in fp32, fp16 or bf16; profiles of precision int8 quantise them",
            "give the folder that they were quantised from",
        )
    kind, architectures = str(data.get("model_type")), data.get("architectures")
    supported = f"one of {', '.join(KINDS)}"
    if kind in REFUSED_TYPES:
        raise ModelError(f"'{where}' cannot be pruned: {REFUSED_TYPES[kind]}", supported, "choose another model")
    if kind not in KINDS:
        given = f"'{where}' of model_type '{printable(kind)[:80]}', which is not supported"
        near = nearest(kind, KINDS, 0.8)
        raise ModelError(given, supported, f"is it a '{near}'?" if near else "choose another model")
    known = KINDS[kind]
    named = str(architectures[0]) if isinstance(architectures, list) and architectures else known.tower
    made = known.made_for(named)
    if made is None:
        given = f"'{where}' of class '{printable(named)[:80]}', whose output is neither one vector per image nor a map"
        expected = f"one of {', '.join((*known.classes, *known.others))}"
        raise ModelError(given, expected, "give the folder of its vision tower")
    _check_backbone(data, where, made)
    return HubConfig(kind, made, _values(data, made))


def _check_backbone(data: Mapping[str, Any], where: str, made: str) -> None:
    """
    Raises:
        ModelError: a model with another tower in it than those that are known.
    """
    inner = data.get("backbone_config")
    kind = str(inner.get("model_type")) if isinstance(inner, dict) else None
    if data.get("is_hybrid"):
        problem = "whose patches come from a convolutional network (is_hybrid)"
    elif not made.endswith((DEPTH, SEGMENTATION)) or (kind or "dinov2") in _BACKBONES:
        return
    else:
        reason = REFUSED_TYPES.get(kind or "", "which is not supported")
        problem = f"with a backbone of model_type '{printable(kind or '')[:80]}': {reason}"
    expected = f"a backbone that is one of {', '.join(_BACKBONES)}, or its own vision transformer"
    raise ModelError(f"'{where}', a {made} {problem}", expected, "choose another model")


def check_no_code(data: Mapping[str, Any], where: str, file: str) -> None:
    """
    Raises:
        ModelError: a configuration names code of its repository that the library would have to run.
    """
    if data.get("auto_map"):
        raise ModelError(
            f"'{where}', whose {file} names code of its own to run (auto_map)",
            "a class of transformers itself, because code from a folder or repository is never run",
            "if the model is one of these classes, remove auto_map",
        )


def _values(data: Mapping[str, Any], made: str) -> dict[str, Any]:
    """The part of a configuration that belongs to a class."""
    values = _harmless(data)
    vision = values.get("vision_config")
    if isinstance(vision, dict) and _CLASSIFIER not in made:
        return {**vision, **{name: values[name] for name in ("projection_dim",) if name in values}}
    return {name: value for name, value in values.items() if name != "text_config"}


def _harmless(data: Mapping[str, Any]) -> dict[str, Any]:
    """Without settings that must not reach the library, on any level."""
    return {
        name: _harmless(value) if isinstance(value, dict) and name.endswith("_config") else value
        for name, value in data.items()
        if not name.startswith("_") and name not in _IGNORED
    }
