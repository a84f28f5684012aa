"""Reach the blocks of a vision transformer from outside, by hooks and without a copy of its code."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar, Protocol

import torch
from timm.layers import PatchEmbed
from torch import Tensor, nn

from ztdeploy.core.errors import ModelError
from ztdeploy.core.preprocess_spec import ImageSize, Output
from ztdeploy.core.schedule import Architecture
from ztdeploy.host.models.text_head import TextEmbeddings, with_text_head

#: Undoes a change to a module. Several of them are called in reverse order.
Undo = Callable[[], None]


class TapSink(Protocol):
    """Receives a block's attention matrix, keys, values and queries during a forward pass."""

    attention: Tensor | None
    keys: Tensor | None
    values: Tensor | None
    queries: Tensor | None


class ModelAdapter:
    """A model with `patch_embed` and `blocks`, each `x + drop_path1(.. attn(norm1(x)) ..)` and the same with an MLP.

    Each family has a subclass in its own file and a line in `models.FAMILIES`. A family lists the parts of its models,
    and overrides how attention is read where that differs from timm's plain attention.
    """

    family: ClassVar[str]
    #: The last part of the names of timm's modules that define models of this family.
    timm_modules: ClassVar[tuple[str, ...]] = ()
    #: Names of models that timm lacks, which `make` makes.
    own_models: ClassVar[Collection[str]] = ()
    model_class: ClassVar[type[nn.Module]]
    #: Classes of blocks with an attention branch and an MLP branch that hooks can separate.
    plain_block: ClassVar[type[nn.Module]]
    #: Classes of attention that are supported; others are refused.
    embeddings: ClassVar[tuple[type[nn.Module], ...]] = (PatchEmbed,)
    block_types: ClassVar[tuple[type[nn.Module], ...]] = (nn.Module,)
    attentions: ClassVar[tuple[type[nn.Module], ...]]
    #: The keyword argument of attention for a bias.
    logit_bias: ClassVar[str] = "attn_mask"
    #: Parts of a block that pruning needs.
    parts: ClassVar[tuple[str, ...]] = ("attn.attn_drop", "attn.k_norm", "attn.q_norm", "attn.fused_attn", "mlp")

    model: Any
    whole: nn.Module  #: what takes the images: the model, or a module with the model in it
    output: Output = "logits"
    map_shape: tuple[int, int, int] | None = None  #: of the output "maps": channels, height and width
    #: Weights of pruning layers that a checkpoint holds beside the model's, by their names there; None: random ones.
    pruning_weights: Mapping[str, Tensor] | None = MappingProxyType({})

    def __init__(self, model: nn.Module, image_size: int | tuple[int, int]) -> None:
        self.model, self.whole, self.image_size = model, model, ImageSize.of(image_size)
        self.architecture = self.describe()

    @property
    def surrounded(self) -> bool:
        """Whether more than a classifier's head reads what the blocks give."""
        return self.map_shape is not None or self.whole is not self.model

    @property
    def reads_grid(self) -> bool:
        """Whether what reads the blocks' tokens needs one for each token of the image, as without pruning."""
        return self.output == "features" or self.surrounded

    @classmethod
    def make(cls, name: str, image_size: ImageSize | None, arguments: Mapping[str, Any]) -> nn.Module:
        """Make a model of `own_models` with random weights; its `pretrained_cfg` has timm's keys for pre-processing.

        Args:
            arguments: what differs from the published model, such as `num_classes`.

        Raises:
            ModelError: it cannot be made so.
        """
        raise NotImplementedError

    def describe(self) -> Architecture:
        """Sizes of the model.

        Raises:
            ModelError: the model is of this family and cannot be pruned soundly, with the reason.
        """
        model = self.model
        missing = next((path for block in model.blocks for path in _missing(block, self.parts)), None)
        if not len(model.blocks) or missing:
            raise _unsound(model, f"its blocks lack {missing or 'any block'}", f"with {' and '.join(self.parts[:2])}")
        self._check_types("patch embedding", model.patch_embed, self.embeddings)
        for block in model.blocks:
            self._check_types("block", block, self.block_types)
            self._check_types("attention", block.attn, self.attentions)
        self.check_model()
        published = tuple((getattr(model, "pretrained_cfg", None) or {}).get("input_size", ())[-2:])
        if tuple(self.image_size) != published:
            check_divides(self.image_size, model.patch_embed.patch_size)
        has_class_token = getattr(model, "cls_token", None) is not None
        # The hidden width of a plain MLP; of a gated one, that of a plain one with as many multiply-adds.
        weights = sum(part.weight.numel() for part in model.blocks[0].mlp.modules() if isinstance(part, nn.Linear))
        return Architecture(
            depth=len(model.blocks),
            embed_dim=model.embed_dim,
            num_heads=model.blocks[0].attn.num_heads,
            mlp_dim=round(weights / (2 * model.embed_dim)),
            patch_tokens=model.patch_embed.num_patches,
            prefix_tokens=model.num_prefix_tokens,
            # the attention of a class token that the head does not read says nothing about importance
            class_token=has_class_token and model.global_pool in ("token", "prr"),
            patch_dim=self.patch_dim(),
            num_classes=model.num_classes,
            grid=tuple(model.patch_embed.grid_size),
            read_tokens=self.read_tokens(),
        )

    def _check_types(self, what: str, part: nn.Module, known: tuple[type[nn.Module], ...]) -> None:
        if not isinstance(part, known):
            names = " or ".join(kind.__name__ for kind in known)
            raise _unsound(self.model, f"its {what} is a {type(part).__name__}", f"a plain {names}")

    def check_model(self) -> None:
        """Checks of a family's own.

        Raises:
            ModelError: the model cannot be pruned soundly.
        """

    def patch_dim(self) -> int:
        """Multiply-adds per patch and output channel of the patch embedding."""
        height, width = self.model.patch_embed.patch_size
        return int(self.model.patch_embed.proj.in_channels * height * width)

    def read_tokens(self) -> int | None:
        """How many of the first tokens the head reads; None: all of them."""
        if self.reads_grid or self.model.global_pool != "token":
            return None
        return 1 if getattr(self.model, "head_dist", None) is None else 2

    def surround(self, whole: nn.Module, shape: Sequence[int], macs: int) -> None:
        """Make a module with the model in it take the images.

        Args:
            shape: of what it gives for an image: `[classes]`, or of a map `[C, h, w]`, or `[h, w]`.
            macs: its multiply-adds for an image without the blocks.
        """
        self.whole, is_map = whole, len(shape) > 1
        if is_map:
            self.output, self.map_shape = "maps", (shape[0] if len(shape) > 2 else 1, *shape[-2:])  # type: ignore[assignment]
        facts = self.architecture
        head = 0 if is_map else shape[0] * facts.embed_dim
        around = max(0, macs - facts.patch_tokens * facts.patch_dim * facts.embed_dim - head)
        changes = {"num_classes": 0 if is_map else shape[0], "read_tokens": None, "class_token": False}
        changes |= {"around_macs": around, "reads_grid": True}
        self.architecture = self.architecture.model_copy(update=changes)

    def give(self, output: Output) -> None:
        """Change the model in place so that it gives this output.

        Raises:
            ModelError: it gives maps, or a module is around it, and something else is asked for; or the other way.
        """
        if self.surrounded or output == "maps":
            own = "maps" if self.map_shape is not None else "logits"
            if output not in ("logits", own):
                given = f"--output {output} of a {type(self.model).__name__} that gives {own}"
                raise ModelError(given, "its own output", "leave --output out, or give its backbone by itself")
            return
        self.output = output
        if output != "logits":
            self.model.reset_classifier(0)
            changes = {"num_classes": 0, "read_tokens": self.read_tokens(), "reads_grid": self.reads_grid}
            self.architecture = self.architecture.model_copy(update=changes)

    def answer_with(self, texts: TextEmbeddings) -> None:
        """Replace the model's head in place by a head of text embeddings.

        Raises:
            CheckpointError: the embeddings do not have the dimension of the model's own.
            ModelError: the model has several heads.
        """
        if any(getattr(self.model, head, None) is not None for head in ("head_dist", "aux_head")):
            raise ModelError(
                f"text head for a model of class {type(self.model).__name__}, which has two heads",
                "an image tower with one head",
                "leave --text-head out",
            )
        with torch.no_grad():
            image = torch.zeros(1, self.model.patch_embed.proj.in_channels, *self.image_size)
            dimension = self.model(image).shape[-1]
        self.model.head = with_text_head(self.model.head, texts, dimension)
        self.architecture = self.architecture.model_copy(update={"num_classes": len(texts.matrix)})

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The transformer blocks in order; each returns tokens `[B, N, D]`."""
        return list(self.model.blocks)

    def tap(self, index: int, sink: TapSink, *, attention: bool, keys: bool, values: bool, queries: bool) -> list[Undo]:
        """Let a block put the requested tensors into the sink on every forward pass. Keys and queries are taken behind
        their norms, where there are any, and ahead of a rotary embedding."""
        module = self.model.blocks[index].attn
        undo: list[Undo] = []
        if attention:
            undo += [switch(module, "fused_attn", False)]
            take = partial(setattr, sink, "attention")
            undo += [module.attn_drop.register_forward_pre_hook(lambda _drop, inputs: take(inputs[0])).remove]
        if keys:
            undo += self.tap_keys(module, partial(setattr, sink, "keys"))
        if values:
            undo += self.tap_values(module, partial(setattr, sink, "values"))
        if queries:
            undo += self.tap_queries(module, partial(setattr, sink, "queries"))
        return undo

    def tap_keys(self, attention: Any, take: Callable[[Tensor], None]) -> list[Undo]:
        return [on_output(attention.k_norm, take)]

    def tap_queries(self, attention: Any, take: Callable[[Tensor], None]) -> list[Undo]:
        return [on_output(attention.q_norm, take)]

    def tap_values(self, attention: Any, take: Callable[[Tensor], None]) -> list[Undo]:
        return tap_projection(attention, 2, take)

    def between(self, index: int, reduce: Callable[[Tensor], Tensor]) -> list[Undo]:
        """Reduce a block's tokens between its attention and its MLP.

        The block adds its attention branch to zero; a hook at the end of the branch adds the real input and reduces the
        sum. So all parts of the branch (norm, LayerScale, drop path) are the block's own, and nothing is computed
        twice.

        Args:
            reduce: takes the tokens behind the attention's residual branch, `[B, N, D]`, and returns `[B, k, D]`.

        Raises:
            ModelError: the block is not attention followed by an MLP, each with a residual.
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

        def add_and_reduce(_drop_path: nn.Module, _inputs: Any, branch: Tensor) -> Tensor:
            return reduce(held.pop() + branch)

        return [
            block.register_forward_pre_hook(hold_input).remove,
            block.norm1.register_forward_pre_hook(lambda _norm, _inputs: held[0]).remove,
            block.drop_path1.register_forward_hook(add_and_reduce).remove,
        ]

    def bias(self, index: int, bias: Callable[[], Tensor | None]) -> list[Undo]:
        """Add a bias `[B, 1, 1, N]` to a block's attention logits; None adds nothing.

        Raises:
            ModelError: the block's attention takes no bias.
        """
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

    @property
    def has_positions(self) -> bool:
        """Whether blocks take, beside tokens, another input with an entry per position of the image."""
        return False

    def follow(self, index: int, places: Callable[[], Tensor | None]) -> list[Undo]:
        """Gather a block's inputs per position for the tokens that are present in each image.

        Args:
            places: positions of the tokens that enter the block, with prefix tokens: `[B, k]` int64, ascending; None:
            all.
        """
        return []

    def scale(self, index: int, scale: Callable[[], Tensor | None]) -> list[Undo]:
        """Multiply the normalised input of a block's attention by `[B, N, 1]`; None changes nothing."""

        def multiply(_attention: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            value = scale()
            return inputs if value is None else (inputs[0] * value, *inputs[1:])

        return [self.model.blocks[index].attn.register_forward_pre_hook(multiply).remove]

    def update(self, index: int, update: Callable[[], Tensor | None]) -> list[Undo]:
        """Multiply what a block's attention and MLP add to the tokens by `[B, N, 1]`; None changes nothing.

        LayerScale and drop path, which follow, treat tokens one by one.
        """

        def multiply(_branch: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
            value = update()
            return output if value is None else output * value

        block = self.model.blocks[index]
        return [branch.register_forward_hook(multiply).remove for branch in (block.attn, block.mlp)]


def tap_projection(attention: Any, part: int, take: Callable[[Tensor], None]) -> list[Undo]:
    """Read queries, keys or values (0, 1, 2) behind their joint projection `qkv`, as `[B, H, N, d]`.

    They are a view, so a bias that the block adds in place afterwards is included when the pruning layer reads it.
    """

    def split(output: Tensor) -> None:
        parts = output.view(*output.shape[:2], 3, attention.num_heads, -1)
        take(parts[:, :, part].transpose(1, 2))

    # with a bias outside of the projection, the block would not call the module
    apart = [switch(attention, "qkv_bias_separate", True)] if getattr(attention, "q_bias", None) is not None else []
    return [*apart, on_output(attention.qkv, split)]


def on_output(module: nn.Module, take: Callable[[Tensor], None]) -> Undo:
    """Call a function with a module's output on every forward pass."""
    return module.register_forward_hook(lambda _module, _inputs, output: take(output)).remove


def change_option(module: nn.Module, name: str, change: Callable[[Any], Any]) -> Undo:
    """Change a keyword argument of a module; callers must pass it by name, or not at all."""

    def apply(_module: nn.Module, inputs: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return inputs, {**options, name: change(options.get(name))}

    return module.register_forward_pre_hook(apply, with_kwargs=True).remove


def switch(module: nn.Module, name: str, value: Any) -> Undo:
    """Set a plain attribute that a module reads in its forward pass."""
    before = getattr(module, name)
    setattr(module, name, value)
    return lambda: setattr(module, name, before)


def check_divides(size: ImageSize, patch: tuple[int, int]) -> None:
    """
    Raises:
        ModelError: patches do not cover the image exactly.
    """
    nearest = ImageSize(*(max(1, round(side / part)) * part for side, part in zip(size, patch, strict=True)))
    if size != nearest:
        raise ModelError(
            f"image size {size} with patches of {patch[0]} x {patch[1]}",
            f"a multiple of {patch[0] if patch[0] == patch[1] else 'each side'}, such as {nearest}",
            "change --image-size",
        )


def _unsound(model: nn.Module, found: str, expected: str) -> ModelError:
    return ModelError(
        f"{type(model).__name__} cannot be pruned: {found}", expected, "choose a model that 'ztdeploy models' lists"
    )


def _missing(block: nn.Module, paths: Sequence[str]) -> list[str]:
    """The parts that pruning needs and the block does not have."""

    def has(path: str) -> bool:
        part: Any = block
        for name in path.split("."):
            part = getattr(part, name, None)
        return part is not None

    return [path for path in ("attn", "attn.num_heads", *paths) if not has(path)]
