"""timm's `Eva`: EVA-02, DINOv3, Perception Encoder, RoPE ViTs: attention with rotary position embedding.

The angles are a table with a row per patch. Behind a pruning layer each image needs the rows of its own patches.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from timm.layers import AttentionRope
from timm.models.eva import Eva, EvaAttention, EvaBlock, EvaBlockPostNorm
from torch import Tensor
from torch.nn import functional

from ztdeploy.host.models.adapter import ModelAdapter, Undo, change_option, on_output, tap_projection


class EvaAdapter(ModelAdapter):
    """Reads keys and queries ahead of the rotation, which depends on a token's position and not on its content."""

    family = "eva"
    timm_modules = ("eva",)
    model: Eva
    model_class = Eva
    plain_block = EvaBlock
    block_types = (EvaBlock, EvaBlockPostNorm)
    attentions = (EvaAttention, AttentionRope)

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
            return tap_projection(attention, 2, take)
        heads, groups = attention.num_heads, getattr(attention, "num_kv_groups", 1)

        def split(output: Tensor) -> None:
            values = output.view(*output.shape[:2], heads // groups, -1).transpose(1, 2)
            take(values.repeat_interleave(groups, 1) if groups > 1 else values)

        return [on_output(attention.v_proj, split)]


def rows_of(table: Tensor, patches: Tensor) -> Tensor:
    """Gather each image's rows of a table of angles.

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
