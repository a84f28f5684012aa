"""A trained dense model: a DINOv2 ViT-S/14 and its head for saliency, of which only the weights are published.

`ZTDEPLOY_REALDATA` names a folder with the weights of both: `dinov2_small.fp16.safetensors`, with the names of
`transformers`, and `dinov2_small_saliency_head.fp16.safetensors`. Tests and benchmarks measure dense outputs on it.
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from ztdeploy.host.models.hf_making import quiet

BACKBONE, HEAD = "dinov2_small.fp16.safetensors", "dinov2_small_saliency_head.fp16.safetensors"
WIDTHS = (384, 256, 128, 64)
#: What transformers' configuration says of the backbone; it was trained at 518 pixels, and the head at 224.
CONFIG = {
    "architectures": ["Dinov2Model"],
    "model_type": "dinov2",
    "hidden_size": WIDTHS[0],
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "image_size": 518,
    "patch_size": 14,
}
#: Photographs are cut to squares without borders, which would be redundant and so flatter pruning.
PROCESSOR = {
    "image_processor_type": "BitImageProcessor",
    "do_resize": True,
    "do_center_crop": True,
    "do_rescale": True,
    "do_normalize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "rescale_factor": 1 / 255,
    "resample": 3,
}


class SaliencyHead(nn.Module):
    """From the normed patch tokens `[B, P, 384]` of a square grid to logits per pixel, `[B, 1, side, side]`."""

    def __init__(self, side: int) -> None:
        """
        Args:
            side: of the images, in pixels.
        """
        super().__init__()
        self.side = side
        for step, (before, after) in enumerate(pairwise(WIDTHS), 1):
            self.add_module(f"upconv{step}", nn.ConvTranspose2d(before, after, 4, stride=2, padding=1))
            self.add_module(f"bn{step}", nn.BatchNorm2d(after))
        self.final_conv = nn.Conv2d(WIDTHS[-1], 1, 1)

    def forward(self, patches: Tensor) -> Tensor:
        edge = round(patches.shape[1] ** 0.5)
        x = patches.transpose(1, 2).reshape(-1, WIDTHS[0], edge, edge)
        for step in range(1, len(WIDTHS)):
            x = self.get_submodule(f"bn{step}")(self.get_submodule(f"upconv{step}")(x)).relu()
        return functional.interpolate(self.final_conv(x), size=(self.side, self.side), mode="bilinear")


class SaliencyModel(nn.Module):
    """From normalised images `[B, 3, side, side]` to logits of saliency `[B, 1, side, side]`."""

    def __init__(self, backbone: nn.Module, head: SaliencyHead) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.backbone(images).last_hidden_state[:, 1:])
        return logits


def saliency_model(folder: Path, side: int) -> SaliencyModel:
    """The whole model for images of `side` pixels, with the weights in `folder`; the backbone is transformers'."""
    from transformers import Dinov2Config, Dinov2Model

    state = load_file(folder / BACKBONE)
    with quiet():
        # the library gives the tensors of older releases their present names
        backbone = Dinov2Model.from_pretrained(None, config=Dinov2Config(**CONFIG), state_dict=state)
    return SaliencyModel(backbone.float(), saliency_head(folder, side)).eval()


def saliency_head(folder: Path, side: int) -> SaliencyHead:
    """The head alone."""
    head = SaliencyHead(side).eval()
    prefix = "decoder."
    state = {name.removeprefix(prefix): tensor.float() for name, tensor in load_file(folder / HEAD).items()}
    state |= {f"bn{step}.num_batches_tracked": torch.tensor(0) for step in range(1, len(WIDTHS))}
    head.load_state_dict(state)
    return head


def backbone_folder(folder: Path, side: int, out: Path) -> Path:
    """The backbone alone as a folder of the hub (`hf:OUT`), for images of `side` pixels: a link to its weights."""
    out.mkdir(parents=True)
    size = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    (out / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    (out / "preprocessor_config.json").write_text(json.dumps(PROCESSOR | size), encoding="utf-8")
    (out / "model.safetensors").symlink_to((folder / BACKBONE).resolve())
    return out
