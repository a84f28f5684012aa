"""timm's plain `VisionTransformer`: ViT, AugReg, DeiT, distilled DeiT, DINO and their kin."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from timm.layers import PatchEmbed
from timm.models.vision_transformer import Attention, Block, VisionTransformer
from torch import Tensor, nn

from ztdeploy.errors import ModelError
from ztdeploy.models.adapter import ModelAdapter, TapSink
from ztdeploy.schedule import Architecture


class VitAdapter(ModelAdapter):
    """Reads attention where it enters `attn_drop`, keys and queries behind their norms, and values behind `qkv`."""

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

    def tap(
        self, index: int, sink: TapSink, *, attention: bool, keys: bool, values: bool, queries: bool
    ) -> list[Callable[[], None]]:
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
        if values:

            def take_values(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
                parts = output.view(*output.shape[:2], 3, module.num_heads, -1)
                sink.values = parts[:, :, 2].transpose(1, 2)

            undo.append(module.qkv.register_forward_hook(take_values).remove)
        if queries:

            def take_queries(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
                sink.queries = output

            undo.append(module.q_norm.register_forward_hook(take_queries).remove)
        return undo

    def between(self, index: int, reduce: Callable[[Tensor], Tensor]) -> list[Callable[[], None]]:
        """The block adds its attention branch to nothing; a hook at the branch's end adds the real input, and reduces.

        So whatever the branch holds (norm, LayerScale, drop path) is the block's own, and nothing is computed twice.
        """
        block: Any = self.model.blocks[index]
        if type(block) is not Block:
            raise ModelError(
                f"method that works between attention and MLP, for blocks of type {type(block).__name__}",
                "timm's plain Block",
                "choose a method that prunes behind blocks, such as zero-tprune",
            )
        held: list[Tensor] = []

        def hold_input(_block: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            held[:] = inputs[:1]
            return (0.0, *inputs[1:])

        def give_input(_norm: nn.Module, _inputs: Any) -> Tensor:
            return held[0]

        def add_and_reduce(_drop_path: nn.Module, _inputs: Any, branch: Tensor) -> Tensor:
            return reduce(held.pop() + branch)

        return [
            block.register_forward_pre_hook(hold_input).remove,
            block.norm1.register_forward_pre_hook(give_input).remove,
            block.drop_path1.register_forward_hook(add_and_reduce).remove,
        ]

    def bias(self, index: int, bias: Callable[[], Tensor | None]) -> list[Callable[[], None]]:
        module: Any = self.model.blocks[index].attn
        if "attn_mask" not in inspect.signature(module.forward).parameters:
            raise ModelError(
                f"method that merges tokens, for an attention of type {type(module).__name__}",
                "an attention that takes attn_mask",
                "choose a method that drops tokens, such as zero-tprune",
            )

        def add_bias(_attention: nn.Module, inputs: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            value, given = bias(), options.get("attn_mask")
            if value is not None:
                options = {**options, "attn_mask": value if given is None else given + value}
            return inputs, options

        return [module.register_forward_pre_hook(add_bias, with_kwargs=True).remove]

    def scale(self, index: int, scale: Callable[[], Tensor | None]) -> list[Callable[[], None]]:
        module: Any = self.model.blocks[index].attn

        def multiply(_attention: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            value = scale()
            return inputs if value is None else (inputs[0] * value, *inputs[1:])

        return [module.register_forward_pre_hook(multiply).remove]


def _mlp_dim(mlp: nn.Module, embed_dim: int) -> int:
    """The hidden width of a two-layer MLP with as many multiply-adds; the same for plain MLPs, right for gated ones."""
    weights = sum(layer.weight.numel() for layer in mlp.modules() if isinstance(layer, nn.Linear))
    return round(weights / (2 * embed_dim))


def _missing(block: nn.Module) -> str:
    """The first part of a block that pruning needs and that is not there; empty when all are."""
    for path in ("attn", "attn.attn_drop", "attn.k_norm", "attn.q_norm", "attn.fused_attn", "attn.num_heads", "mlp"):
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
