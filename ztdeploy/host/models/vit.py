"""timm's plain `VisionTransformer`: ViT, AugReg, DeiT, DeiT-III, MAE, CLIP, SigLIP, DINOv2, FlexiViT and their kin.

They differ around the blocks (prefix tokens, norms, pooling), where pruning changes nothing.
"""

from __future__ import annotations

from timm.models.vision_transformer import Attention, Block, VisionTransformer

from ztdeploy.host.models.adapter import ModelAdapter


class VitAdapter(ModelAdapter):
    """Reads attention at the input of `attn_drop`, keys and queries behind their norms, and values behind `qkv`."""

    family = "vit"
    timm_modules = ("vision_transformer", "deit")
    model: VisionTransformer
    model_class = VisionTransformer
    plain_block = Block
    attentions = (Attention,)
