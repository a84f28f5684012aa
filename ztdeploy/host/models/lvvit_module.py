"""LV-ViT, which timm lacks: a vision transformer with a deep patch embedding, damped residuals and a head per patch.

After "All Tokens Matter: Token Labeling for Training Better Vision Transformers" (NeurIPS 2021, arXiv 2104.10858).
Parameters bear the names of the published checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from timm.layers import Mlp, resample_abs_pos_embed
from timm.models.vision_transformer import Attention
from torch import Tensor, nn

#: How much the best patch counts beside the class token.
_AUXILIARY = 0.5


@dataclass(frozen=True)
class Sizes:
    """One published model; all have patches of 16, and MLPs three times as wide as their tokens."""

    embed_dim: int
    depth: int
    num_heads: int
    damping: float  #: what residual branches are divided by
    channels: int = 64  #: of the convolutions in front of the patch projection
    crop_pct: float = 0.9


SIZES: dict[str, Sizes] = {
    "lvvit_t": Sizes(embed_dim=240, depth=12, num_heads=4, damping=1.0),
    "lvvit_s": Sizes(embed_dim=384, depth=16, num_heads=6, damping=2.0),
    "lvvit_m": Sizes(embed_dim=512, depth=20, num_heads=8, damping=2.0, crop_pct=1.0),
    "lvvit_l": Sizes(embed_dim=768, depth=24, num_heads=12, damping=3.0, channels=128, crop_pct=1.0),
}


class DeepPatchEmbed(nn.Module):
    """Three convolutions at half the resolution, then one per patch: `[B, C, H, W]` to `[B, P, D]`."""

    def __init__(
        self, image_size: int | tuple[int, int], patch_size: int, embed_dim: int, channels: int, in_chans: int = 3
    ) -> None:
        super().__init__()
        height, width = image_size if isinstance(image_size, tuple) else (image_size, image_size)
        if height % patch_size or width % patch_size:
            raise ValueError(f"patches of {patch_size} do not divide {height} x {width} pixels")
        self.patch_size = (patch_size, patch_size)
        self.grid_size = (height // patch_size, width // patch_size)
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        self.conv1 = nn.Conv2d(in_chans, channels, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.proj = nn.Conv2d(channels, embed_dim, patch_size // 2, stride=patch_size // 2)

    def forward(self, images: Tensor) -> Tensor:
        x = self.bn1(self.conv1(images)).relu()
        x = self.bn2(self.conv2(x)).relu()
        x = self.bn3(self.conv3(x)).relu()
        patches: Tensor = self.proj(x)
        return patches.flatten(2).transpose(1, 2)


class DampedBlock(nn.Module):
    """A transformer block whose residual branches are divided by a number."""

    def __init__(self, embed_dim: int, num_heads: int, mlp_dim: int, damping: float) -> None:
        super().__init__()
        self.damping = damping
        self.norm1, self.norm2 = nn.LayerNorm(embed_dim), nn.LayerNorm(embed_dim)
        self.attn = Attention(embed_dim, num_heads=num_heads, qkv_bias=False)
        self.mlp = Mlp(embed_dim, mlp_dim)
        self.drop_path1, self.drop_path2 = nn.Identity(), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path1(self.attn(self.norm1(x)) / self.damping)
        x = x + self.drop_path2(self.mlp(self.norm2(x)) / self.damping)
        return x


class LvVit(nn.Module):
    """Images `[B, C, H, W]` to logits `[B, classes]`: the class token's, and half of the highest among the patches'."""

    num_prefix_tokens = 1
    #: What timm's models say of how images are prepared.
    pretrained_cfg: dict[str, object]

    def __init__(
        self,
        *,
        embed_dim: int,
        depth: int,
        num_heads: int,
        damping: float,
        channels: int = 64,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        num_classes: int = 1000,
        in_chans: int = 3,
    ) -> None:
        super().__init__()
        self.embed_dim, self.num_features, self.num_classes, self.global_pool = (
            embed_dim,
            embed_dim,
            num_classes,
            "token",
        )
        self.patch_embed = DeepPatchEmbed(img_size, patch_size, embed_dim, channels, in_chans)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.empty(1, self.patch_embed.num_patches + 1, embed_dim))
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        blocks = (DampedBlock(embed_dim, num_heads, 3 * embed_dim, damping) for _ in range(depth))
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(embed_dim)
        self.reset_classifier(num_classes)

    def reset_classifier(self, num_classes: int, global_pool: str = "token") -> None:
        """Give it heads for so many classes; without any it gives the class token, or with pooling "" all tokens."""
        self.num_classes, self.global_pool = num_classes, global_pool
        self.head = nn.Linear(self.embed_dim, num_classes) if num_classes else nn.Identity()
        self.aux_head = nn.Linear(self.embed_dim, num_classes) if num_classes else nn.Identity()

    def forward_features(self, images: Tensor) -> Tensor:
        """`[B, 1 + P, D]`."""
        patches = self.patch_embed(images)
        x = torch.cat([self.cls_token.expand(patches.shape[0], -1, -1), patches], 1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        tokens: Tensor = self.norm(x)
        return tokens

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.forward_features(images)
        if not self.num_classes:
            return tokens if self.global_pool == "" else tokens[:, 0]
        logits: Tensor = self.head(tokens[:, 0]) + _AUXILIARY * self.aux_head(tokens[:, 1:]).amax(1)
        return logits


def make_lvvit(
    name: str, image_size: tuple[int, int] | None = None, num_classes: int = 1000, in_chans: int = 3
) -> LvVit:
    """One of `SIZES`, with random weights."""
    sizes = SIZES[name]
    model = LvVit(
        embed_dim=sizes.embed_dim,
        depth=sizes.depth,
        num_heads=sizes.num_heads,
        damping=sizes.damping,
        channels=sizes.channels,
        img_size=image_size or 224,
        num_classes=num_classes,
        in_chans=in_chans,
    )
    model.pretrained_cfg = {
        "input_size": (3, 224, 224),
        "crop_pct": sizes.crop_pct,
        "interpolation": "bicubic",
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "classifier": ("head", "aux_head"),
    }
    return model


def filter_checkpoint(state: dict[str, Tensor], model: LvVit) -> dict[str, Tensor]:
    """Position embeddings for the model's grid."""
    places = state.get("pos_embed")
    if places is not None and places.shape[1] != model.pos_embed.shape[1]:
        state = {**state, "pos_embed": resample_abs_pos_embed(places, list(model.patch_embed.grid_size))}
    return state
