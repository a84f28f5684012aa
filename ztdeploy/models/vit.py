"""timm's plain `VisionTransformer`: ViT, AugReg, DeiT, distilled DeiT, DINO and their kin."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from timm.layers import PatchEmbed
from timm.models.vision_transformer import Attention, VisionTransformer
from torch import Tensor, nn

from ztdeploy.errors import ModelError
from ztdeploy.models.adapter import ModelAdapter, TapSink
from ztdeploy.schedule import Architecture


class VitAdapter(ModelAdapter):
    """Reads the attention matrix as the input of `attn_drop`, and the keys as the output of `k_norm`."""

    family = "vit"
    model: VisionTransformer

    @classmethod
    def accepts(cls, model: nn.Module) -> bool:
        return isinstance(model, VisionTransformer)

    def describe(self) -> Architecture:
        model: Any = self.model
        if not isinstance(model.patch_embed, PatchEmbed):
            raise _unsound(model, f"its patch embedding is a {type(model.patch_embed).__name__}", "a plain PatchEmbed")
        if len(model.blocks) == 0 or any(_missing(block) for block in model.blocks):
            missing = _missing(model.blocks[0]) if len(model.blocks) else "any block"
            raise _unsound(model, f"its blocks lack {missing}", "blocks with attn.attn_drop and attn.k_norm")
        attention = model.blocks[0].attn
        if not all(isinstance(block.attn, Attention) for block in model.blocks):
            raise _unsound(model, f"its attention is a {type(attention).__name__}", "timm's plain Attention")
        height, width = model.patch_embed.patch_size
        published = (getattr(model, "pretrained_cfg", None) or {}).get("input_size", (0,))[-1]
        if self.image_size != published and (self.image_size % height or self.image_size % width):
            raise ModelError(
                f"image size {self.image_size} with patches of {height} x {width}",
                f"a multiple of {height}, such as {max(1, round(self.image_size / height)) * height}",
                "change --image-size",
            )
        return Architecture(
            depth=len(model.blocks),
            embed_dim=model.embed_dim,
            num_heads=attention.num_heads,
            mlp_dim=_mlp_dim(model.blocks[0].mlp, model.embed_dim),
            patch_tokens=model.patch_embed.num_patches,
            prefix_tokens=model.num_prefix_tokens,
            class_token=bool(model.has_class_token),
            patch_dim=model.patch_embed.proj.in_channels * height * width,
            num_classes=model.num_classes,
        )

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return list(self.model.blocks)

    def tap(self, index: int, sink: TapSink, *, attention: bool, keys: bool) -> list[Callable[[], None]]:
        module: Any = self.model.blocks[index].attn
        undo: list[Callable[[], None]] = []
        if attention:
            fused = module.fused_attn

            def take_attention(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
                sink.attention = inputs[0]

            module.fused_attn = False
            undo.append(lambda: setattr(module, "fused_attn", fused))
            undo.append(module.attn_drop.register_forward_pre_hook(take_attention).remove)
        if keys:

            def take_keys(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
                sink.keys = output

            undo.append(module.k_norm.register_forward_hook(take_keys).remove)
        return undo


def _mlp_dim(mlp: nn.Module, embed_dim: int) -> int:
    """The hidden width of a two-layer MLP with as many multiply-adds; the same for plain MLPs, right for gated ones."""
    weights = sum(layer.weight.numel() for layer in mlp.modules() if isinstance(layer, nn.Linear))
    return round(weights / (2 * embed_dim))


def _missing(block: nn.Module) -> str:
    """The first part of a block that pruning needs and that is not there; empty when all are."""
    for path in ("attn", "attn.attn_drop", "attn.k_norm", "attn.fused_attn", "attn.num_heads", "mlp"):
        target: Any = block
        for name in path.split("."):
            target = getattr(target, name, None)
        if target is None:
            return path
    return ""


def _unsound(model: nn.Module, found: str, expected: str) -> ModelError:
    return ModelError(
        f"{type(model).__name__} cannot be pruned: {found}", expected, "choose a model that 'ztdeploy models' lists"
    )
