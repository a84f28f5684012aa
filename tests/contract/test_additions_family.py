"""A model family is added as CONTRIBUTING says: by one file, and one line in the table."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from ztdeploy.core.model_source import ModelSource
from ztdeploy.host import models
from ztdeploy.host.models.loading import check_model
from ztdeploy.jobs.build import BuildRequest, build
from ztdeploy.target.adaptive.opening import load

#: Everything that somebody writes: the model, which timm lacks, and its adapter.
FILE = """
import torch
from timm.layers import PatchEmbed
from timm.models.vision_transformer import Attention, Block
from torch import nn
from ztdeploy.host.models.adapter import ModelAdapter

class Small(nn.Module):
    num_prefix_tokens, embed_dim, num_classes, global_pool = 1, 48, 5, "token"
    pretrained_cfg = {"input_size": (3, 32, 32), "crop_pct": 1.0, "interpolation": "bilinear",
                      "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}

    def __init__(self):
        super().__init__()
        self.patch_embed = PatchEmbed(32, 8, embed_dim=48)
        self.cls_token = nn.Parameter(torch.randn(1, 1, 48))
        self.pos_embed = nn.Parameter(torch.randn(1, 17, 48))
        self.blocks = nn.Sequential(*(Block(48, 3, qkv_bias=True) for _ in range(3)))
        self.norm, self.head = nn.LayerNorm(48), nn.Linear(48, 5)

    def forward(self, images):
        patches = self.patch_embed(images)
        x = torch.cat([self.cls_token.expand(patches.shape[0], -1, -1), patches], 1) + self.pos_embed
        return self.head(self.norm(self.blocks(x))[:, 0])

class SmallAdapter(ModelAdapter):
    family, own_models, model_class, plain_block, attentions = "small", ("small_one",), Small, Block, (Attention,)

    @classmethod
    def make(cls, name, image_size, arguments):
        return Small()
"""


def test_a_family_is_one_file_and_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "small_family.py").write_text(FILE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(models.FAMILIES, "small", "small_family:SmallAdapter")
    assert check_model("small_one").family == "small"
    source = ModelSource(name="small_one", weights="random")
    # every bundle is proved against PyTorch before it is written
    bundle = build(BuildRequest(source, ("cpu",), tmp_path / "bundle", keep_ratios=(0.5,), methods=("zero-tprune",)))
    assert bundle.manifest.model.family == "small"
    with load(bundle.root, keep_ratio=0.5) as runner:
        Image.new("RGB", (40, 40), "red").save(tmp_path / "photo.png")
        (prediction,) = runner(tmp_path / "photo.png")
        assert prediction.logits.shape == (5,)
