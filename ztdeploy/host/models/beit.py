"""timm's `Beit`: BEiT and BEiT v2, whose attention adds a bias that depends on how two patches lie to each other.

Behind a pruning layer each image needs the bias between its own patches.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from timm.models.beit import Attention, Beit, Block
from torch import Tensor, nn
from torch.nn import functional

from ztdeploy.host.models.hooks import Undo, override
from ztdeploy.host.models.residual import ResidualAdapter, add_bias_apart, tap_projection, unsound


class BeitAdapter(ResidualAdapter):
    """Queries, keys and values are read behind their joint projection, which the attention is made to call."""

    family = "beit"
    model: Beit
    plain_block = Block
    logit_bias = "shared_rel_pos_bias"
    parts = ("attn.attn_drop", "attn.qkv", "attn.fused_attn", "mlp")

    @classmethod
    def accepts(cls, model: nn.Module) -> bool:
        return isinstance(model, Beit)

    def check_blocks(self) -> None:
        if self.model.rel_pos_bias is not None:
            raise unsound(self.model, "its blocks share one relative position bias", "a bias of each block's own")
        for block in self.model.blocks:
            if not isinstance(block.attn, Attention):
                raise unsound(self.model, f"its attention is a {type(block.attn).__name__}", "timm's BEiT attention")

    @property
    def has_positions(self) -> bool:
        return any(block.attn.relative_position_bias_table is not None for block in self.model.blocks)

    def follow(self, index: int, places: Callable[[], Tensor | None]) -> list[Undo]:
        attention: Any = self.model.blocks[index].attn

        def bias() -> Tensor:
            present = places()
            whole: Tensor = type(attention)._get_rel_pos_bias(attention)
            return whole if present is None else bias_between(whole, present)

        return [override(attention, "_get_rel_pos_bias", bias)]

    def tap_keys(self, attention: Any, take: Callable[[Tensor], None]) -> list[Undo]:
        return [*add_bias_apart(attention), tap_projection(attention, 1, take)]

    def tap_queries(self, attention: Any, take: Callable[[Tensor], None]) -> list[Undo]:
        return [*add_bias_apart(attention), tap_projection(attention, 0, take)]

    def tap_values(self, attention: Any, take: Callable[[Tensor], None]) -> list[Undo]:
        return [*add_bias_apart(attention), tap_projection(attention, 2, take)]


def bias_between(whole: Tensor, tokens: Tensor) -> Tensor:
    """Of a bias between all tokens, `[1, H, N, N]`, that between each image's `tokens [B, k]`: `[B, H, k, k]`."""
    _, heads, count, _ = whole.shape
    pairs = tokens.unsqueeze(2) * count + tokens.unsqueeze(1)
    table = whole.view(heads, count * count).transpose(0, 1)
    return functional.embedding(pairs, table).permute(0, 3, 1, 2)
