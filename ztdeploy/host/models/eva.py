"""timm's `Eva`: EVA-02, DINOv3, Perception Encoder, RoPE ViTs: attention that turns queries and keys by their places.

The angles are a table with a row per patch. Behind a pruning layer each image needs the rows of its own patches.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from timm.layers import AttentionRope, PatchEmbed
from timm.models.eva import Eva, EvaAttention, EvaBlock, EvaBlockPostNorm
from torch import Tensor, nn
from torch.nn import functional

from ztdeploy.host.models.hooks import Undo, change_option, on_output
from ztdeploy.host.models.residual import ResidualAdapter, add_bias_apart, tap_projection, unsound


class EvaAdapter(ResidualAdapter):
    """Keys and queries are read in front of the rotation, which says where a token is, and not what it shows."""

    family = "eva"
    model: Eva
    plain_block = EvaBlock

    @classmethod
    def accepts(cls, model: nn.Module) -> bool:
        return isinstance(model, Eva)

    def check_blocks(self) -> None:
        model = self.model
        if not isinstance(model.patch_embed, PatchEmbed):
            raise unsound(model, f"its patch embedding is a {type(model.patch_embed).__name__}", "a plain PatchEmbed")
        for block in model.blocks:
            if not isinstance(block, (EvaBlock, EvaBlockPostNorm)):
                raise unsound(model, f"a block is a {type(block).__name__}", "timm's EvaBlock")
            if not isinstance(block.attn, (EvaAttention, AttentionRope)):
                raise unsound(model, f"its attention is a {type(block.attn).__name__}", "timm's EvaAttention")

    @property
    def has_positions(self) -> bool:
        return self.model.rope is not None

    def follow(self, index: int, places: Callable[[], Tensor | None]) -> list[Undo]:
        prefix = self.model.num_prefix_tokens

        def gather(table: Tensor | None) -> Tensor | None:
            present = places()
            return table if table is None or present is None else rows_of(table, present[:, prefix:] - prefix)

        return [change_option(self.model.blocks[index], "rope", gather)]

    def tap_values(self, attention: Any, take: Callable[[Tensor], None]) -> list[Undo]:
        if attention.qkv is not None:
            return [*add_bias_apart(attention), tap_projection(attention, 2, take)]
        heads, groups = attention.num_heads, getattr(attention, "num_kv_groups", 1)

        def split(output: Tensor) -> None:
            values = output.view(*output.shape[:2], heads // groups, -1).transpose(1, 2)
            take(values.repeat_interleave(groups, 1) if groups > 1 else values)

        return [on_output(attention.v_proj, split)]


def rows_of(table: Tensor, patches: Tensor) -> Tensor:
    """Of a table of angles, each image's rows.

    Args:
        table: `[P, a]`, or `[H, P, a]` where each head has angles of its own.
        patches: `[B, k]`.

    Returns:
        `[B, 1, k, a]`, or `[B, H, k, a]`.
    """
    if table.dim() == 2:
        return functional.embedding(patches, table).unsqueeze(1)
    heads, count, width = table.shape
    rows = functional.embedding(patches, table.transpose(0, 1).reshape(count, heads * width))
    return rows.view(*patches.shape, heads, width).transpose(1, 2)
