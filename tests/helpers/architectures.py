"""Sizes of models for tests that need no weights."""

from __future__ import annotations

from ztdeploy.core.schedule import Architecture

DEIT_TINY = Architecture(
    depth=12,
    embed_dim=192,
    num_heads=3,
    mlp_dim=768,
    patch_tokens=196,
    prefix_tokens=1,
    class_token=True,
    patch_dim=768,
    num_classes=1000,
)
DEIT_S = DEIT_TINY.model_copy(update={"embed_dim": 384, "num_heads": 6, "mlp_dim": 1536})
SMALL = DEIT_TINY.model_copy(
    update={
        "depth": 6,
        "embed_dim": 64,
        "num_heads": 2,
        "mlp_dim": 256,
        "patch_tokens": 49,
        "patch_dim": 48,
        "num_classes": 10,
    }
)
