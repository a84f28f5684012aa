"""timm's plain `VisionTransformer`: ViT, AugReg, DeiT, DeiT-III, MAE, CLIP, SigLIP, DINOv2, FlexiViT and their kin.

They differ in what stands around the blocks (prefix tokens, norms, pooling), none of which pruning touches.
"""

from __future__ import annotations

from timm.layers import PatchEmbed
from timm.models.vision_transformer import Attention, Block, VisionTransformer
from torch import nn

from ztdeploy.host.models.residual import ResidualAdapter, unsound


class VitAdapter(ResidualAdapter):
    """Reads attention where it enters `attn_drop`, keys and queries behind their norms, and values behind `qkv`."""

    family = "vit"
    model: VisionTransformer
    plain_block = Block

    @classmethod
    def accepts(cls, model: nn.Module) -> bool:
        return isinstance(model, VisionTransformer)

    def check_blocks(self) -> None:
        model = self.model
        if not isinstance(model.patch_embed, PatchEmbed):
            raise unsound(model, f"its patch embedding is a {type(model.patch_embed).__name__}", "a plain PatchEmbed")
        for block in model.blocks:
            if not isinstance(block.attn, Attention):
                raise unsound(model, f"its attention is a {type(block.attn).__name__}", "timm's plain Attention")
