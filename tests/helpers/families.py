"""Models by name, but small, with weights that let nothing be ignored; and what a pruned one must give.

Names are timm's, or `hf/` and a class of the library transformers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from helpers.models import randomised
from ztdeploy.core.keep_ratio import uniform_schedule
from ztdeploy.host.models import adapt
from ztdeploy.host.models.adapter import ModelAdapter
from ztdeploy.host.models.hf_model import HubModel, library
from ztdeploy.host.models.lvvit import SIZES, LvVit
from ztdeploy.host.pruning.pruned_model import PrunedModel

SMALL: dict[str, Any] = {"embed_dim": 48, "depth": 3, "num_heads": 3, "num_classes": 7}


@dataclass(frozen=True)
class Member:
    """A model of a family, by its name, and what is known about it without our adapters."""

    family: str
    prefix: int  #: how many prefix tokens it has
    class_token: bool  #: whether its head reads a class token
    patch: int = 16
    arguments: dict[str, Any] = field(default_factory=dict)

    @property
    def image_size(self) -> int:
        return 5 * self.patch  # an odd side: what is wrong by a row or column shows


def _vit(prefix: int, *, class_token: bool = False, patch: int = 16, **arguments: Any) -> Member:
    return Member("vit", prefix, class_token, patch, arguments)


def _eva(prefix: int, *, class_token: bool = False, patch: int = 16, **arguments: Any) -> Member:
    return Member("eva", prefix, class_token, patch, arguments)


def _hf(prefix: int, *, class_token: bool = True, patch: int = 16, **arguments: Any) -> Member:
    return Member("transformers", prefix, class_token, patch, arguments)


MEMBERS: dict[str, Member] = {
    # plain, AugReg, DeiT
    "vit_base_patch16_224": _vit(1, class_token=True),
    "vit_base_patch32_224": _vit(1, class_token=True, patch=32),
    "deit_tiny_patch16_224": _vit(1, class_token=True),
    "deit_small_distilled_patch16_224": _vit(2, class_token=True),
    "deit3_small_patch16_224": _vit(1, class_token=True),
    "flexivit_small": _vit(1, class_token=True),
    "vit_base_patch16_rpn_224": _vit(0),
    # MAE and others whose average is normalised; without class token; with registers
    "eva_large_patch14_196": _vit(1, patch=14),
    "vit_medium_patch16_gap_256": _vit(0),
    "vit_base_patch16_reg4_gap_256": _vit(4),
    "vit_so150m_patch16_reg4_map_256": _vit(4),
    "beit3_base_patch16_224": _vit(1),
    # CLIP, SigLIP, SigLIP 2 and other towers
    "vit_base_patch16_clip_224": _vit(1, class_token=True),
    "vit_base_patch16_clip_quickgelu_224": _vit(1, class_token=True),
    "vit_base_patch16_siglip_224": _vit(0),
    "vit_base_patch16_siglip_gap_224": _vit(0),
    "vit_so400m_patch16_siglip_256": _vit(0),
    "aimv2_large_patch14_224": _vit(0, patch=14),
    "vit_intern300m_patch14_448": _vit(1, class_token=True, patch=14),
    "vit_base_patch16_radio_v3": _vit(8, class_token=True),
    # DINOv2
    "vit_small_patch14_dinov2": _vit(1, class_token=True, patch=14),
    "vit_small_patch14_reg4_dinov2": _vit(5, class_token=True, patch=14),
    "vit_giant_patch14_dinov2": _vit(1, class_token=True, patch=14),
    # EVA, EVA-02, DINOv3, RoPE ViT, Perception Encoder, Sapiens
    "eva_giant_patch14_224": _eva(1, patch=14),
    "eva02_tiny_patch14_224": _eva(1, patch=14),
    "eva02_base_patch16_clip_224": _eva(1, class_token=True),
    "eva02_large_patch14_clip_224": _eva(1, class_token=True, patch=14),
    "vit_small_patch16_dinov3": _eva(5),
    "vit_small_patch16_dinov3_qkvb": _eva(5),
    "vit_base_patch16_rope_224": _eva(1, class_token=True),
    "vit_base_patch16_rope_mixed_224": _eva(1, class_token=True),
    "vit_pe_core_tiny_patch16_384": _eva(1),
    "vit_pe_spatial_tiny_patch16_512": _eva(1),
    "vit_base_patch16_sapiens2": _eva(9, class_token=True, num_kv_heads=1),
    # BEiT
    "beit_base_patch16_224": Member("beit", 1, class_token=False),
    "beitv2_base_patch16_224": Member("beit", 1, class_token=False),
    # LV-ViT
    "lvvit_s": Member("lvvit", 1, class_token=True),
    # transformers
    "hf/ViTModel": _hf(1),
    "hf/ViTForImageClassification": _hf(1),
    "hf/ViTMSNModel": _hf(1),
    "hf/ViTMSNForImageClassification": _hf(1),
    "hf/ViTMAEModel": _hf(1, mask_ratio=0.5),
    "hf/DeiTModel": _hf(2),
    "hf/DeiTForImageClassification": _hf(2),
    "hf/DeiTForImageClassificationWithTeacher": _hf(2),
    "hf/Dinov2Model": _hf(1, patch=14),
    "hf/Dinov2ForImageClassification": _hf(1, patch=14, use_swiglu_ffn=True),
    "hf/Dinov2WithRegistersModel": _hf(5, patch=14, num_register_tokens=4),
    "hf/Dinov2WithRegistersForImageClassification": _hf(3, patch=14, num_register_tokens=2),
    "hf/DINOv3ViTModel": _hf(5, num_register_tokens=4),
    "hf/CLIPVisionModel": _hf(1),
    "hf/CLIPVisionModelWithProjection": _hf(1, projection_dim=20),
    "hf/CLIPForImageClassification": _hf(1, class_token=False),
    "hf/SiglipVisionModel": _hf(0, class_token=False),
    "hf/SiglipForImageClassification": _hf(0, class_token=False),
    "hf/BeitModel": _hf(1, use_shared_relative_position_bias=True, use_mean_pooling=False),
    "hf/BeitForImageClassification": _hf(1, class_token=False, use_relative_position_bias=True),
}


def member(name: str, seed: int = 0, **arguments: Any) -> Any:
    """A small model of that name, every parameter drawn anew."""
    facts = MEMBERS[name]
    if facts.family == "transformers":
        return HubModel(library_model(name, seed, **arguments), None)
    given = {**SMALL, "img_size": facts.image_size, **facts.arguments, **arguments}
    torch.manual_seed(seed)  # rotary frequencies of some are drawn
    own = name in SIZES
    model: Any = LvVit(damping=SIZES[name][0]["damping"], **given) if own else timm.create_model(name, **given)
    return randomised(model, seed)


def library_model(name: str, seed: int = 0, depth: int = 3, **arguments: Any) -> Any:
    """A small model of the library's own, every parameter drawn anew."""
    pytest.importorskip("transformers")  # it needs Python 3.11
    facts, made = MEMBERS[name], getattr(library(), name.removeprefix("hf/"))
    sizes = {"hidden_size": 48, "num_hidden_layers": depth, "num_attention_heads": 3, "intermediate_size": 96}
    given = {**sizes, "image_size": facts.image_size, "patch_size": facts.patch, "num_labels": 7}
    given |= {**facts.arguments, **arguments}
    if made.config_class.sub_configs:
        given = {"vision_config": given, "num_labels": 7}
    return randomised(made(made.config_class(**given)), seed)


