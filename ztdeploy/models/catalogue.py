"""Short names for models, and what goes with them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

ASSETS = Path(__file__).parent.parent / "assets"


@dataclass(frozen=True)
class CatalogueEntry:
    """One model that has a short name."""

    timm_name: str
    about: str
    shipped: Path | None = None  #: folder with `model.safetensors` and `model.json`, for the model inside the package


CATALOGUE: dict[str, CatalogueEntry] = {
    "vit_digits": CatalogueEntry(
        "vit_digits", "handwritten digits, 1.3 M parameters, ships inside the package", ASSETS / "digits"
    ),
    "deit_t": CatalogueEntry("deit_tiny_patch16_224", "DeiT-Tiny, ImageNet-1k"),
    "deit_s": CatalogueEntry("deit_small_patch16_224", "DeiT-Small, ImageNet-1k"),
    "deit_b": CatalogueEntry("deit_base_patch16_224", "DeiT-Base, ImageNet-1k"),
    "vit_t": CatalogueEntry("vit_tiny_patch16_224.augreg_in21k_ft_in1k", "AugReg ViT-Tiny, ImageNet-1k"),
    "vit_s": CatalogueEntry("vit_small_patch16_224.augreg_in21k_ft_in1k", "AugReg ViT-Small, ImageNet-1k"),
    "vit_b": CatalogueEntry("vit_base_patch16_224.augreg_in21k_ft_in1k", "AugReg ViT-Base, ImageNet-1k"),
    "vit_l": CatalogueEntry("vit_large_patch16_224.augreg_in21k_ft_in1k", "AugReg ViT-Large, ImageNet-1k"),
}

WeightsSource = Literal["pretrained", "random"]


def sample_images(entry: CatalogueEntry | None, count: int) -> list[Path]:
    """Real images that the package ships and that suit the model."""
    folder = entry.shipped / "images" if entry is not None and entry.shipped is not None else ASSETS / "photos"
    paths = sorted(path for path in folder.iterdir() if path.suffix in (".png", ".jpg"))
    return paths[:: max(1, len(paths) // count)][:count]
