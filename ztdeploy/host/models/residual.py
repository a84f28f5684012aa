"""What families share whose blocks are `x + drop_path1(.. attn(norm1(x)) ..)` and then the same with an MLP."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from ztdeploy.core.errors import ModelError
from ztdeploy.core.preprocess_spec import ImageSize, Output
from ztdeploy.core.schedule import Architecture
from ztdeploy.host.models.adapter import ModelAdapter, TapSink
from ztdeploy.host.models.hooks import Undo, change_option, on_input, on_output, switch

if TYPE_CHECKING:
    from ztdeploy.host.models.text_head import TextEmbeddings


class ResidualAdapter(ModelAdapter):
    """Models with `blocks` and `patch_embed`, whose blocks have `norm1`, `attn`, `drop_path1` and `mlp`."""

    model: Any
    #: Blocks whose attention and MLP can be told apart from outside.
    plain_block: ClassVar[type[nn.Module]]
    #: The name under which attention takes what is added to its logits.
    logit_bias: ClassVar[str] = "attn_mask"
    #: Without these, a block can't be reached.
    parts: ClassVar[tuple[str, ...]] = ("attn.attn_drop", "attn.k_norm", "attn.q_norm", "attn.fused_attn", "mlp")

    def describe(self) -> Architecture:
        model = self.model
        if len(model.blocks) == 0 or any(_missing(block, self.parts) for block in model.blocks):
            missing = _missing(model.blocks[0], self.parts) if len(model.blocks) else "any block"
            raise unsound(model, f"its blocks lack {missing}", f"blocks with {' and '.join(self.parts[:2])}")
        self.check_blocks()
        published = tuple((getattr(model, "pretrained_cfg", None) or {}).get("input_size", ())[-2:])
        if tuple(self.image_size) != published:
            check_divides(self.image_size, model.patch_embed.patch_size)
        return Architecture(
            depth=len(model.blocks),
            embed_dim=model.embed_dim,
            num_heads=model.blocks[0].attn.num_heads,
            mlp_dim=_mlp_dim(model.blocks[0].mlp, model.embed_dim),
            patch_tokens=model.patch_embed.num_patches,
            prefix_tokens=model.num_prefix_tokens,
            class_token=self.reads_class_token(),
            patch_dim=self.patch_dim(),
            num_classes=model.num_classes,
            grid=tuple(model.patch_embed.grid_size),
        )

    def give(self, output: Output) -> None:
        self.output = output
        if output != "logits":
            self.model.reset_classifier(0)
            self.architecture = self.architecture.model_copy(update={"num_classes": 0})

    def answer_with(self, texts: TextEmbeddings) -> None:
        from ztdeploy.host.models.text_head import with_text_head

        embed, head = self.model.patch_embed, self.model.head
        if getattr(self.model, "head_dist", None) is not None:
            super().answer_with(texts)  # it has two heads
        with torch.no_grad():
            image = torch.zeros(1, embed.proj.in_channels, *self.image_size)
            dimension = self.model(image).shape[-1]
        self.model.head = with_text_head(head, texts, dimension)
        self.architecture = self.architecture.model_copy(update={"num_classes": len(texts.matrix)})

    @abstractmethod
    def check_blocks(self) -> None:
        """
        Raises:
            ModelError: blocks or embeddings that this family does not know.
        """

    def reads_class_token(self) -> bool:
        """Whether the head reads a class token: one that it leaves out tells nothing about what matters."""
        return self.has_class_token() and self.model.global_pool in ("token", "prr")

    def has_class_token(self) -> bool:
        return getattr(self.model, "cls_token", None) is not None

    def patch_dim(self) -> int:
        """Multiply-adds per patch and output channel of the patch embedding."""
        height, width = self.model.patch_embed.patch_size
        return int(self.model.patch_embed.proj.in_channels * height * width)

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return list(self.model.blocks)

    def tap(self, index: int, sink: TapSink, *, attention: bool, keys: bool, values: bool, queries: bool) -> list[Undo]:
        module = self.model.blocks[index].attn
        undo: list[Undo] = []
        if attention:
            undo.append(switch(module, "fused_attn", False))
            undo.append(on_input(module.attn_drop, lambda matrix: setattr(sink, "attention", matrix)))
        if keys:
            undo += self.tap_keys(module, lambda part: setattr(sink, "keys", part))
        if values:
            undo += self.tap_values(module, lambda part: setattr(sink, "values", part))
        if queries:
            undo += self.tap_queries(module, lambda part: setattr(sink, "queries", part))
        return undo

    def tap_keys(self, attention: Any, take: Callable[[Tensor], None]) -> list[Undo]:
        return [on_output(attention.k_norm, take)]

    def tap_queries(self, attention: Any, take: Callable[[Tensor], None]) -> list[Undo]:
        return [on_output(attention.q_norm, take)]

    def tap_values(self, attention: Any, take: Callable[[Tensor], None]) -> list[Undo]:
        return [tap_projection(attention, 2, take)]

    def between(self, index: int, reduce: Callable[[Tensor], Tensor]) -> list[Undo]:
        """The block adds its attention branch to nothing; a hook at the branch's end adds the real input, and reduces.

        So whatever the branch holds (norm, LayerScale, drop path) is the block's own, and nothing is computed twice.
        """
        block: Any = self.model.blocks[index]
        kind: type[nn.Module] = type(block)
        if kind is not self.plain_block:
            raise ModelError(
                f"method that works between attention and MLP, for blocks of type {kind.__name__}",
                f"a plain {self.plain_block.__name__}",
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

    def bias(self, index: int, bias: Callable[[], Tensor | None]) -> list[Undo]:
        module = self.model.blocks[index].attn
        if self.logit_bias not in inspect.signature(module.forward).parameters:
            raise ModelError(
                f"method that merges tokens, for an attention of type {type(module).__name__}",
                f"an attention that takes {self.logit_bias}",
                "choose a method that drops tokens, such as zero-tprune",
            )

        def add(given: Tensor | None) -> Tensor | None:
            value = bias()
            return given if value is None else value if given is None else given + value

        return [change_option(module, self.logit_bias, add)]

    def scale(self, index: int, scale: Callable[[], Tensor | None]) -> list[Undo]:
        def multiply(_attention: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            value = scale()
            return inputs if value is None else (inputs[0] * value, *inputs[1:])

        return [self.model.blocks[index].attn.register_forward_pre_hook(multiply).remove]

    def update(self, index: int, update: Callable[[], Tensor | None]) -> list[Undo]:
        """LayerScale and drop path, which follow, treat tokens one by one."""

        def multiply(_branch: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
            value = update()
            return output if value is None else output * value

        block = self.model.blocks[index]
        return [branch.register_forward_hook(multiply).remove for branch in (block.attn, block.mlp)]


def tap_projection(attention: Any, part: int, take: Callable[[Tensor], None]) -> Undo:
    """Queries, keys or values (0, 1, 2) of a joint projection `qkv`, `[B, H, N, d]`.

    They are a view: a bias that the block adds in place afterwards is in it when the pruning layer reads it.
    """

    def split(output: Tensor) -> None:
        parts = output.view(*output.shape[:2], 3, attention.num_heads, -1)
        take(parts[:, :, part].transpose(1, 2))

    return on_output(attention.qkv, split)


def add_bias_apart(attention: Any) -> list[Undo]:
    """Where the bias of queries, keys and values is no part of the projection module, have that module called."""
    return [switch(attention, "qkv_bias_separate", True)] if getattr(attention, "q_bias", None) is not None else []


def check_divides(size: ImageSize, patch: tuple[int, int]) -> None:
    """
    Raises:
        ModelError: patches leave a rest.
    """
    nearest = ImageSize(*(max(1, round(side / part)) * part for side, part in zip(size, patch, strict=True)))
    if size != nearest:
        raise ModelError(
            f"image size {size} with patches of {patch[0]} x {patch[1]}",
            f"a multiple of {patch[0] if patch[0] == patch[1] else 'each side'}, such as {nearest}",
            "change --image-size",
        )


def unsound(model: nn.Module, found: str, expected: str) -> ModelError:
    return ModelError(
        f"{type(model).__name__} cannot be pruned: {found}", expected, "choose a model that 'ztdeploy models' lists"
    )


def _mlp_dim(mlp: nn.Module, embed_dim: int) -> int:
    """The hidden width of a two-layer MLP with as many multiply-adds; the same for plain MLPs, right for gated ones."""
    weights = sum(layer.weight.numel() for layer in mlp.modules() if isinstance(layer, nn.Linear))
    return round(weights / (2 * embed_dim))


def _missing(block: nn.Module, paths: Sequence[str]) -> str:
    """The first part of a block that pruning needs and that is not there; empty when all are."""
    for path in ("attn", "attn.num_heads", *paths):
        target: Any = block
        for name in path.split("."):
            target = getattr(target, name, None)
        if target is None:
            return path
    return ""
