"""LV-ViT, which timm lacks: a vision transformer with a deep patch embedding, damped residuals and a head per patch.

After "All Tokens Matter: Token Labeling for Training Better Vision Transformers" (NeurIPS 2021, arXiv 2104.10858).
Parameters have the names of the published checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from timm.layers import Mlp, resample_abs_pos_embed
from timm.models.vision_transformer import Attention
from torch import Tensor, nn

from ztdeploy.core.errors import ModelError
from ztdeploy.core.preprocess_spec import ImageSize
from ztdeploy.host.models.adapter import ModelAdapter, check_divides

PATCH = 16
#: Weight of the best patch beside the class token.
_AUXILIARY = 0.5
#: Arguments of the published models, and the crop share that they were published with.
SIZES: dict[str, tuple[dict[str, Any], float]] = {
    "lvvit_t": ({"embed_dim": 240, "depth": 12, "num_heads": 4, "damping": 1.0}, 0.9),
    "lvvit_s": ({"embed_dim": 384, "depth": 16, "num_heads": 6, "damping": 2.0}, 0.9),
    "lvvit_m": ({"embed_dim": 512, "depth": 20, "num_heads": 8, "damping": 2.0}, 1.0),
    "lvvit_l": ({"embed_dim": 768, "depth": 24, "num_heads": 12, "damping": 3.0, "channels": 128}, 1.0),
}


class DeepPatchEmbed(nn.Module):
    """Three convolutions at half the resolution, then one per patch: `[B, C, H, W]` to `[B, P, D]`."""

    def __init__(self, size: int | tuple[int, int], embed_dim: int, channels: int, in_chans: int) -> None:
        super().__init__()
        height, width = ImageSize.of(size)
        self.patch_size, self.grid_size = (PATCH, PATCH), (height // PATCH, width // PATCH)
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        self.conv1 = nn.Conv2d(in_chans, channels, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.proj = nn.Conv2d(channels, embed_dim, PATCH // 2, stride=PATCH // 2)

    def forward(self, images: Tensor) -> Tensor:
        x = self.bn1(self.conv1(images)).relu()
        x = self.bn2(self.conv2(x)).relu()
        x = self.bn3(self.conv3(x)).relu()
        patches: Tensor = self.proj(x)
        return patches.flatten(2).transpose(1, 2)


class DampedBlock(nn.Module):
    """A transformer block whose residual branches are divided by a number."""

    def __init__(self, embed_dim: int, num_heads: int, damping: float) -> None:
        super().__init__()
        self.damping = damping
        self.norm1, self.norm2 = nn.LayerNorm(embed_dim), nn.LayerNorm(embed_dim)
        self.attn = Attention(embed_dim, num_heads=num_heads, qkv_bias=False)
        self.mlp = Mlp(embed_dim, 3 * embed_dim)
        self.drop_path1, self.drop_path2 = nn.Identity(), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path1(self.attn(self.norm1(x)) / self.damping)
        x = x + self.drop_path2(self.mlp(self.norm2(x)) / self.damping)
        return x


class LvVit(nn.Module):
    """Images `[B, C, H, W]` to logits `[B, classes]`: the class token's, and half of the highest among the patches'."""

    num_prefix_tokens = 1
    #: Pre-processing under timm's keys.
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
        num_classes: int = 1000,
        in_chans: int = 3,
    ) -> None:
        super().__init__()
        self.embed_dim = self.num_features = embed_dim
        self.patch_embed = DeepPatchEmbed(img_size, embed_dim, channels, in_chans)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.empty(1, self.patch_embed.num_patches + 1, embed_dim))
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.blocks = nn.ModuleList(DampedBlock(embed_dim, num_heads, damping) for _ in range(depth))
        self.norm = nn.LayerNorm(embed_dim)
        self.reset_classifier(num_classes)

    def reset_classifier(self, num_classes: int, global_pool: str = "token") -> None:
        """Replace the heads. With 0 classes the model gives the class token, or with pooling "" all tokens."""
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


class LvVitAdapter(ModelAdapter):
    """Reads blocks like `VitAdapter`."""

    family = "lvvit"
    own_models = SIZES
    model: LvVit
    model_class = LvVit
    plain_block = DampedBlock
    embeddings = (DeepPatchEmbed,)
    attentions = (Attention,)

    @classmethod
    def make(cls, name: str, image_size: ImageSize | None, arguments: Mapping[str, Any]) -> LvVit:
        if foreign := sorted(arguments.keys() - {"num_classes", "in_chans"}):
            raise ModelError(f"'{name}' with {', '.join(foreign)}", "its published form", "choose another --model")
        size = image_size or ImageSize(224, 224)
        check_divides(size, (PATCH, PATCH))
        sizes, crop_pct = SIZES[name]
        model = LvVit(**sizes, img_size=size, **arguments)
        model.pretrained_cfg = {
            "input_size": (3, 224, 224),
            "crop_pct": crop_pct,
            "interpolation": "bicubic",
            "mean": (0.485, 0.456, 0.406),
            "std": (0.229, 0.224, 0.225),
            "classifier": ("head", "aux_head"),
        }
        return model

    def read_tokens(self) -> int | None:
        """The heads read all tokens; an embedding is the class token."""
        return None if self.model.num_classes else super().read_tokens()

    def patch_dim(self) -> int:
        """The convolutions before the projection run at half the resolution, shared by all output channels."""
        embed = self.model.patch_embed
        before = sum(layer.weight.numel() for layer in (embed.conv1, embed.conv2, embed.conv3))
        return round(((PATCH // 2) ** 2 * before + embed.proj.weight.numel()) / self.model.embed_dim)


def filter_checkpoint(state: dict[str, Tensor], model: LvVit) -> dict[str, Tensor]:
    """Position embeddings for the model's grid; `layouts` finds it beside the class, as it finds timm's filters."""
    places = state.get("pos_embed")
    if places is not None and places.shape[1] != model.pos_embed.shape[1]:
        state = {**state, "pos_embed": resample_abs_pos_embed(places, list(model.patch_embed.grid_size))}
    return state
