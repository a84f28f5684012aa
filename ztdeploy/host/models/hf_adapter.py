"""Models of the library `transformers`: ViT, DeiT, MSN, MAE, DINOv2, DINOv3, CLIP, SigLIP and BEiT.

Attention matrices and biases go through the library's `AttentionInterface` (see `hf_model.attend`), everything else
through hooks.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from ztdeploy.core.errors import ModelError
from ztdeploy.core.preprocess_spec import Output
from ztdeploy.core.schedule import Architecture
from ztdeploy.host.models.adapter import ModelAdapter, TapSink, Undo, change_option, on_output
from ztdeploy.host.models.beit import bias_between
from ztdeploy.host.models.eva import rows_of
from ztdeploy.host.models.hf_model import HubModel, Reach


class HubAdapter(ModelAdapter):
    """Reads the attention matrix where attention is computed, and keys, values and queries behind their projections,
    ahead of a rotary embedding."""

    family = "transformers"
    model: HubModel
    model_class = HubModel

    def describe(self) -> Architecture:
        model = self.model
        inner = model.parts.attention.partition(".")[0]
        linear = {name: part for name, part in model.blocks[0].named_modules() if isinstance(part, nn.Linear)}
        weights = sum(part.weight.numel() for name, part in linear.items() if not name.startswith(f"{inner}."))
        return Architecture(
            depth=len(model.blocks),
            embed_dim=model.embed_dim,
            num_heads=model.num_heads,
            mlp_dim=round(weights / (2 * model.embed_dim)),
            patch_tokens=model.patch_embed.num_patches,
            prefix_tokens=model.num_prefix_tokens,
            class_token=model.reads_class_token,
            patch_dim=self.patch_dim(),
            num_classes=model.num_classes,
            grid=model.patch_embed.grid_size,
            read_tokens=self.read_tokens(),
        )

    def read_tokens(self) -> int | None:
        return None if self.reads_grid else self.model.read_tokens

    def give(self, output: Output) -> None:
        """
        Raises:
            ModelError: a tower without pooling is asked for one vector per image.
        """
        if output != "features" and not self.model.answers:
            raise ModelError(
                f"a {type(self.model.whole).__name__} that gives tokens alone (vision_use_head is false)",
                "a tower that gives one vector per image",
                "give --output features",
            )
        super().give(output)

    def _attention(self, index: int) -> Any:
        return self.blocks[index].get_submodule(self.model.parts.attention)

    def tap(self, index: int, sink: TapSink, *, attention: bool, keys: bool, values: bool, queries: bool) -> list[Undo]:
        module = self._attention(index)
        undo: list[Undo] = [_added(module.reach.attention, partial(setattr, sink, "attention"))] if attention else []
        asked = (("queries", queries), ("keys", keys), ("values", values))
        for (name, wanted), projection in zip(asked, self.model.parts.projections, strict=True):
            if wanted:
                take = partial(self._split, partial(setattr, sink, name))
                undo.append(on_output(getattr(module, projection), take))
        return undo

    def _split(self, take: Callable[[Tensor], None], output: Tensor) -> None:
        """`[B, N, D]` as `[B, H, N, d]`."""
        take(output.view(*output.shape[:2], self.model.num_heads, -1).transpose(1, 2))

    def between(self, index: int, reduce: Callable[[Tensor], Tensor]) -> list[Undo]:
        """As in `ModelAdapter`: the block adds its attention branch to zero, and a hook at the end of the branch adds
        the real input and reduces the sum. Some blocks call the last module of that branch in their MLP branch too."""
        block, parts = self.blocks[index], self.model.parts
        held: list[Tensor] = []

        def hold_input(_block: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            held[:] = inputs[:1]
            return (inputs[0].new_zeros(1, 1, 1), *inputs[1:])

        def add_and_reduce(_end: nn.Module, _inputs: Any, branch: Any) -> Any:
            if not held:
                return branch
            own, *rest = branch if isinstance(branch, tuple) else (branch,)
            reduced = reduce(held.pop() + own)
            return (reduced, *rest) if isinstance(branch, tuple) else reduced

        return [
            block.register_forward_pre_hook(hold_input).remove,
            block.get_submodule(parts.attention_norm)
            .register_forward_pre_hook(lambda _norm, inputs: held[0] if held else inputs)
            .remove,
            block.get_submodule(parts.branch_end).register_forward_hook(add_and_reduce).remove,
        ]

    def bias(self, index: int, bias: Callable[[], Tensor | None]) -> list[Undo]:
        reach: Reach = self._attention(index).reach
        return [_added(reach.biases, bias)]

    @property
    def has_positions(self) -> bool:
        return bool(self.model.parts.rotary or self.model.parts.bias)

    def follow(self, index: int, places: Callable[[], Tensor | None]) -> list[Undo]:
        block, parts, prefix = self.blocks[index], self.model.parts, self.model.num_prefix_tokens

        def rows(tables: tuple[Tensor, ...] | None) -> tuple[Tensor, ...] | None:
            present = places()
            if tables is None or present is None:
                return tables
            return tuple(rows_of(table, present[:, prefix:] - prefix) for table in tables)

        def pairs(bias: Tensor | None) -> Tensor | None:
            present = places()
            return bias if bias is None or present is None else bias_between(bias, present)

        if parts.rotary:
            return [change_option(block, parts.rotary, rows)]
        undo = [change_option(block, "attention_mask", pairs)]  # a relative bias that all blocks share
        own = getattr(block, parts.bias)
        return undo if own is None else [*undo, own.register_forward_hook(lambda _m, _i, bias: pairs(bias)).remove]

    def scale(self, index: int, scale: Callable[[], Tensor | None]) -> list[Undo]:
        def multiply(_norm: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
            value = scale()
            return output if value is None else output * value

        norm = self.blocks[index].get_submodule(self.model.parts.attention_norm)
        return [norm.register_forward_hook(multiply).remove]

    def update(self, index: int, update: Callable[[], Tensor | None]) -> list[Undo]:
        def multiply(_branch: nn.Module, _inputs: Any, output: Any) -> Any:
            value = update()
            if value is None:
                return output
            return (output[0] * value, *output[1:]) if isinstance(output, tuple) else output * value

        branches = (self._attention(index), self.blocks[index].get_submodule(self.model.parts.mlp))
        return [branch.register_forward_hook(multiply).remove for branch in branches]


def _added(functions: list[Any], function: Any) -> Undo:
    functions.append(function)
    return partial(functions.remove, function)