def adapter_of(name: str, seed: int = 0, **arguments: Any) -> ModelAdapter:
    return adapt(member(name, seed, **arguments), MEMBERS[name].image_size)


def images_for(name: str, batch: int = 3, seed: int = 0) -> Tensor:
    """fp32 `[B, 3, S, S]`."""
    size = MEMBERS[name].image_size
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))


def check_read_tokens(adapter: ModelAdapter, images: Tensor) -> None:
    """The architecture tells how many of the first tokens behind the last block an output depends on."""
    seen: list[Tensor] = []
    hook = adapter.blocks[-1].register_forward_hook(lambda _block, _inputs, tokens: seen.append(tokens))
    with PrunedModel(adapter, uniform_schedule(1.0, len(adapter.blocks))) as pruned:
        output = pruned(images)[0]
    hook.remove()
    (gradients,) = torch.autograd.grad((output * torch.randn_like(output)).sum(), seen)
    read, sizes = int(gradients.abs().sum((0, 2)).nonzero().max()) + 1, adapter.architecture
    # Of all patches, a head that takes the highest logits has gradients for some.
    assert read == sizes.read_tokens if sizes.read_tokens is not None else read > sizes.prefix_tokens


def chained(kept: Sequence[Tensor]) -> list[Tensor]:
    """Per pruning layer, which of the image's tokens are left behind it."""
    places: list[Tensor] = []
    for indices in kept:
        places.append(places[-1].gather(1, indices) if places else indices)
    return places


