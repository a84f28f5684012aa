"""timm's `Beit`: BEiT and BEiT v2, whose attention adds a bias for the relative position of two patches.

Behind a pruning layer each image needs the bias between its own patches.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from timm.models.beit import Attention, Beit, Block
from torch import Tensor
from torch.nn import functional

from ztdeploy.core.errors import ModelError
from ztdeploy.host.models.adapter import ModelAdapter, Undo, tap_projection


class BeitAdapter(ModelAdapter):
    """Reads queries, keys and values behind their joint projection, and makes attention call that projection."""

    family = "beit"
    timm_modules = ("beit",)
    model: Beit
    model_class = Beit
    plain_block = Block
    attentions = (Attention,)
    logit_bias = "shared_rel_pos_bias"
    parts = ("attn.attn_drop", "attn.qkv", "attn.fused_attn", "mlp")

    def check_model(self) -> None:
        if self.model.rel_pos_bias is not None:
            raise ModelError(
                "Beit cannot be pruned: its blocks share one relative position bias",
                "a bias of each block's own",
                "choose a model that 'ztdeploy models' lists",
            )

    @property
    def has_positions(self) -> bool:
        return any(block.attn.relative_position_bias_table is not None for block in self.model.blocks)

    def follow(self, index: int, places: Callable[[], Tensor | None]) -> list[Undo]:
        attention: Any = self.model.blocks[index].attn

        def bias() -> Tensor:
            present = places()
            whole: Tensor = type(attention)._get_rel_pos_bias(attention)
            return whole if present is None else bias_between(whole, present)

        vars(attention)["_get_rel_pos_bias"] = bias  # is found ahead of the method of the class
        return [lambda: vars(attention).pop("_get_rel_pos_bias")]

    def tap_keys(self, attention: Any, take: Callable[[Tensor], None]) -> list[Undo]:
        return tap_projection(attention, 1, take)

    def tap_queries(self, attention: Any, take: Callable[[Tensor], None]) -> list[Undo]:
        return tap_projection(attention, 0, take)


def bias_between(whole: Tensor, tokens: Tensor) -> Tensor:
    """Gather the bias `[B, H, k, k]` between each image's `tokens [B, k]` from the bias of all, `[1, H, N, N]`."""
    _, heads, count, _ = whole.shape
    pairs = tokens.unsqueeze(2) * count + tokens.unsqueeze(1)
    table = whole.view(heads, count * count).transpose(0, 1)
    return functional.embedding(pairs, table).permute(0, 3, 1, 2)
