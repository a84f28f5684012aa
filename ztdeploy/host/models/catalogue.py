"""Short names of models, with their timm names and sample images."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ztdeploy.core.errors import nearest

ASSETS = Path(__file__).parent.parent / "assets"


@dataclass(frozen=True)
class CatalogueEntry:
    """One model that has a short name."""

    timm_name: str
    about: str
    family: str = "vit"
    shipped: Path | None = None  #: folder with `model.safetensors` and `model.json`, for the model inside the package
    in_timm: bool = True


CATALOGUE: dict[str, CatalogueEntry] = {
    "vit_digits": CatalogueEntry(
        "vit_digits", "handwritten digits, 1.3 M parameters, ships inside the package", "vit", ASSETS / "digits", False
    ),
    "deit_t": CatalogueEntry("deit_tiny_patch16_224", "DeiT-Tiny, ImageNet-1k"),
    "deit_s": CatalogueEntry("deit_small_patch16_224", "DeiT-Small, ImageNet-1k"),
    "deit_b": CatalogueEntry("deit_base_patch16_224", "DeiT-Base, ImageNet-1k"),
    "vit_t": CatalogueEntry("vit_tiny_patch16_224.augreg_in21k_ft_in1k", "AugReg ViT-Tiny, ImageNet-1k"),
    "vit_s": CatalogueEntry("vit_small_patch16_224.augreg_in21k_ft_in1k", "AugReg ViT-Small, ImageNet-1k"),
    "vit_b": CatalogueEntry("vit_base_patch16_224.augreg_in21k_ft_in1k", "AugReg ViT-Base, ImageNet-1k"),
    "vit_l": CatalogueEntry("vit_large_patch16_224.augreg_in21k_ft_in1k", "AugReg ViT-Large, ImageNet-1k"),
    "deit_s_distilled": CatalogueEntry("deit_small_distilled_patch16_224", "distilled DeiT-Small, ImageNet-1k"),
    "deit3_s": CatalogueEntry("deit3_small_patch16_224", "DeiT-III-Small, ImageNet-1k"),
    "mae_l": CatalogueEntry("vit_large_patch16_224.mae", "MAE ViT-Large, features"),
    "flexivit_s": CatalogueEntry("flexivit_small", "FlexiViT-Small at 240 pixels, ImageNet-1k"),
    "dinov2_s": CatalogueEntry("vit_small_patch14_dinov2", "DINOv2 ViT-Small at 518 pixels, features"),
    "dinov2_s_reg": CatalogueEntry("vit_small_patch14_reg4_dinov2", "the same with registers"),
    "clip_b": CatalogueEntry("vit_base_patch16_clip_224", "CLIP ViT-Base tower, image embeddings"),
    "siglip_b": CatalogueEntry("vit_base_patch16_siglip_224", "SigLIP ViT-Base tower, image embeddings"),
    "siglip2_b": CatalogueEntry("vit_base_patch16_siglip_224.v2_webli", "SigLIP 2 ViT-Base tower, image embeddings"),
    "dinov3_s": CatalogueEntry("vit_small_patch16_dinov3", "DINOv3 ViT-Small, features", "eva"),
    "eva02_s": CatalogueEntry("eva02_small_patch14_336.mim_in22k_ft_in1k", "EVA-02-Small, ImageNet-1k", "eva"),
    "beit_b": CatalogueEntry("beit_base_patch16_224", "BEiT-Base, ImageNet-1k", "beit"),
    "beitv2_b": CatalogueEntry("beitv2_base_patch16_224", "BEiT-v2-Base, ImageNet-1k", "beit"),
    "lvvit_t": CatalogueEntry("lvvit_t", "LV-ViT-Tiny, ImageNet-1k; needs --checkpoint", "lvvit", in_timm=False),
    "lvvit_s": CatalogueEntry("lvvit_s", "LV-ViT-Small, ImageNet-1k; needs --checkpoint", "lvvit", in_timm=False),
    "lvvit_m": CatalogueEntry("lvvit_m", "LV-ViT-Medium, ImageNet-1k; needs --checkpoint", "lvvit", in_timm=False),
    "lvvit_l": CatalogueEntry("lvvit_l", "LV-ViT-Large, ImageNet-1k; needs --checkpoint", "lvvit", in_timm=False),
}

#: Words for sizes in timm's names, which short names abbreviate.
_SIZES = {"tiny": "t", "small": "s", "base": "b", "large": "l", "medium": "m"}


def near_short_name(name: str) -> str | None:
    """The short name nearest to what was typed: `deit_tiny` and `DeiT-T` mean `deit_t`."""
    words = re.split(r"[\s_-]+", name.strip().casefold())
    return nearest("_".join(_SIZES.get(word, word) for word in words), CATALOGUE, 0.7)


def sample_images(entry: CatalogueEntry | None, count: int) -> list[Path]:
    """Real images in the package that suit the model."""
    folder = entry.shipped / "images" if entry is not None and entry.shipped is not None else ASSETS / "photos"
    paths = sorted(path for path in folder.iterdir() if path.suffix in (".png", ".jpg"))
    return paths[:: max(1, len(paths) // count)][:count]