@contextmanager
def only(model: Any, behind: dict[int, Tensor]) -> Iterator[None]:
    """Behind each block, the tokens that are not among `behind[block]` (`[B, k]`, of the image's) are nobody's to see.

    No token is removed, no table is gathered: all keep their places, while attention to those that are gone is taken
    out and the rest scaled up to 1. Only what the head reads is picked in the end.
    """
    if isinstance(model, HubModel):
        yield from _only(model, behind)
        return
    gone, undo = {}, []
    present: Tensor | None = None
    for index in range(len(model.blocks)):
        if present is not None:
            gone[index] = present
        present = behind.get(index, present)

    def see(index: int) -> Any:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
            seen = torch.zeros(inputs[0].shape[0], inputs[0].shape[-1]).scatter(1, gone[index], 1.0)
            left = inputs[0] * seen[:, None, None, :]
            return (left / left.sum(-1, keepdim=True),)

        return hook

    def pick(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        assert present is not None
        return (inputs[0].gather(1, present.unsqueeze(-1).expand(-1, -1, inputs[0].shape[-1])),)

    for index in gone:
        attention = model.blocks[index].attn
        attention.fused_attn = False
        undo.append(attention.attn_drop.register_forward_pre_hook(see(index)))
    undo.append(model.norm.register_forward_pre_hook(pick))
    try:
        yield
    finally:
        for handle in undo:
            handle.remove()


def _only(model: HubModel, behind: dict[int, Tensor]) -> Iterator[None]:
    """The same by masks, in the library's own attention."""
    undo = []
    present: Tensor | None = None
    implementation = model.config._attn_implementation
    model.tower.set_attn_implementation("eager")

    def masking(tokens: Tensor) -> Any:
        def hook(_module: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> Any:
            count = model.num_prefix_tokens + model.patch_embed.num_patches
            mask = torch.full((len(tokens), count), -torch.inf).scatter(1, tokens, 0.0)[:, None, None, :]
            given = options.pop("attention_mask", inputs[1] if len(inputs) > 1 else None)
            return inputs[:1], {**options, "attention_mask": mask if given is None else mask + given}

        return hook

    def pick(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        assert present is not None
        return output.gather(1, present.unsqueeze(-1).expand(-1, -1, output.shape[-1]))

    for index, block in enumerate(model.blocks):
        if present is not None:
            module = block.get_submodule(model.parts.attention)
            undo.append(module.register_forward_pre_hook(masking(present), with_kwargs=True))
        present = behind.get(index, present)
    undo.append(model.blocks[-1].register_forward_hook(pick))
    try:
        yield
    finally:
        model.tower.set_attn_implementation(implementation)
        for handle in undo:
            handle.remove()
